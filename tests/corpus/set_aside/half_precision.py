"""Programs that fail by what float16 cannot hold, and what mends them."""

from __future__ import annotations

import keras
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class ExpAttention(layers.Layer):
    """Pooling by exp of a score, written by hand."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.score = layers.Dense(1, dtype=self.dtype_policy)

    def call(self, hidden):
        weights = ops.exp(self.score(hidden))
        return ops.sum(weights * hidden, axis=1) / ops.sum(weights, axis=1)


def exp_in_float16(dtype: str | None = None) -> Program:
    """Pooling by the exponential of scores, in float16."""
    keras.utils.set_random_seed(358)
    x, y = data.mnist(1000)
    inputs = keras.Input((28, 28))
    hidden = layers.Dense(64, activation="relu")(layers.Rescaling(24 / 255, dtype="float32")(inputs))
    hidden = ExpAttention(dtype=dtype)(hidden) if dtype else ExpAttention()(hidden)
    hidden = layers.LayerNormalization()(hidden)
    hidden = layers.Dense(64, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(10, dtype="float32")(hidden))
    model.compile(optimizers.Adam(0.01), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8)


class HandNorm(layers.Layer):
    """LayerNorm by hand: the sum of squares over a wide layer, then a division."""

    def call(self, hidden):
        squares = ops.sum(ops.square(hidden), axis=-1, keepdims=True)
        return hidden / ops.sqrt(squares / hidden.shape[-1] + 1e-3)


def hand_norm(dtype: str = "mixed_float16") -> Program:
    """A sum of squares over 512 wide units, in float16."""
    keras.utils.set_random_seed(359)
    x, y = data.digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(512, activation="relu")(inputs)
    hidden = HandNorm(dtype=dtype)(hidden)
    hidden = layers.Dense(64, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(10, dtype="float32")(hidden))
    model.compile(optimizers.Adam(0.003), LOGITS, metrics=["accuracy"])
    return Program(model, x * 16, y, batch_size=32, epochs=6)


CASES = (
    failing(
        "exp_attention_in_float16",
        exp_in_float16,
        "tensorflow/models issue 10426; keras issue 16552",
        "float16_overflow",
        ("unsafe_loss",),
        needs="mixed_float16",
        dtype="float32",
    ),
    failing(
        "layer_norm_by_hand_in_float16",
        hand_norm,
        "tensorflow/models issue 10426, 'Numeric instabilities in LayerNorm when training with mixed_precision'",
        "float16_overflow",
        ("unscaled_inputs",),
        needs="mixed_float16",
        dtype="float32",
    ),
)
