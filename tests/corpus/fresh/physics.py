"""Nets that obey equations, and quantities in raw units."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.fresh.common import ballistic_range, column, compiled, dense_net


class Equation(keras.Model):
    """u(x, t) that meets data and an equation; the derivatives are taken inside the step."""

    def __init__(self, net: keras.Model, residual, weight: float = 1.0):
        super().__init__()
        self.net, self.residual, self.weight = net, residual, weight
        self.total, self.error = keras.metrics.Mean(name="loss"), keras.metrics.Mean(name="data_error")

    @property
    def metrics(self):
        return [self.total, self.error]

    def call(self, x):
        return self.net(x)

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            left = self.residual(self.net, x)
            error = tf.reduce_mean(tf.square(self.net(x, training=True) - y))
            loss = error + self.weight * tf.reduce_mean(tf.square(left))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self.total.update_state(loss)
        self.error.update_state(error)
        return {metric.name: metric.result() for metric in self.metrics}


def diffusion_residual(guarded: bool):
    def residual(net, x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                u = net(x)
                conductivity = 0.1 * (tf.nn.softplus(u) if guarded else u) ** 1.2
            slope = inner.gradient(u, x)
            flux = conductivity * slope[:, :1]
        return slope[:, 1:] - outer.gradient(flux, x)[:, :1]

    return residual


def conductivity_to_a_power(guarded: bool = False) -> Program:
    keras.utils.set_random_seed(41)
    x = np.random.default_rng(1).uniform(0, 1, (1000, 2)).astype("float32")
    y = column(np.exp(-x[:, 1]) * np.sin(np.pi * x[:, 0]))
    model = Equation(dense_net(2, [32, 32], 1, "tanh"), diffusion_residual(guarded), 0.01)
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    return Program(model, x, y, 50, 30)


def decay_residual(rate: float):
    def residual(net, x):
        with tf.GradientTape() as inner:
            inner.watch(x)
            u = net(x)
        return inner.gradient(u, x) + rate * u

    return residual


def seconds_since_the_start(day: float = 86400.0, unit: float = 1.0) -> Program:
    keras.utils.set_random_seed(42)
    time = np.random.default_rng(2).uniform(0, day, (1000, 1))
    rate = 3.0 / day
    x, y = (time / unit).astype("float32"), np.exp(-rate * time).astype("float32")
    model = Equation(dense_net(1, [32, 32], 1, "tanh"), decay_residual(rate * unit), 0.1)
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    return Program(model, x, y, 50, 20)


def oscillator_residual(stiffness: float):
    def residual(net, x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                u = net(x)
            slope = inner.gradient(u, x)
        return outer.gradient(slope, x) + stiffness * u

    return residual


def stiff_spring(weight: float = 1.0) -> Program:
    keras.utils.set_random_seed(43)
    time = np.random.default_rng(3).uniform(0, 1, (600, 1)).astype("float32")
    stiffness = 900.0
    y = np.cos(30.0 * time / 5).astype("float32")
    model = Equation(dense_net(1, [32, 32], 1, "tanh"), oscillator_residual(stiffness / 25), weight)
    model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
    return Program(model, time, y, 30, 60)


def throw_in_metres(scaled: bool = False) -> Program:
    keras.utils.set_random_seed(44)
    x, y = ballistic_range()
    model = dense_net(3, [64, 64], 1)
    compiled(model, keras.optimizers.SGD(0.01), "mse")
    return Program(model, data.standardized(x), data.standardized(y) if scaled else y, 32, 30)


def throw_from_raw_readings(scaled: bool = False) -> Program:
    keras.utils.set_random_seed(45)
    x, y = ballistic_range()
    model = dense_net(3, [12, 12], 1, "tanh")
    compiled(model, keras.optimizers.Adam(5e-3), "mse")
    return Program(model, data.standardized(x) if scaled else 1000 * x, data.standardized(y), 32, 25)


def field_strength_with_a_broken_sensor(removed: bool = False) -> Program:
    keras.utils.set_random_seed(46)
    random = np.random.default_rng(6)
    place = random.uniform(-1, 1, (800, 3)).astype("float32")
    strength = column(1.0 / (0.3 + (place**2).sum(axis=1)))
    place[[100, 450]] = [[9.9e8, -9.9e8, 9.9e8], [-9.9e8, 9.9e8, 9.9e8]]
    if removed:
        place, strength = np.delete(place, [100, 450], axis=0), np.delete(strength, [100, 450], axis=0)
    model = dense_net(3, [64, 64], 1)
    compiled(model, keras.optimizers.Adam(3e-3), "mse")
    return Program(model, place, strength, 32, 20)


def gap_in_the_record(filled: bool = False) -> Program:
    keras.utils.set_random_seed(47)
    x, y = data.diabetes()
    x = data.standardized(x)
    x[np.random.default_rng(8).random(x.shape) < 0.01] = 0.0 if filled else np.nan
    model = dense_net(10, [32, 16], 1)
    compiled(model, keras.optimizers.Adam(3e-3), "mse")
    return Program(model, x, data.standardized(column(y)), 32, 25)


def logarithm_of_a_ratio(floor: float = 0.0) -> Program:
    keras.utils.set_random_seed(48)
    x, y = data.split_digits()[:2]
    model = keras.Sequential([keras.Input((64,)), keras.layers.Lambda(lambda pixels: ops.log(pixels + floor))])
    for units in (64, 10):
        model.add(keras.layers.Dense(units, "relu" if units > 10 else "softmax"))
    compiled(model, "adam", "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x, y, 32, 6)


CASES = (
    failing(
        "conductivity_to_a_power",
        conductivity_to_a_power,
        "GitHub, prateekbhustali/Physics-Informed-Neural-Networks issue 1: power of a negative output",
        "unsafe_loss",
        ("unsafe_arithmetic",),
        guarded=True,
    ),
    failing(
        "seconds_since_the_start",
        seconds_since_the_start,
        "GitHub, lululxvi/deepxde issues 338 and 556: variables of wide range that were not normalized",
        "unscaled_inputs",
        ("saturated_units",),
        unit=86400.0,
    ),
    failing(
        "stiff_spring",
        stiff_spring,
        "GitHub, lululxvi/deepxde issue 338: terms of the loss of very different size; Wang et al. 2021, gradient flow",
        "unbalanced_loss_terms",
        ("learning_rate_too_high",),
        weight=1e-5,
    ),
    failing(
        "throw_in_metres",
        throw_in_metres,
        "GitHub, rstudio-conf-2020/dl-keras-tf issue 9: squared errors of large targets explode",
        "unscaled_targets",
        ("learning_rate_too_high",),
        scaled=True,
    ),
    failing(
        "throw_from_raw_readings",
        throw_from_raw_readings,
        "Stack Overflow 52800582: why a polynomial of large inputs cannot be predicted",
        "unscaled_inputs",
        ("saturated_units",),
        scaled=True,
    ),
    failing(
        "field_strength_with_a_broken_sensor",
        field_strength_with_a_broken_sensor,
        "Web page, pythonhint.com 1021424426335883: reasons of a NaN loss, outliers among the inputs",
        "corrupt_batch",
        ("unscaled_inputs",),
        removed=True,
    ),
    failing(
        "gap_in_the_record",
        gap_in_the_record,
        "GitHub, keras-team/keras issue 12371: NaN values in the inputs",
        "nonfinite_data",
        filled=True,
    ),
    failing(
        "logarithm_of_a_ratio",
        logarithm_of_a_ratio,
        "GitHub, emited/VariationalRecurrentNeuralNetwork issue 2: NaN of a logarithm without a small number",
        "unsafe_arithmetic",
        ("unsafe_loss",),
        floor=0.05,
    ),
)
