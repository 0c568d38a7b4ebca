"""Losses that are likelihoods: Gaussian, mixtures, counts, variational autoencoders."""

from __future__ import annotations

import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.fresh.common import column, compiled, dense_net, pendulum


def gaussian_loss(positive: bool):
    def loss(y_true, y_pred):
        mean, deviation = y_pred[:, :1], y_pred[:, 1:]
        if positive:
            deviation = ops.softplus(deviation) + 1e-2
        return ops.log(deviation) + 0.5 * ops.square((y_true - mean) / deviation)

    return loss


def deviation_of_either_sign(positive: bool = False) -> Program:
    keras.utils.set_random_seed(31)
    x, y = pendulum()
    model = dense_net(4, [64, 64], 2, "tanh")
    compiled(model, keras.optimizers.Adam(3e-3), gaussian_loss(positive))
    return Program(model, data.standardized(x), data.standardized(y), 32, 20)


def log_variance_loss(y_true, y_pred):
    mean, log_variance = y_pred[:, :1], y_pred[:, 1:]
    return 0.5 * (log_variance + ops.square(y_true - mean) * ops.exp(-log_variance))


def disease_progression_in_raw_units(scaled: bool = False) -> Program:
    keras.utils.set_random_seed(32)
    x, y = data.diabetes()
    y = column(y)
    model = dense_net(10, [32], 2)
    compiled(model, keras.optimizers.SGD(0.02), log_variance_loss)
    return Program(model, data.standardized(x), data.standardized(y) if scaled else y, 32, 30)


class Autoencoder(keras.Model):
    """A variational autoencoder with a step of its own."""

    def __init__(self, inputs: int, reconstruction, latent: int = 4, hidden: int = 48):
        super().__init__()
        self.encoder = dense_net(inputs, [hidden], 2 * latent)
        self.decoder = dense_net(latent, [hidden], inputs)
        self.reconstruction, self.latent = reconstruction, latent
        self.seeds = keras.random.SeedGenerator(7)
        self.total = keras.metrics.Mean(name="loss")
        self.error = keras.metrics.Mean(name="reconstruction")

    @property
    def metrics(self):
        return [self.total, self.error]

    def call(self, x):
        return self.decoder(self.encoder(x)[:, : self.latent])

    def train_step(self, batch):
        x = batch[0] if isinstance(batch, tuple) else batch
        with tf.GradientTape() as tape:
            code = self.encoder(x, training=True)
            mean, log_variance = code[:, : self.latent], code[:, self.latent :]
            noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
            decoded = self.decoder(mean + ops.exp(0.5 * log_variance) * noise, training=True)
            divergence = -0.5 * ops.sum(1.0 + log_variance - ops.square(mean) - ops.exp(log_variance), axis=1)
            error = self.reconstruction(x, decoded)
            loss = ops.mean(error + divergence)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self.total.update_state(loss)
        self.error.update_state(error)
        return {metric.name: metric.result() for metric in self.metrics}


def squared_error(x, decoded):
    return ops.sum(ops.square(x - decoded), axis=1)


def cell_sizes_in_micrometres(scaled: bool = False) -> Program:
    keras.utils.set_random_seed(33)
    x, _ = data.breast_cancer()
    model = Autoencoder(30, squared_error)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    return Program(model, data.standardized(x) if scaled else x, None, 32, 25)


def bernoulli_by_hand(x, decoded):
    probability = ops.sigmoid(decoded)
    return -ops.sum(x * ops.log(probability) + (1.0 - x) * ops.log(1.0 - probability), axis=1)


def bernoulli_of_logits(x, decoded):
    return ops.sum(ops.maximum(decoded, 0.0) - x * decoded + ops.softplus(-ops.abs(decoded)), axis=1)


def black_and_white_pixels(by_hand: bool = True) -> Program:
    keras.utils.set_random_seed(34)
    x, _ = data.digits()
    model = Autoencoder(64, bernoulli_by_hand if by_hand else bernoulli_of_logits, 8, 512)
    model.compile(optimizer=keras.optimizers.Adam(2e-2))
    return Program(model, (x > 7.0).astype("float32"), None, 32, 20)


