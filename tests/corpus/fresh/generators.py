"""Generators: adversarial nets and denoisers, with steps of their own."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.fresh.common import dense_net, ring


class Adversaries(keras.Model):
    """Two nets, two optimizers, one step; `distance` compares the radius of what is made with what is real."""

    def __init__(self, generator: keras.Model, critic: keras.Model, losses, noise: int = 4, **options: float | None):
        super().__init__()
        self.generator, self.critic, self.objectives = generator, critic, losses
        self.noise, self.limit = noise, options.get("limit")
        self.critic_steps = int(options.get("critic_steps", 1))
        self.seeds = keras.random.SeedGenerator(5)
        names = ("loss", "generator_objective", "distance")
        self.trackers = [keras.metrics.Mean(name=name) for name in names]

    @property
    def metrics(self):
        return self.trackers

    def compile(self, rate: float, generator_rate: float | None = None):
        super().compile(optimizer=keras.optimizers.Adam(rate, beta_1=0.5))
        self.generator_optimizer = keras.optimizers.Adam(generator_rate or rate, beta_1=0.5)

    def call(self, noise):
        return self.generator(noise)

    def made(self, real):
        return self.generator(keras.random.normal((tf.shape(real)[0], self.noise), seed=self.seeds), training=True)

    def train_step(self, batch):
        real = batch[0] if isinstance(batch, tuple) else batch
        critic_loss, generator_loss = self.objectives
        variables = self.critic.trainable_variables
        for _ in range(self.critic_steps):
            with tf.GradientTape() as tape:
                loss = critic_loss(self.critic, real, self.made(real))
            self.optimizer.apply(tape.gradient(loss, variables), variables)
        if self.limit is not None:
            for variable in variables:
                variable.assign(tf.clip_by_value(variable, -self.limit, self.limit))
        with tf.GradientTape() as tape:
            made = self.made(real)
            objective = generator_loss(self.critic(made, training=True))
        variables = self.generator.trainable_variables
        self.generator_optimizer.apply(tape.gradient(objective, variables), variables)
        radii = [tf.sort(tf.norm(points, axis=1)) for points in (real, made)]
        distance = tf.reduce_mean(tf.abs(radii[0] - radii[1])) + tf.norm(tf.reduce_mean(made, axis=0))
        for tracker, value in zip(self.trackers, (loss, objective, distance), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}


def probabilities_by_hand(critic, real, made):
    return -tf.reduce_mean(tf.math.log(tf.sigmoid(critic(real))) + tf.math.log(1.0 - tf.sigmoid(critic(made))))


def cross_entropy_of_logits(critic, real, made):
    return tf.reduce_mean(tf.nn.softplus(-critic(real)) + tf.nn.softplus(critic(made)))


def fool(scores):
    return tf.reduce_mean(tf.nn.softplus(-scores))


def fool_by_hand(scores):
    return -tf.reduce_mean(tf.math.log(tf.sigmoid(scores)))


def certain_discriminator(by_hand: bool = True) -> Program:
    keras.utils.set_random_seed(71)
    points = ring(1024)
    losses = (probabilities_by_hand, fool_by_hand) if by_hand else (cross_entropy_of_logits, fool)
    generator, critic = dense_net(4, [32, 32], 2), dense_net(2, [256, 256], 1)
    model = Adversaries(generator, critic, losses)
    model.compile(0.1, 5e-3)
    return Program(model, points, None, 64, 30)


def earth_mover(critic, real, made):
    return tf.reduce_mean(critic(made)) - tf.reduce_mean(critic(real))


def lift(scores):
    return -tf.reduce_mean(scores)


def far_from_the_ring() -> keras.Model:
    """Return a generator whose points begin beside the ring."""
    generator = dense_net(4, [32, 32], 2)
    generator.layers[-1].bias.assign([1.5, -1.5])
    return generator


def critic_without_a_limit(limit: float | None = None) -> Program:
    keras.utils.set_random_seed(72)
    critic = dense_net(2, [64, 64], 1)
    model = Adversaries(far_from_the_ring(), critic, (earth_mover, lift), limit=limit, critic_steps=3)
    model.compile(5e-3, 1e-3)
    return Program(model, ring(1024), None, 64, 60)


def penalized(floor: float):
    def loss(critic, real, made):
        share = tf.random.uniform((tf.shape(real)[0], 1), seed=3)
        between = share * real + (1.0 - share) * made
        with tf.GradientTape() as inner:
            inner.watch(between)
            scores = critic(between)
        squares = tf.reduce_sum(tf.square(inner.gradient(scores, between)), axis=1)
        penalty = tf.reduce_mean(tf.square(tf.sqrt(squares + floor) - 1.0))
        return earth_mover(critic, real, made) + 10.0 * penalty

    return loss


def penalty_of_a_flat_critic(floor: float = 0.0) -> Program:
    keras.utils.set_random_seed(72)
    critic = dense_net(2, [64, 64], 1)
    critic.layers[-1].kernel.assign(tf.zeros_like(critic.layers[-1].kernel))
    model = Adversaries(far_from_the_ring(), critic, (penalized(floor), lift), critic_steps=5)
    model.compile(2e-3, 5e-4)
    return Program(model, ring(1024), None, 64, 60)


class Denoiser(keras.Model):
    """Learn the noise, or the image, of a noisy image; the schedule is the one of the cosine."""

    def __init__(self, net: keras.Model, last_time: float, predict_image: bool = False):
        super().__init__()
        self.net, self.last_time, self.predict_image = net, last_time, predict_image
        self.seeds = keras.random.SeedGenerator(6)
        self.total = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.total]

    def call(self, x):
        return self.net(x)

    def train_step(self, batch):
        image = batch[0] if isinstance(batch, tuple) else batch
        size = tf.shape(image)[0]
        noise = keras.random.normal(tf.shape(image), seed=self.seeds)
        time = tf.round(keras.random.uniform((size, 1), seed=self.seeds) * 20.0) / 20.0 * self.last_time
        signal_rate = tf.maximum(tf.cos(time * np.pi / 2), 0.0)
        signal_rate = tf.where(time >= 1.0, 0.0, signal_rate)
        noise_rate = tf.sqrt(1.0 - signal_rate**2)
        noisy = signal_rate * image + noise_rate * noise
        with tf.GradientTape() as tape:
            predicted = self.net(tf.concat([noisy, time, signal_rate], axis=1), training=True)
            if self.predict_image:
                restored = (noisy - noise_rate * predicted) / signal_rate
                loss = tf.reduce_mean(tf.square(image - restored) * signal_rate**2)
            else:
                loss = tf.reduce_mean(tf.square(noise - predicted))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self.total.update_state(loss)
        return {"loss": self.total.result()}


def scaled_digits() -> np.ndarray:
    return data.standardized(data.digits()[0])


def nothing_left_of_the_image(last_time: float = 1.0) -> Program:
    keras.utils.set_random_seed(74)
    model = Denoiser(dense_net(66, [128, 128], 64), last_time, predict_image=True)
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    return Program(model, scaled_digits(), None, 64, 15)


def denoiser_that_jumps(rate: float = 0.3) -> Program:
    keras.utils.set_random_seed(75)
    model = Denoiser(dense_net(66, [128, 128], 64), 0.95)
    model.compile(optimizer=keras.optimizers.Adam(rate))
    return Program(model, scaled_digits(), None, 64, 15)


CASES = (
    failing(
        "certain_discriminator",
        certain_discriminator,
        "GitHub, AYLIEN/gan-intro pull request 10: logarithm of what the discriminator gives",
        "unsafe_loss",
        by_hand=False,
    ),
    failing(
        "critic_without_a_limit",
        critic_without_a_limit,
        "Paper: Arjovsky, Chintala and Bottou 2017, Wasserstein GAN (why the weights are clipped)",
        "unbounded_loss",
        ("learning_rate_too_high",),
        limit=0.2,
    ),
    failing(
        "penalty_of_a_flat_critic",
        penalty_of_a_flat_critic,
        "GitHub, keras-team/keras-io issue 910: gradient penalty and the derivative of the root at zero",
        "unsafe_loss",
        ("unsafe_arithmetic",),
        floor=1e-8,
    ),
    failing(
        "nothing_left_of_the_image",
        nothing_left_of_the_image,
        "Paper: Lin et al. 2024, Common diffusion noise schedules are flawed (zero signal at the last step)",
        "unsafe_loss",
        ("unsafe_arithmetic",),
        last_time=0.95,
    ),
    failing(
        "denoiser_that_jumps",
        denoiser_that_jumps,
        "GitHub, beresandras/clear-diffusion-keras issue 4: losses of the denoiser do not fall",
        "learning_rate_too_high",
        ("dead_units",),
        rate=1e-3,
    ),
)
