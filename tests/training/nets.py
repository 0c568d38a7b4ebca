"""Small real nets on the digits, and the means to compare two trainings to the bit."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits
from tensorflow.python.framework import config as tensorflow_config

from gradrecipes.compat.keras_private import DIVIDES_LOSS_AMONG_REPLICAS

layers = keras.layers
REWRITES = ("arithmetic_optimization", "constant_folding", "remapping")  # of the graph, that reorder sums and products


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def digits(samples: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 `[samples, 64]` in [0, 1] and int `[samples]`."""
    x, y = _digits()
    return x[:samples].copy(), y[:samples].copy()


@contextlib.contextmanager
def deterministic(*, rewrites: bool = True) -> Iterator[None]:
    """Let every op give the same bits each time; TensorFlow has a public switch for on only.

    Without rewrites the graph optimizer leaves the order of the arithmetic alone. It may merge a product into the
    update where nothing else reads the gradient, so that reading it can move a slot by one unit in the last place.
    """
    tf.config.experimental.enable_op_determinism()
    tf.config.optimizer.set_experimental_options(dict.fromkeys(REWRITES, rewrites))
    try:
        yield
    finally:
        tensorflow_config.disable_op_determinism()
        tf.config.optimizer.set_experimental_options(dict.fromkeys(REWRITES, True))


# For tests of several replicas.
divided = pytest.mark.skipif(not DIVIDES_LOSS_AMONG_REPLICAS, reason="Keras 3.7 does not divide the loss by replicas")


@keras.saving.register_keras_serializable(package="tests")
class Apply(layers.Layer):
    """Apply a function, such as one that breaks for inputs that are marked."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


def moved(model: keras.Model, before: list[np.ndarray]) -> float:
    """Return how far the weights are from those before, the norm over all of them."""
    change = [a.astype(np.float64) - b for a, b in zip(model.get_weights(), before, strict=True)]
    return float(np.sqrt(sum(np.sum(np.square(c)) for c in change)))


def compiled(model: keras.Model, optimizer: Any = None, **how: Any) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer or keras.optimizers.Adam(0.01), **{"loss": loss, "metrics": ["accuracy"], **how})
    return model


def two_dense(activation: str = "relu") -> keras.Model:
    return keras.Sequential([keras.Input((64,)), layers.Dense(16, activation=activation), layers.Dense(10)])


def with_state() -> keras.Model:
    """Return a net whose forward pass changes moving statistics and a seed."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(16, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(10),
        ]
    )


def unbuilt() -> keras.Model:
    return keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(10)])


def functional() -> keras.Model:
    inputs = keras.Input((64,))
    hidden = layers.Dense(16, activation="tanh")(inputs)
    return keras.Model(inputs, layers.Dense(10)(layers.concatenate([hidden, inputs])))


class Subclassed(keras.Model):
    """Count how often Python calls it: once for each trace."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(16, activation="relu"), layers.Dense(10)
        self.__dict__["python_calls"] = 0

    def call(self, x):
        self.__dict__["python_calls"] += 1
        return self.out(self.hidden(x))


def recurrent() -> keras.Model:
    return keras.Sequential(
        [keras.Input((64,)), layers.Reshape((8, 8)), layers.Masking(0.0), layers.LSTM(6), layers.Dense(10)]
    )


def embedding() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Rescaling(16.0),
            layers.Embedding(20, 4),
            layers.GlobalAveragePooling1D(),
            layers.Dense(10),
        ]
    )


def attention() -> keras.Model:
    inputs = keras.Input((64,))
    rows = layers.Reshape((8, 8))(inputs)
    rows = layers.LayerNormalization()(rows + layers.MultiHeadAttention(2, 4)(rows, rows))
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(rows)))


def shared() -> keras.Model:
    inputs = keras.Input((64,))
    twice = layers.Dense(64, activation="tanh", name="shared")
    return keras.Model(inputs, layers.Dense(10)(twice(twice(inputs))))


def frozen() -> keras.Model:
    model = functional()
    model.layers[1].trainable = False
    return model


NETS = {
    "two_dense": two_dense,
    "with_state": with_state,
    "unbuilt": unbuilt,
    "functional": functional,
    "subclassed": Subclassed,
    "recurrent": recurrent,
    "embedding": embedding,
    "attention": attention,
    "shared": shared,
    "frozen": frozen,
}


def seeded(make, optimizer: Any = None, **how: Any) -> keras.Model:
    """Return a compiled net that is the same each time."""
    keras.utils.set_random_seed(1)
    return compiled(make(), optimizer, **how)


def state(model: keras.Model) -> dict[str, np.ndarray]:
    """Return everything that a training changes, by path: weights, statistics, seeds, metrics, optimizer."""
    variables = [*model.variables, *model.optimizer.variables]
    return {f"{i}:{v.path}": keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}


def assert_same_state(one: keras.Model, other: keras.Model) -> None:
    mine, theirs = list(state(one).items()), list(state(other).values())
    assert len(mine) == len(theirs)
    for (name, value), expected in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(value, expected, err_msg=name)


def all_finite(model: keras.Model) -> bool:
    return all(np.isfinite(w).all() for w in model.get_weights())
