"""Optimizers at fault: rates too high or too low, batches too small, state and epsilon."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


def _small_images(number: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = data.mnist(number)
    return (x.reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255.0).astype("float32")[..., None], y


def tenth_for_adam(broken: bool) -> Program:
    """Adam with a rate of 0.1 on a convolutional net: every class gets one in ten after the first epoch."""
    keras.utils.set_random_seed(71)
    x, y = _small_images(2000)
    model = keras.Sequential([keras.Input((14, 14, 1))])
    model.add(layers.Conv2D(16, 3, activation="relu"))
    model.add(layers.Conv2D(32, 3, activation="relu"))
    model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(64, "relu"))
    model.add(layers.Dense(10, "softmax"))
    model.compile(optimizers.Adam(0.1 if broken else 0.001), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1600], y[:1600], 32, 4, (x[1600:], y[1600:]))


def unit_rate(broken: bool) -> Program:
    """Linear regression on standardized columns with a rate of 1: each step overshoots by more than the last."""
    keras.utils.set_random_seed(72)
    x, y = data.auto_mpg()
    x, y = data.standardized(x[:, :7]), data.standardized(y[:, None])
    model = keras.Sequential([keras.Input((7,)), layers.Dense(1)])
    model.compile(optimizers.SGD(1.0 if broken else 0.05), "mse")
    return Program(model, x, y, 64, 20)


def momentum_on_top(broken: bool) -> Program:
    """Momentum of 0.99 added to a rate that was tuned without it: the steps become a hundred times as long."""
    keras.utils.set_random_seed(73)
    x, y = data.wine()
    x = data.standardized(x)
    inputs = keras.Input((13,))
    hidden = layers.Dense(64, "relu")(inputs)
    hidden = layers.Dense(64, "relu")(hidden)
    outputs = layers.Dense(3, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    optimizer = optimizers.SGD(0.3, momentum=0.99 if broken else 0.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 16, 15)


def fine_tuning_rate(broken: bool) -> Program:
    """A rate of 1e-6, copied from the IRNN example, for a net that starts from scratch."""
    keras.utils.set_random_seed(74)
    x, y = data.digits()
    x = x / 16.0
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64, "relu"), layers.Dense(10, "softmax")])
    rate = 1e-6 if broken else 1e-3
    model.compile(optimizers.RMSprop(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 6)


def decay_by_step(broken: bool) -> Program:
    """A rate that shall halve every two epochs, but decay_steps counts batches: it is soon gone."""
    keras.utils.set_random_seed(75)
    x, y = _small_images(1920)
    model = keras.Sequential([keras.Input((14, 14, 1)), layers.Conv2D(12, 3, strides=2, activation="relu")])
    model.add(layers.Flatten())
    model.add(layers.Dense(10))
    schedule = optimizers.schedules.ExponentialDecay(0.02, decay_steps=2 if broken else 120, decay_rate=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.SGD(schedule, momentum=0.9), loss, metrics=["accuracy"])
    return Program(model, x, y, 32, 5)


def one_at_a_time(broken: bool) -> Program:
    """Batch normalization between dense layers and batches of one: each activation minus its own mean is zero."""
    keras.utils.set_random_seed(76)
    x, y = data.iris()
    x = data.standardized(x)
    model = keras.Sequential([keras.Input((4,))])
    for _ in range(2):
        model.add(layers.Dense(32, use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.Activation("relu"))
    model.add(layers.Dense(3, "softmax"))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 1 if broken else 16, 4 if broken else 30)


def pairs_only(broken: bool) -> Program:
    """The same in a convolutional net that ends in normalized features, with two images a step for want of memory."""
    keras.utils.set_random_seed(77)
    x, y = data.digits()
    x, y = x[:800].reshape(-1, 8, 8, 1) / 16.0, y[:800]
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(16, 3, use_bias=False)(inputs)
    hidden = layers.Activation("relu")(layers.BatchNormalization()(hidden))
    hidden = layers.GlobalAveragePooling2D()(layers.Conv2D(32, 3, activation="relu")(hidden))
    for _ in range(2):
        hidden = layers.Dense(32, use_bias=False)(hidden)
        hidden = layers.Activation("relu")(layers.BatchNormalization()(hidden))
    outputs = layers.Dense(10, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 2 if broken else 32, 3 if broken else 12)


def inception_epsilon(broken: bool) -> Program:
    """Adam's epsilon of 1, which the documentation mentions for Inception, with the default rate on a small net."""
    keras.utils.set_random_seed(78)
    x, y = data.digits()
    x = x / 16.0
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, "tanh"), layers.Dense(10, "softmax")])
    optimizer = optimizers.Adam(0.001, epsilon=1.0 if broken else 1e-7)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 8)


