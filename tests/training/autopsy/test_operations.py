"""The innermost operation that breaks, in composite layers, nested models, losses and train steps of the user's own."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from gradrecipes.training.autopsy import autopsy

X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)


class Inner(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.dense, self.function = layers.Dense(4, kernel_initializer="ones"), function

    def call(self, x):
        return self.function(self.dense(x))


class Outer(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.inner, self.head = Inner(function), layers.Dense(1)

    def call(self, x):
        return self.head(self.inner(x))


class OwnStep(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.mean(self.distance(self(x, training=True), y))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


ARITHMETIC = {
    "log": (ops.log, "Log", "logarithm of a negative number"),
    "sqrt": (ops.sqrt, "Sqrt", "square root of a negative number"),
    "power": (lambda z: ops.power(z, 0.5), "Pow", "power of a negative number"),
    "division": (lambda z: 1.0 / ops.relu(z), "RealDiv", "division by 0"),
    "infinities": (lambda z: z * np.float32(np.inf) - ops.abs(z) * np.float32(np.inf), "Sub", "inf - inf"),
    "zero_times_infinity": (lambda z: ops.relu(z) * np.float32(np.inf), "Mul", "0 * inf"),
    "masked": (lambda z: ops.softmax(ops.where(z < 1e9, -np.inf, z)), "Softmax", "masked throughout"),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_within_a_layer_within_a_layer_is_named(name):
    function, kind, words = ARITHMETIC[name]
    model = keras.Sequential([keras.Input((4,)), Outer(function)])
    model.compile("sgd", "mse")
    operation = autopsy(model, (X, X[:, :1])).operation
    assert operation.type == kind and words in operation.words
    assert "inner" in operation.name


def test_a_nested_model_and_a_mask_that_is_meant():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Lambda(lambda z: ops.log(ops.relu(z)))])
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(1)])
    model.compile("sgd", "mse")
    assert autopsy(model, (X, X[:, :1])).operation.words == "the logarithm of 0"
    masked = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda z: ops.softmax(ops.where(z > 9.0, -np.inf, z)))])
    masked.compile("sgd", "mse")
    assert autopsy(masked, (X, X)).operation is None


@pytest.mark.parametrize(
    ("distance", "words", "backward"),
    [
        (lambda p, y: ops.log(p - p - 1.0), "logarithm of a negative number", False),
        (lambda p, y: ops.sqrt(ops.square(p - p)), "derivative of a square root at 0", True),
    ],
)
def test_a_train_step_of_the_users_own_is_looked_into(distance, words, backward):
    inputs = keras.Input((4,))
    model = OwnStep(inputs, layers.Dense(1)(inputs))
    model.distance = distance
    model.compile("sgd")
    before = model.get_weights()
    found = autopsy(model, (X, X[:, :1]))
    assert words in found.operation.words and found.operation.backward == backward
    assert found.first is not None
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))
