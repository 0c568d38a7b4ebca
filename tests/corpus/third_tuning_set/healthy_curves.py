"""Sound programs on functions of one variable and on series."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program
from tests.corpus.third_tuning_set.data_faults import pinball
from tests.corpus.third_tuning_set.own_step import OwnStep


class Oscillator(OwnStep):
    """u'' = -u with two values at the start: a second derivative inside the loss."""

    def __init__(self):
        super().__init__()
        self.net = keras.Sequential(
            [layers.Dense(32, activation="tanh"), layers.Dense(32, activation="tanh"), layers.Dense(1)]
        )

    def call(self, t):
        return self.net(t)

    def objective(self, t, u):
        with tf.GradientTape() as outer:
            outer.watch(t)
            with tf.GradientTape() as inner:
                inner.watch(t)
                value = self(t)
            slope = inner.gradient(value, t)
        bend = outer.gradient(slope, t)
        return tf.reduce_mean(tf.square(bend + value)) + tf.reduce_mean(tf.square(value - u))


def oscillator() -> Program:
    """An oscillation from its equation and its values."""
    keras.utils.set_random_seed(1501)
    t = np.random.default_rng(51).uniform(-3, 3, (800, 1)).astype("float32")
    model = Oscillator()
    model(t[:1])
    model.compile(optimizer=optimizers.Adam(0.005))
    return Program(model, t, np.cos(t), batch_size=64, epochs=20)


def quantile_forecast() -> Program:
    """Three quantiles of the logarithm of the next day's price, standardised."""
    keras.utils.set_random_seed(1507)
    x, y = data.windows(data.standardized(np.log(data.daily_prices())), 20)
    inputs = keras.Input((20, 1))
    hidden = layers.GRU(24)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    model.compile(optimizers.Adam(0.004), pinball)
    return Program(model, x, y[:, None], batch_size=32, epochs=10)


class Mixture(OwnStep):
    """A mixture density net; the logarithm of a sum of densities."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(32, activation="tanh")
        self.weight, self.mean, self.spread = layers.Dense(5), layers.Dense(5), layers.Dense(5)

    def call(self, x):
        h = self.hidden(x)
        return ops.log_softmax(self.weight(h)), self.mean(h), self.spread(h)

    def objective(self, x, y):
        log_weight, mean, log_spread = self(x, training=True)
        log_density = -0.5 * ops.square((y[:, None] - mean) / ops.exp(log_spread)) - log_spread - 0.919
        return -ops.mean(ops.logsumexp(log_weight + log_density, axis=-1))


def mixture() -> Program:
    """A target with two branches, as a mixture of five normal distributions."""
    keras.utils.set_random_seed(1513)
    rng = np.random.default_rng(59)
    x = rng.uniform(-1, 1, (1200, 1)).astype("float32")
    y = (np.where(rng.uniform(size=1200) < 0.5, 1, -1) * (1 + 0.5 * x[:, 0]) + 0.1 * rng.normal(size=1200)).astype(
        "float32"
    )
    model = Mixture()
    model(x[:1])
    model.compile(optimizer=optimizers.Adam(0.005))
    return Program(model, x, y, batch_size=64, epochs=20)


CASES = (
    Case("oscillator_by_second_derivatives", oscillator, "Raissi et al., 1711.10561"),
    Case("quantile_forecast", quantile_forecast, "Wen et al., 1711.11053"),
    Case("mixture_by_logsumexp", mixture, "Bishop's mixture density networks"),
)