def poisoned_moments(broken: bool) -> Program:
    """After a NaN the last good weights were loaded again, but not the moments of Adam, which are still NaN."""
    keras.utils.set_random_seed(79)
    x, y = data.boston()
    x, y = data.standardized(x), data.standardized(y[:, None])
    model = keras.Sequential([keras.Input((13,)), layers.Dense(32, "relu"), layers.Dense(1)])
    model.compile(optimizers.Adam(0.005), "mse")
    good = model.get_weights()
    bad = x[:32].copy()
    bad[3, 4] = np.nan
    model.train_on_batch(bad, y[:32])
    model.set_weights(good)
    model.reset_metrics()
    if not broken:
        model.compile(optimizers.Adam(0.005), "mse")
    return Program(model, x, y, 32, 10)


def remembered_giant(broken: bool) -> Program:
    """AMSGrad never forgets its largest gradient, and the first batches still had their targets in dollars."""
    keras.utils.set_random_seed(80)
    x, y = data.boston()
    x, y = data.standardized(x), data.standardized(y[:, None])
    inputs = keras.Input((13,))
    outputs = layers.Dense(1)(layers.Dense(32, "tanh")(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(optimizers.Adam(0.002, amsgrad=True), "mse")
    good = model.get_weights()
    for start in range(0, 160, 32):
        model.train_on_batch(x[start : start + 32], 22000.0 + 9000.0 * y[start : start + 32])
    model.set_weights(good)
    model.reset_metrics()
    if not broken:
        model.compile(optimizers.Adam(0.002, amsgrad=True), "mse")
    return Program(model, x, y, 32, 15)


def _case(build, cause, source, accepted=()) -> Case:
    return Case(build.__name__, partial(build, True), source, cause, accepted, partial(build, False))


CASES = (
    _case(
        tenth_for_adam,
        "learning_rate_too_high",
        "keras issue 2711, comment of 2018; DeepFD study, rates",
        ("dead_units",),
    ),
    _case(
        unit_rate, "learning_rate_too_high", "LeCun et al. 1998, Efficient BackProp, section 4.6: twice the best rate"
    ),
    _case(momentum_on_top, "learning_rate_too_high", "Goh 2017, Why Momentum Really Works; Sutskever et al. 2013"),
    _case(fine_tuning_rate, "learning_rate_too_low", "keras example mnist_irnn.py; keras issue 2711, comment of 2019"),
    _case(decay_by_step, "learning_rate_too_low", "Stack Overflow: decay_steps of ExponentialDecay, steps or epochs?"),
    _case(one_at_a_time, "batch_too_small", "microsoft/CNTK issue 905; Ioffe 2017, Batch Renormalization"),
    _case(pairs_only, "batch_too_small", "Wu and He 2018, Group Normalization: batches of two; keras issue 10666"),
    _case(
        inception_epsilon,
        "optimizer_state",
        "Keras documentation of Adam: epsilon 1.0 for Inception",
        ("learning_rate_too_low",),
    ),
    _case(
        poisoned_moments, "optimizer_state", "NVIDIA/apex issue 480 and 180: what loading a checkpoint leaves behind"
    ),
    _case(remembered_giant, "optimizer_state", "Reddi, Kale, Kumar 2018 (AMSGrad); google/trax issue 614"),
)
