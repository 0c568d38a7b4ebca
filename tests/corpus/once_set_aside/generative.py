"""Autoencoders, variational ones and adversarial nets with train steps of their own that fail."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.corpus import data
from tests.corpus.case import Case, Program


class VariationalAutoencoder(keras.Model):
    """Encoder, decoder and a train step, as in the Keras example."""

    def __init__(self, pixels: int, latent: int, hidden: int = 64):
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((pixels,)), layers.Dense(hidden, "relu")])
        self.to_mean, self.to_log_variance = layers.Dense(latent), layers.Dense(latent)
        self.decoder = keras.Sequential(
            [keras.Input((latent,)), layers.Dense(hidden, "relu"), layers.Dense(pixels, "sigmoid")]
        )
        self.noise = keras.random.SeedGenerator(5)
        self.total = keras.metrics.Mean(name="loss")
        self.reconstruction = keras.metrics.Mean(name="reconstruction")

    @property
    def metrics(self):
        return [self.total, self.reconstruction]

    def call(self, x):
        return self.decoder(self.to_mean(self.encoder(x)))

    def train_step(self, images):
        images = images[0] if isinstance(images, tuple) else images
        with tf.GradientTape() as tape:
            hidden = self.encoder(images)
            mean, log_variance = self.to_mean(hidden), self.to_log_variance(hidden)
            draw = keras.random.normal(ops.shape(mean), seed=self.noise)
            decoded = self.decoder(mean + ops.exp(0.5 * log_variance) * draw)
            reconstruction = ops.mean(
                ops.sum(keras.losses.binary_crossentropy(images[..., None], decoded[..., None]), 1)
            )
            divergence = -0.5 * (1.0 + log_variance - ops.square(mean) - ops.exp(log_variance))
            loss = reconstruction + ops.mean(ops.sum(divergence, axis=1))
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.total.update_state(loss)
        self.reconstruction.update_state(reconstruction)
        return {metric.name: metric.result() for metric in self.metrics}


def raw_pixel_vae(broken: bool) -> Program:
    """A variational autoencoder on pixels from 0 to 255: the logarithm of the variance starts in the tens."""
    keras.utils.set_random_seed(91)
    x, _ = data.mnist(1500)
    x = x.reshape(-1, 784).astype("float32")
    if not broken:
        x = x / 255.0
    model = VariationalAutoencoder(784, 8)
    model.compile(optimizer=keras.optimizers.Adam(0.001))
    return Program(model, x, None, 64, 5)


class Adversaries(keras.Model):
    """A generator and a discriminator of dense layers, each with an optimizer of its own."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((8,)), layers.Dense(32, "relu"), layers.Dense(64)])
        self.discriminator = keras.Sequential(
            [keras.Input((64,)), layers.Dense(128, "relu"), layers.Dense(64, "relu"), layers.Dense(1)]
        )
        self.noise = keras.random.SeedGenerator(6)
        self.generator_tracker = keras.metrics.Mean(name="generator_loss")
        self.total = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.total, self.generator_tracker]

    def compile(self, optimizer, generator_optimizer):
        super().compile(optimizer=optimizer)
        self.generator_optimizer = generator_optimizer

    def call(self, noise):
        return self.generator(noise)

    def train_step(self, images):
        images = images[0] if isinstance(images, tuple) else images
        noise = keras.random.normal((ops.shape(images)[0], 8), seed=self.noise)
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.softplus(-self.discriminator(images)))
            loss += ops.mean(ops.softplus(self.discriminator(self.generator(noise))))
        weights = self.discriminator.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        with tf.GradientTape() as tape:
            generator_loss = ops.mean(ops.softplus(-self.discriminator(self.generator(noise))))
        weights = self.generator.trainable_weights
        self.generator_optimizer.apply_gradients(zip(tape.gradient(generator_loss, weights), weights, strict=True))
        self.total.update_state(loss)
        self.generator_tracker.update_state(generator_loss)
        return {metric.name: metric.result() for metric in self.metrics}


def hasty_adversaries(broken: bool) -> Program:
    """Both sides of an adversarial net with a rate of 0.1: the discriminator dies and says one half to everything."""
    keras.utils.set_random_seed(92)
    x, _ = data.digits()
    x = (x / 8.0 - 1.0).astype("float32")
    model = Adversaries()
    rates = (0.1, 0.1) if broken else (0.0005, 0.002)
    model.compile(*(keras.optimizers.Adam(rate, beta_1=0.5) for rate in rates))
    return Program(model, x, None, 64, 10)


class Sparsity(keras.regularizers.Regularizer):
    """Kullback-Leibler divergence between a wanted mean activation and that of the batch."""

    def __init__(self, floor: float):
        self.floor = floor

    def __call__(self, activations):
        wanted = 0.05
        actual = ops.mean(activations, axis=0)
        if self.floor:
            actual = ops.clip(actual, self.floor, 1.0 - self.floor)
        return 0.01 * ops.sum(wanted * ops.log(wanted / actual) + 0.95 * ops.log(0.95 / (1.0 - actual)))


def sparse_autoencoder(broken: bool) -> Program:
    """A sparsity penalty made for sigmoid units on ReLU units, whose mean may be 0 or more than 1."""
    keras.utils.set_random_seed(94)
    x, _ = data.mnist(1500)
    x = (x.reshape(-1, 784) / 255.0).astype("float32")
    inputs = keras.Input((784,))
    code = layers.Dense(100, "relu", activity_regularizer=Sparsity(0.0 if broken else 1e-4))(inputs)
    outputs = layers.Dense(784, "sigmoid")(code)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse", metrics=["mse"])
    return Program(model, x, x.copy(), 64, 5)


def signed_autoencoder(broken: bool) -> Program:
    """Images scaled to -1 and 1 for a tanh net, but the autoencoder's sigmoid and crossentropy were kept."""
    keras.utils.set_random_seed(93)
    x, _ = data.digits()
    x = (x.reshape(-1, 8, 8, 1) / 16.0).astype("float32")
    if broken:
        x = 2.0 * x - 1.0
    inputs = keras.Input((8, 8, 1))
    code = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
    code = layers.Conv2D(4, 3, padding="same", activation="relu")(code)
    image = layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu")(code)
    image = layers.Conv2D(1, 3, padding="same", activation="sigmoid")(image)
    model = keras.Model(inputs, image)
    model.compile("adam", "binary_crossentropy", metrics=["mae"])
    return Program(model, x, np.copy(x), 64, 10)


def _case(build, cause, source, accepted=()) -> Case:
    return Case(build.__name__, partial(build, True), source, cause, accepted, partial(build, False))


CASES = (
    _case(
        raw_pixel_vae,
        "unscaled_inputs",
        "AppliedDataSciencePartners/WorldModels issue 9: NaNs in the KL loss; keras example vae.py",
        ("unsafe_loss", "unbounded_activation", "loss_output_mismatch"),
    ),
    _case(
        hasty_adversaries,
        "learning_rate_too_high",
        "Radford, Metz, Chintala 2015, section 4: even a rate of 0.001 was too high for DCGAN",
        ("dead_units",),
    ),
    _case(
        sparse_autoencoder,
        "unsafe_loss",
        "Ng 2011, Sparse autoencoder; Stack Overflow: NaN from a KL divergence activity regularizer in Keras",
    ),
    _case(
        signed_autoencoder,
        "loss_output_mismatch",
        "Keras blog, Building autoencoders, with the DCGAN scaling of images; keras issue 4967 on negative losses",
    ),
)
