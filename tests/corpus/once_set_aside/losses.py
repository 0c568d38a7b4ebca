"""Losses that do not fit the output or the labels, and losses that are unsafe where they are needed."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from keras import layers, ops

from tests.corpus import data
from tests.corpus.case import Case, Program


def softmax_of_one(broken: bool) -> Program:
    """Binary classification by a softmax over a single unit, whose output is 1 whatever comes in."""
    keras.utils.set_random_seed(61)
    x, y = data.breast_cancer()
    x = data.standardized(x)
    model = keras.Sequential([keras.Input((30,))])
    model.add(layers.Dense(40, "relu"))
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(1, "softmax" if broken else "sigmoid"))
    model.compile("rmsprop", "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 10)


def relu_scores(broken: bool) -> Program:
    """A first convolutional classifier whose last layer has a ReLU under a crossentropy that expects probabilities."""
    keras.utils.set_random_seed(62)
    x, y = data.mnist(1500)
    x = (x / 255.0).astype("float32")[..., None]
    model = keras.Sequential([keras.Input((28, 28, 1))])
    model.add(layers.Conv2D(12, 5, activation="relu"))
    model.add(layers.MaxPooling2D(3, strides=2))
    model.add(layers.Flatten())
    model.add(layers.Dense(10, "relu" if broken else "softmax"))
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, keras.utils.to_categorical(y, 10), 32, 4)


def signed_labels(broken: bool) -> Program:
    """Labels of -1 and 1, as support vector machines have them, under a binary crossentropy."""
    keras.utils.set_random_seed(63)
    x, y = data.breast_cancer()
    x = data.standardized(x)
    y = 2 * y - 1 if broken else y
    inputs = keras.Input((30,))
    hidden = layers.Dense(32, "relu")(inputs)
    hidden = layers.Dense(16, "relu")(hidden)
    outputs = layers.Dense(1, "sigmoid")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x, y.astype("float32"), 32, 10)


def price_as_probability(broken: bool) -> Program:
    """A classification tutorial turned to prices: sigmoid and binary crossentropy stayed, the loss falls below zero."""
    keras.utils.set_random_seed(64)
    x, y = data.boston()
    x = data.standardized(x)
    y = y.astype("float32")
    model = keras.Sequential([keras.Input((13,)), layers.Dense(32, "relu"), layers.Dense(32, "relu")])
    if broken:
        model.add(layers.Dense(1, "sigmoid"))
        model.compile("rmsprop", "binary_crossentropy", metrics=["mae"])
    else:
        model.add(layers.Dense(1))
        model.compile("rmsprop", "mean_squared_error", metrics=["mae"])
    return Program(model, x, y, 16, 30)


def naive_crossentropy(broken: bool) -> Program:
    """A binary crossentropy written out with logarithms of the sigmoid's output, which reaches 0 and 1."""
    keras.utils.set_random_seed(65)
    x, y = data.breast_cancer()
    x, y = data.standardized(x), y.astype("float32")[:, None]

    def crossentropy(y_true, y_pred):
        if not broken:
            y_pred = ops.clip(y_pred, 1e-7, 1.0 - 1e-7)
        return -ops.mean(y_true * ops.log(y_pred) + (1.0 - y_true) * ops.log(1.0 - y_pred))

    model = keras.Sequential([keras.Input((30,)), layers.Dense(64, "relu"), layers.Dense(64, "relu")])
    model.add(layers.Dense(1, "sigmoid"))
    model.compile(keras.optimizers.Adam(0.005), crossentropy, metrics=["accuracy"])
    return Program(model, x, y, 32, 12)


class Distance(layers.Layer):
    """Euclidean distance of two embeddings."""

    def __init__(self, floor: float):
        super().__init__()
        self.floor = floor

    def call(self, first, second):
        return ops.sqrt(ops.sum(ops.square(first - second), axis=1, keepdims=True) + self.floor)


