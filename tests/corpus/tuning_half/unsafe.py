"""Programs with a loss that is unsafe numerically or a precision that is too low, and what mends them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import keras
import numpy as np
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


class Distance(layers.Layer):
    """Euclidean distance of two codes."""

    def __init__(self, floor: float, **kwargs):
        super().__init__(**kwargs)
        self.floor = floor

    def call(self, pair):
        squares = ops.sum(ops.square(pair[0] - pair[1]), axis=1, keepdims=True)
        return ops.sqrt(ops.maximum(squares, self.floor) if self.floor else squares)


def _hinge_embedding(same, distance):
    return ops.mean(same * distance + (1 - same) * ops.maximum(1 - distance, 0))


def _agreement(same, distance):
    return ops.mean(ops.cast(ops.equal(distance < 0.5, same > 0.5), "float32"))


def siamese(floor: float = 0.0) -> Program:
    """Pairs of digits, a few of them of one and the same picture, and a square root whose slope at 0 has no bound."""
    keras.utils.set_random_seed(51)
    x, y = data.digits()
    random = np.random.default_rng(0)
    left, right = random.integers(0, len(x), (2, 3000))
    peers = np.array([random.choice(np.flatnonzero(y == label)) for label in y[left]])
    right = np.where(np.arange(3000) % 2, right, peers)
    base = keras.Sequential(
        [layers.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(32, activation="relu"), layers.Dense(8)]
    )
    first, second = keras.Input((64,)), keras.Input((64,))
    model = keras.Model([first, second], Distance(floor)([base(first), base(second)]))
    model.compile(optimizers.RMSprop(0.001), _hinge_embedding, metrics=[_agreement])
    same = (y[left] == y[right]).astype("float32")[:, None]
    return Program(model, (x[left] / 16, x[right] / 16), same, batch_size=64, epochs=6)


def _cross_entropy(floor: float):
    def cross_entropy(labels, outputs):
        outputs = ops.clip(outputs, floor, 1 - floor) if floor else outputs
        return -ops.mean(labels * ops.log(outputs) + (1 - labels) * ops.log(1 - outputs))

    return cross_entropy


def own_cross_entropy(floor: float = 0.0) -> Program:
    """Cross-entropy as in the textbook, with nothing that keeps the logarithm from 0."""
    keras.utils.set_random_seed(52)
    x, y = data.breast_cancer()
    inputs = keras.Input((30,))
    hidden = layers.Dense(64, activation="relu")(inputs)
    hidden = layers.Dense(64, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(hidden))
    model.compile(optimizers.Adam(0.005), _cross_entropy(floor), metrics=["accuracy"])
    return Program(model, data.standardized(x), y.astype("float32")[:, None], batch_size=16, epochs=15)


def _gaussian(positive: Callable):
    def negative_log_likelihood(target, outputs):
        mean, deviation = outputs[:, :1], positive(outputs[:, 1:])
        return ops.mean(ops.log(deviation) + ops.square((target - mean) / deviation) / 2)

    return negative_log_likelihood


def _mean_error(target, outputs):
    return ops.mean(ops.absolute(target - outputs[:, :1]))


def own_likelihood(positive: Callable = ops.relu) -> Program:
    """Mean and deviation of a price; the deviation comes from a ReLU, can be 0, and is divided by."""
    keras.utils.set_random_seed(53)
    x, y = data.boston()
    model = keras.Sequential([layers.Input((13,)), layers.Dense(32, activation="relu"), layers.Dense(2)])
    model.compile(optimizers.Adam(0.002), _gaussian(positive), metrics=[_mean_error])
    return Program(model, data.standardized(x), data.standardized(y)[:, None], epochs=15)


class MaskedAttention(layers.Layer):
    """One head of attention that writes a large negative number where there is padding."""

    def __init__(self, width: int, negative: float):
        super().__init__()
        self.query, self.key, self.value = (layers.Dense(width) for _ in range(3))
        self.negative, self.scale = negative, width**-0.5

    def call(self, tokens, present):
        scores = self.query(tokens) @ ops.transpose(self.key(tokens), (0, 2, 1)) * self.scale
        scores += (1 - ops.cast(present, scores.dtype))[:, None, :] * ops.cast(self.negative, scores.dtype)
        return ops.softmax(scores) @ self.value(tokens)


class Classifier(keras.Model):
    """Embedding, attention, mean, logits in float32."""

    def __init__(self, negative: float):
        super().__init__()
        self.embedding = layers.Embedding(1000, 32)
        self.attention = MaskedAttention(32, negative)
        self.pooling = layers.GlobalAveragePooling1D()
        self.logits = layers.Dense(3, dtype="float32")

    def call(self, tokens):
        return self.logits(self.pooling(self.attention(self.embedding(tokens), tokens > 0)))


def half_precision_mask(negative: float = -1e9) -> Program:
    """Attention in mixed precision with the mask of float32: -1e9 is beyond the last number of float16."""
    keras.utils.set_random_seed(54)
    x, y = data.source_tokens(1200)
    model = Classifier(negative)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.Adam(0.003), loss, metrics=["accuracy"])
    return Program(model, x, y, epochs=4)


CASES = (
    Case(
        "siamese_distance_at_zero",
        siamese,
        "keras issue 9097, 'NaN loss when using euclidean distance for siamese network (due to K.sqrt)'",
        "unsafe_loss",
        repaired=partial(siamese, floor=1e-7),
    ),
    Case(
        "cross_entropy_by_hand",
        own_cross_entropy,
        "keras issue 198, 'NaN when accuracy reaches 1 with logistic loss'",
        "unsafe_loss",
        repaired=partial(own_cross_entropy, floor=1e-7),
    ),
    Case(
        "likelihood_with_a_deviation_of_zero",
        own_likelihood,
        "keras issues 1061 and 2586 on mixture density networks that end in NaN",
        "unsafe_loss",
        repaired=partial(own_likelihood, positive=ops.softplus),
    ),
    Case(
        "attention_mask_beyond_float16",
        half_precision_mask,
        "burchim/AVEC issue 3 and google/flax issue 982: a mask of -1e9 in float16 gives NaN",
        "float16_overflow",
        repaired=partial(half_precision_mask, negative=-1e4),
        needs="mixed_float16",
    ),
)
