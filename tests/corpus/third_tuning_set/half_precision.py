"""Programs that fail by what float16 cannot hold, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class MaskedAttention(layers.Layer):
    """Attention that adds (1 - mask) * -1e9, as older code does."""

    def __init__(self, hide: float):
        super().__init__()
        self.q, self.k, self.v, self.hide = layers.Dense(24), layers.Dense(24), layers.Dense(24), hide

    def call(self, h, mask):
        scores = ops.matmul(self.q(h), ops.swapaxes(self.k(h), 1, 2)) / 24**0.5
        scores = scores + (1.0 - ops.cast(mask, scores.dtype)[:, None, :]) * self.hide
        return h + ops.matmul(ops.softmax(scores), self.v(h))


def mask_of_a_billion(hide: float = -1e9) -> Program:
    """Padded tokens, hidden by a number that float16 cannot hold."""
    keras.utils.set_random_seed(1209)
    x, y = data.source_tokens(1000)
    x[np.arange(40)[None] >= np.random.default_rng(26).integers(15, 41, 1000)[:, None]] = 0
    inputs = keras.Input((40,), dtype="int32")
    hidden = layers.Embedding(1000, 24)(inputs)
    hidden = MaskedAttention(hide)(hidden, ops.not_equal(inputs, 0))
    hidden = layers.GlobalMaxPooling1D()(hidden)
    model = keras.Model(inputs, layers.Dense(3, dtype="float32")(hidden))
    model.compile(optimizers.Adam(0.005), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=6)


class OwnNorm(layers.Layer):
    """Layer normalization by hand, with an epsilon that float16 rounds to 0."""

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def call(self, x):
        centred = x - ops.mean(x, axis=-1, keepdims=True)
        return centred / ops.sqrt(ops.mean(ops.square(centred), axis=-1, keepdims=True) + self.epsilon)


def epsilon_lost(epsilon: float = 1e-9) -> Program:
    """Rows of digits, some of them all 0, normalized by hand."""
    keras.utils.set_random_seed(1211)
    x, y, _ = data.split_digits()
    inputs = keras.Input((8, 8))
    hidden = OwnNorm(epsilon)(inputs)
    hidden = layers.TimeDistributed(layers.Dense(32, activation="gelu"))(hidden)
    hidden = layers.Dense(48, activation="gelu")(layers.Flatten()(hidden))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax", dtype="float32")(hidden))
    model.compile(optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = x.reshape(-1, 8, 8)
    x[::9, 0] = 0
    return Program(model, x, y, batch_size=32, epochs=6)


CASES = (
    failing(
        "mask_of_a_billion_in_float16",
        mask_of_a_billion,
        "huggingface/transformers issue 382; openai/gpt-2 pull request 122",
        "float16_overflow",
        ("unsafe_loss",),
        needs="mixed_float16",
        hide=-10000.0,
    ),
    failing(
        "epsilon_below_float16",
        epsilon_lost,
        "TensorFlow guide 'Mixed precision' on epsilon; keras issues on 1e-8 in float16",
        "float16_overflow",
        ("unsafe_loss",),
        needs="mixed_float16",
        epsilon=0.001,
    ),
)