def triplets(broken: bool) -> Program:
    """Triplets of digits, where some anchors are their own positive: a square root has no slope at 0."""
    keras.utils.set_random_seed(66)
    x, y = data.digits()
    x = x / 16.0
    rng = np.random.default_rng(66)
    anchor = rng.integers(0, len(x), 2400)
    positive = np.array([rng.choice(np.flatnonzero(y == y[index])) for index in anchor])
    negative = np.array([rng.choice(np.flatnonzero(y != y[index])) for index in anchor])
    positive[::100] = anchor[::100]
    tower = keras.Sequential([keras.Input((64,)), layers.Dense(64, "relu"), layers.Dense(16)])
    inputs = [keras.Input((64,)) for _ in range(3)]
    first, second, third = (tower(image) for image in inputs)
    distance = Distance(0.0 if broken else 1e-8)
    outputs = layers.Concatenate()([distance(first, second), distance(first, third)])

    def triplet_loss(_, distances):
        return ops.mean(ops.maximum(distances[:, 0] - distances[:, 1] + 2.0, 0.0))

    def right_order(_, distances):
        return ops.mean(ops.cast(distances[:, 0] < distances[:, 1], "float32"))

    model = keras.Model(inputs, outputs)
    model.compile("adam", triplet_loss, metrics=[right_order])
    return Program(model, (x[anchor], x[positive], x[negative]), np.zeros((2400, 2), "float32"), 64, 6)


def percentage_error(broken: bool) -> Program:
    """A percentage error of one's own for hourly counts, which are zero at night."""
    keras.utils.set_random_seed(67)
    rng = np.random.default_rng(67)
    hour, day = rng.integers(0, 24, 2000), rng.integers(0, 7, 2000)
    expected = 6.0 * np.exp(-(((hour - 14) / 4.0) ** 2)) * (1.0 + 0.3 * (day > 4))
    y = rng.poisson(expected).astype("float32")[:, None]
    angle = 2 * np.pi * hour / 24
    x = np.stack([np.sin(angle), np.cos(angle), day / 6.0, day > 4], axis=1).astype("float32")

    def mape(y_true, y_pred):
        scale = ops.abs(y_true) if broken else ops.abs(y_true) + 1.0
        return 100.0 * ops.mean(ops.abs(y_true - y_pred) / scale)

    model = keras.Sequential([keras.Input((4,)), layers.Dense(32, "relu"), layers.Dense(16, "relu"), layers.Dense(1)])
    model.compile("adam", mape)
    return Program(model, x, y, 64, 10)


def gaussian_likelihood(broken: bool) -> Program:
    """A density net that predicts mean and standard deviation, the latter straight from a linear unit."""
    keras.utils.set_random_seed(68)
    x, y = data.diabetes()
    x, y = data.standardized(x), data.standardized(y[:, None])

    def likelihood(y_true, y_pred):
        mean, spread = y_pred[:, :1], y_pred[:, 1:]
        if not broken:
            spread = ops.softplus(spread) + 1e-3
        return ops.mean(ops.log(spread) + 0.5 * ops.square((y_true - mean) / spread))

    inputs = keras.Input((10,))
    hidden = layers.Dense(32, "tanh")(inputs)
    outputs = layers.Dense(2)(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.003), likelihood)
    return Program(model, x, y, 32, 15)


def _case(build, cause, source, accepted=()) -> Case:
    return Case(build.__name__, partial(build, True), source, cause, accepted, partial(build, False))


CASES = (
    _case(
        softmax_of_one, "loss_output_mismatch", "DeepLocalize benchmark; Stack Overflow: softmax with one output node"
    ),
    _case(relu_scores, "loss_output_mismatch", "keras issue 12096"),
    _case(
        signed_labels, "loss_output_mismatch", "NeuraLint study (Nikanjam et al. 2021): labels that do not fit the loss"
    ),
    _case(
        price_as_probability, "loss_output_mismatch", "Stack Overflow: huge negative loss in a Keras price regression"
    ),
    _case(naive_crossentropy, "unsafe_loss", "Stack Overflow: Keras custom binary cross entropy loss gives NaN"),
    _case(
        triplets,
        "unsafe_loss",
        "keras issue 9097; Moindrot 2018, Triplet loss in TensorFlow: the slope of a distance of 0",
    ),
    _case(
        percentage_error, "unsafe_loss", "keras issues 2908 and pull request 333: a percentage error and labels of 0"
    ),
    _case(gaussian_likelihood, "unsafe_loss", "Bishop 1994, Mixture Density Networks; NaN reports of Keras MDN layers"),
)
