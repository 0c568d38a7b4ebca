"""A variational autoencoder and a GAN that fail, and what mends them."""

from __future__ import annotations

from functools import partial

import keras
import tensorflow as tf
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


class VariationalAutoencoder(keras.Model):
    """Encoder to mean and logarithm of the variance, one sample of the code, decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([layers.Input((784,)), layers.Dense(128, activation="relu"), layers.Dense(16)])
        self.decoder = keras.Sequential([layers.Input((8,)), layers.Dense(128, activation="relu"), layers.Dense(784)])
        self.seeds = keras.random.SeedGenerator(91)
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.loss_tracker]

    def call(self, images):
        mean, log_variance = ops.split(self.encoder(images), 2, axis=1)
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        return mean, log_variance, self.decoder(mean + ops.exp(log_variance / 2) * noise)

    def train_step(self, images):
        if isinstance(images, tuple):
            images = images[0]
        with tf.GradientTape() as tape:
            mean, log_variance, decoded = self(images, training=True)
            reconstruction = ops.mean(ops.sum(ops.square(images - decoded), axis=1))
            divergence = ops.square(mean) + ops.exp(log_variance) - log_variance - 1
            loss = reconstruction + ops.mean(ops.sum(divergence, axis=1)) / 2
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


def variational_autoencoder(scale: float = 1.0) -> Program:
    """Pixels from 0 to 255 into a variance that is the exponential of what the encoder says."""
    keras.utils.set_random_seed(91)
    x, _ = data.mnist(2000)
    model = VariationalAutoencoder()
    model.compile(optimizer=optimizers.Adam(0.001))
    return Program(model, x.reshape(-1, 784) / scale, None, batch_size=64, epochs=6)


def _dense(inputs: int, outputs: int) -> keras.Sequential:
    hidden = (layers.Dense(96), layers.LeakyReLU(0.2), layers.Dense(96), layers.LeakyReLU(0.2))
    return keras.Sequential([layers.Input((inputs,)), *hidden, layers.Dense(outputs)])


class Gan(keras.Model):
    """A generator that ends in tanh and a discriminator, with an optimizer each."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([_dense(16, 784), layers.Activation("tanh")])
        self.discriminator = _dense(784, 1)
        self.seeds = keras.random.SeedGenerator(92)
        self.losses_seen = [keras.metrics.Mean(name=name) for name in ("loss", "deception")]

    @property
    def metrics(self):
        return self.losses_seen

    def compile(self, optimizer, generator_optimizer):
        super().compile(optimizer=optimizer)
        self.generator_optimizer = generator_optimizer

    def call(self, noise):
        return self.discriminator(self.generator(noise))

    def train_step(self, images):
        if isinstance(images, tuple):
            images = images[0]
        noise = keras.random.normal((ops.shape(images)[0], 16), seed=self.seeds)
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.softplus(-self.discriminator(images)) + ops.softplus(self(noise)))
        weights = self.discriminator.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        with tf.GradientTape() as tape:
            generator_loss = ops.mean(ops.softplus(-self(noise)))
        weights = self.generator.trainable_weights
        self.generator_optimizer.apply(tape.gradient(generator_loss, weights), weights)
        for metric, value in zip(self.losses_seen, (loss, generator_loss), strict=True):
            metric.update_state(value)
        return {metric.name: metric.result() for metric in self.losses_seen}


def gan(rate: float = 0.05) -> Program:
    """Generator and discriminator with Adam at 0.05, where GANs want a hundredth of that."""
    keras.utils.set_random_seed(92)
    x, _ = data.mnist(2000)
    model = Gan()
    model.compile(optimizers.Adam(rate, beta_1=0.5), optimizers.Adam(rate, beta_1=0.5))
    return Program(model, x.reshape(-1, 784) / 127.5 - 1, None, batch_size=32, epochs=6)


CASES = (
    Case(
        "variational_autoencoder_on_raw_pixels",
        variational_autoencoder,
        "tensorflow/models issue 23: a VAE on pixels that were not brought to 0 to 1; WorldModels issue 9",
        "unscaled_inputs",
        accepted=("unsafe_loss",),
        repaired=partial(variational_autoencoder, scale=255.0),
    ),
    Case(
        "gan_with_adam_at_one_twentieth",
        gan,
        "Radford, Metz, Chintala, 1511.06434, section 4: Adam's usual rate is already too high for GANs",
        "learning_rate_too_high",
        repaired=partial(gan, rate=0.0005),
    ),
)
