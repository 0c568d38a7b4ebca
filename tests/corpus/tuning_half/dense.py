"""Dense nets that fail by their depth, their weights or their normalization, and what mends them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import keras
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _digits() -> tuple:
    x, y = data.digits()
    return x[:1400] / 16, y[:1400], (x[1400:] / 16, y[1400:])


class Linear(layers.Layer):
    """A dense layer written by hand, as tutorials of the first TensorFlow did it."""

    def __init__(self, units: int, stddev: float):
        super().__init__()
        self.units, self.stddev = units, stddev

    def build(self, shape):
        normal = initializers.RandomNormal(stddev=self.stddev)
        self.kernel = self.add_weight(shape=(shape[-1], self.units), initializer=normal)
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros")

    def call(self, inputs):
        return inputs @ self.kernel + self.bias


class HandMade(keras.Model):
    """Six layers of 128 ReLUs and the logits."""

    def __init__(self, stddev: float):
        super().__init__()
        self.hidden = [Linear(128, stddev) for _ in range(6)]
        self.logits = Linear(10, stddev)

    def call(self, inputs):
        for layer in self.hidden:
            inputs = ops.relu(layer(inputs))
        return self.logits(inputs)


def hand_made(stddev: float = 1.0) -> Program:
    """Weights straight from the standard normal distribution."""
    keras.utils.set_random_seed(21)
    x, y, validation = _digits()
    model = HandMade(stddev)
    model.compile(optimizers.SGD(0.05), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=64, epochs=10, validation_data=validation)


def deep_autoencoder(scale: float = 4.0) -> Program:
    """A deep autoencoder whose weights have twice He's standard deviation, so that each layer doubles the signal."""
    keras.utils.set_random_seed(22)
    x, _, _ = _digits()
    weights = initializers.VarianceScaling(2 * scale)
    hidden = inputs = keras.Input((64,))
    for width in (96, 64, 48, 32, 24, 16, 24, 32, 48, 64, 96):
        hidden = layers.Dense(width, activation="relu", kernel_initializer=weights)(hidden)
    model = keras.Model(inputs, layers.Dense(64)(hidden))
    model.compile(optimizers.Adam(0.003), "mse")
    return Program(model, x, x, epochs=15)


def plain_stack(skip: bool = False) -> Program:
    """Fifty ReLU layers in a row with He's weights."""
    keras.utils.set_random_seed(23)
    x, y, validation = _digits()
    hidden = inputs = keras.Input((64,))
    for _ in range(50):
        branch = layers.Dense(64, activation="relu", kernel_initializer="he_normal")(hidden)
        if skip:
            branch = layers.Dense(64, kernel_initializer="zeros")(branch)
            branch = layers.Add()([hidden, branch])
        hidden = branch
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(optimizers.SGD(0.01), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8, validation_data=validation)


def batch_norm_stack(skip: bool = False) -> Program:
    """Forty plain layers of BatchNorm, ReLU and weights: the gradient grows by a fifth at each."""
    keras.utils.set_random_seed(28)
    x, y, validation = _digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(32, use_bias=False)(inputs)
    for _ in range(40):
        branch = layers.ReLU()(layers.BatchNormalization()(hidden))
        branch = layers.Dense(32, use_bias=False, kernel_initializer="he_normal")(branch)
        hidden = layers.Add()([hidden, branch]) if skip else branch
    model = keras.Model(inputs, layers.Dense(10)(layers.BatchNormalization()(hidden)))
    model.compile(optimizers.SGD(0.05), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=64, epochs=6, validation_data=validation)


def bare_residual(normalized: bool = False) -> Program:
    """Thirty residual blocks with He's weights and nothing that keeps their sum in bounds."""
    keras.utils.set_random_seed(29)
    x, y, validation = _digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(64)(inputs)
    for _ in range(30):
        branch = layers.LayerNormalization()(hidden) if normalized else hidden
        branch = layers.Dense(64, activation="relu", kernel_initializer="he_normal")(branch)
        branch = layers.Dense(64, kernel_initializer="he_normal")(branch)
        hidden = layers.Add()([hidden, branch])
    hidden = layers.LayerNormalization()(hidden) if normalized else hidden
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(optimizers.SGD(0.05), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=64, epochs=6, validation_data=validation)


def _case(name: str, build: Callable[..., Program], source: str, cause: str, accepted: tuple = (), **mended) -> Case:
    return Case(name, build, source, cause, accepted, partial(build, **mended))


CASES = (
    _case(
        "weights_of_the_standard_normal",
        hand_made,
        "aymericdamien/TensorFlow-Examples, multilayer perceptron: tf.Variable(tf.random_normal(...))",
        "exploding_initialization",
        stddev=0.1,
    ),
    _case(
        "autoencoder_with_doubled_weights",
        deep_autoencoder,
        "He et al., 1502.01852: the signal grows with the product of the layers' gains; fchollet's deep autoencoder",
        "exploding_initialization",
        scale=1.0,
    ),
    _case(
        "fifty_plain_layers",
        plain_stack,
        "Srivastava, Greff, Schmidhuber, 1505.00387: plain nets of fifty layers and more do not train",
        "plain_depth",
        skip=True,
    ),
    _case(
        "forty_plain_layers_of_batch_norm",
        batch_norm_stack,
        "Yang et al., 1902.08129: BatchNorm makes gradients of plain nets explode",
        "exploding_batch_normalization",
        ("plain_depth",),
        skip=True,
    ),
    _case(
        "thirty_bare_residual_blocks",
        bare_residual,
        "Zhang, Dauphin, Ma, 1901.09321: residual nets without normalization explode under standard weights",
        "missing_normalization",
        ("exploding_initialization",),
        normalized=True,
    ),
)