def mixture_loss(stable: bool, components: int = 4):
    def loss(y_true, y_pred):
        share, mean, log_deviation = ops.split(y_pred, 3, axis=1)
        share = share - ops.logsumexp(share, axis=1, keepdims=True)
        exponent = -0.5 * ops.square((y_true - mean) * ops.exp(-log_deviation)) - log_deviation
        if stable:
            return 0.5 * math.log(2 * math.pi) - ops.logsumexp(share + exponent, axis=1)
        density = ops.sum(ops.exp(share) * ops.exp(exponent) / math.sqrt(2 * math.pi), axis=1)
        return -ops.log(density)

    return loss


def inverse_of_a_wave(stable: bool = False) -> Program:
    keras.utils.set_random_seed(35)
    random = np.random.default_rng(4)
    y = random.uniform(-18, 18, (1200, 1)).astype("float32")
    x = (y / 18 + 0.3 * np.sin(2 * y / 3) + random.normal(0, 0.05, y.shape)).astype("float32")
    model = dense_net(1, [64, 64], 12, "tanh")
    compiled(model, keras.optimizers.Adam(3e-3), mixture_loss(stable))
    return Program(model, x, y, 32, 25)


def counts_of_pixels(last: str | None = None) -> Program:
    keras.utils.set_random_seed(36)
    x, _ = data.digits()
    image = x.reshape(-1, 8, 8)
    upper, lower = image[:, :4].reshape(-1, 32) / 16, column((image[:, 4:] > 8).sum(axis=(1, 2)))
    model = dense_net(32, [64], 1, last=last)
    compiled(model, keras.optimizers.Adam(3e-3), "poisson")
    return Program(model, upper, lower - lower.min(), 32, 25)


def divergence_loss(floor: float):
    def loss(y_true, y_pred):
        return ops.sum(y_true * ops.log((y_true + floor) / (y_pred + floor)), axis=1)

    return loss


def shares_of_letters(floor: float = 0.0) -> Program:
    keras.utils.set_random_seed(37)
    indices, _, number = data.characters(40, 1500)
    shares = np.stack([np.bincount(row, minlength=number) / 40 for row in indices]).astype("float32")
    model = dense_net(number, [32], number, last="softmax")
    compiled(model, "adam", divergence_loss(floor))
    return Program(model, shares, shares, 32, 25)


CASES = (
    failing(
        "deviation_of_either_sign",
        deviation_of_either_sign,
        "GitHub, keras-team/keras issue 1608: likelihood of Gaussians as a custom loss gives NaN",
        "unsafe_loss",
        positive=True,
    ),
    failing(
        "disease_progression_in_raw_units",
        disease_progression_in_raw_units,
        "GitHub, ethanhe42/KL-Loss issue 4: a large error beside a small variance gives NaN",
        "unscaled_targets",
        ("unsafe_loss", "learning_rate_too_high"),
        scaled=True,
    ),
    failing(
        "cell_sizes_in_micrometres",
        cell_sizes_in_micrometres,
        "GitHub, AppliedDataSciencePartners/WorldModels issue 9, vanderschaarlab/synthcity issue 331: KL loss is NaN",
        "unscaled_inputs",
        ("unsafe_loss",),
        scaled=True,
    ),
    failing(
        "black_and_white_pixels",
        black_and_white_pixels,
        "GitHub, hwalsuklee/tensorflow-mnist-VAE issue 4, kvfrans/variational-autoencoder issue 5: log of zero",
        "unsafe_loss",
        by_hand=False,
    ),
    failing(
        "inverse_of_a_wave",
        inverse_of_a_wave,
        "GitHub, keras-team/keras issues 1061 and 2586: mixture density network becomes NaN",
        "unsafe_loss",
        ("unscaled_targets",),
        stable=True,
    ),
    failing(
        "counts_of_pixels",
        counts_of_pixels,
        "GitHub, keras-team/keras issues 590 and 18886: NaN with the Poisson loss",
        "loss_output_mismatch",
        ("unsafe_loss",),
        last="softplus",
    ),
    failing(
        "shares_of_letters",
        shares_of_letters,
        "GitHub, keras-team/keras issue 5733: custom loss with a logarithm of probabilities is always NaN",
        "unsafe_loss",
        floor=1e-6,
    ),
)
