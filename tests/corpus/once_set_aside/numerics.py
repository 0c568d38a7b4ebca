"""Range and normalization: float16, activations that grow without bound, batch normalization where it explodes."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from keras import layers, ops

from tests.corpus import data
from tests.corpus.case import Case, Program


def normalized_plain(broken: bool) -> Program:
    """Forty-eight dense layers, each with batch normalization and ReLU and none with a skip; the twin has eight."""
    keras.utils.set_random_seed(81)
    x, y = data.digits()
    x = x / 16.0
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(48 if broken else 8):
        model.add(layers.Dense(64, kernel_initializer="he_normal", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.Activation("relu"))
    model.add(layers.Dense(10, "softmax"))
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 64, 4)


def exponential_price(broken: bool) -> Program:
    """An exponential as last activation, so that a price is always positive, with a squared error."""
    keras.utils.set_random_seed(82)
    x, y = data.boston()
    x = data.standardized(x)
    y = y.astype("float32")
    model = keras.Sequential([keras.Input((13,)), layers.Dense(32, "relu"), layers.Dense(32, "relu")])
    model.add(layers.Dense(1, "exponential" if broken else "softplus"))
    model.compile(keras.optimizers.SGD(0.002), "mse")
    return Program(model, x, y, 32, 12)


def square_activation(broken: bool) -> Program:
    """Squares in place of ReLU, since encrypted data allow sums and products only, in five layers instead of two."""
    keras.utils.set_random_seed(83)
    x, y = data.mnist(1500)
    x = data.standardized(x.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 1)).reshape(-1, 14, 14, 1)
    activation = ops.square if broken else "relu"
    inputs = keras.Input((14, 14, 1))
    hidden = layers.Conv2D(12, 5, strides=2, activation=activation, kernel_initializer="he_normal")(inputs)
    hidden = layers.Conv2D(24, 3, activation=activation, kernel_initializer="he_normal")(hidden)
    hidden = layers.Flatten()(hidden)
    for width in (100, 100, 50):
        hidden = layers.Dense(width, activation=activation, kernel_initializer="he_normal")(hidden)
    outputs = layers.Dense(10, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 5)


class MaskedAttention(layers.Layer):
    """Scaled dot-product attention that subtracts a large number where there is padding."""

    def __init__(self, width: int, minus: float):
        super().__init__()
        self.width, self.minus = width, minus
        self.query, self.key, self.value = (layers.Dense(width) for _ in range(3))

    def call(self, x, padding):
        scores = ops.matmul(self.query(x), ops.transpose(self.key(x), (0, 2, 1))) / float(np.sqrt(self.width))
        masked = scores - ops.cast(padding[:, None, :], scores.dtype) * ops.cast(self.minus, scores.dtype)
        return ops.matmul(ops.softmax(masked), self.value(x))


def mask_of_a_billion(broken: bool) -> Program:
    """The customary 1e9 of an attention mask is infinite in float16, and 0 times infinity is not a number."""
    keras.utils.set_random_seed(84)
    tokens, y = data.source_tokens(1000, 500)
    length = np.random.default_rng(84).integers(10, 41, len(tokens))
    padding = np.arange(40)[None, :] >= length[:, None]
    tokens = np.where(padding, 0, tokens)
    inputs = keras.Input((40,), dtype="int32")
    mask = keras.Input((40,), dtype="float32")
    hidden = layers.Embedding(500, 32)(inputs)
    hidden = layers.Add()([hidden, MaskedAttention(32, 1e9 if broken else 1e4)(hidden, mask)])
    hidden = layers.Dense(32, "relu")(layers.GlobalMaxPooling1D()(hidden))
    outputs = layers.Dense(3, "softmax", dtype="float32")(hidden)
    model = keras.Model([inputs, mask], outputs)
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, (tokens.astype("int32"), padding.astype("float32")), y, 32, 5)


def half_precision_norm(broken: bool) -> Program:
    """Images of 0 to 255 are divided by their norm first, but the sum of squares is beyond what float16 can hold."""
    keras.utils.set_random_seed(85)
    x, y = data.mnist(1000)
    x = x.reshape(-1, 784).astype("float32")
    inputs = keras.Input((784,))
    hidden = layers.UnitNormalization(dtype=None if broken else "float32")(inputs)
    hidden = layers.Dense(64, "relu")(hidden)
    hidden = layers.Dense(32, "relu")(hidden)
    outputs = layers.Dense(10, "softmax", dtype="float32")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 50, 5)


def half_precision_adam(broken: bool) -> Program:
    """Everything in float16: Adam's epsilon of 1e-8 is 0 there, and so are the squares of small gradients."""
    keras.utils.set_random_seed(86)
    x, y = data.wine()
    x = data.standardized(x)
    model = keras.Sequential([keras.Input((13,)), layers.Dense(32, "relu"), layers.Dense(3, "softmax")])
    optimizer = keras.optimizers.Adam(0.003, epsilon=1e-8 if broken else 1e-4)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 16, 15)


def _case(build, cause, source, accepted=(), needs="") -> Case:
    return Case(build.__name__, partial(build, True), source, cause, accepted, partial(build, False), needs)


CASES = (
    _case(
        normalized_plain,
        "exploding_batch_normalization",
        "Yang et al. 2019, A Mean Field Theory of Batch Normalization",
        ("plain_depth",),
    ),
    _case(
        exponential_price,
        "unbounded_activation",
        "Keras documentation of the exponential activation; Stack Overflow: inf loss with K.exp as last activation",
        ("learning_rate_too_high", "unscaled_targets"),
    ),
    _case(
        square_activation,
        "unbounded_activation",
        "Gilad-Bachrach et al. 2016, CryptoNets; Chabanne et al. 2017",
        ("exploding_initialization",),
    ),
    _case(
        mask_of_a_billion,
        "float16_overflow",
        "huggingface/transformers and tensorflow/models: masks of -1e9 under mixed precision",
        (),
        "mixed_float16",
    ),
    _case(
        half_precision_norm,
        "float16_overflow",
        "TensorFlow guide, Mixed precision: overflow; keras issue 16552",
        ("unscaled_inputs",),
        "mixed_float16",
    ),
    _case(half_precision_adam, "optimizer_state", "keras issues 11860, 9582, 11832", ("float16_overflow",), "float16"),
)
