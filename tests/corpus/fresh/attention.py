"""Attention: masks, logits that grow, the place of the normalization, the size of the embedding."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.fresh.common import compiled


class Attention(layers.Layer):
    """Self-attention of one head with a mask of ones and zeros, its logits and mask written by hand."""

    def __init__(
        self,
        width: int,
        masked: float = -1e9,
        logit_scale: float | None = None,
        normalize: bool = False,
        gain: float = 1.0,
    ):
        super().__init__()
        self.masked, self.normalize = masked, normalize
        self.logit_scale = width**-0.5 if logit_scale is None else logit_scale
        starts = [keras.initializers.VarianceScaling(gain, "fan_avg", "uniform", seed=seed) for seed in (5, 6)]
        self.query, self.key = (layers.Dense(width, kernel_initializer=start, use_bias=False) for start in starts)
        self.value, self.out = layers.Dense(width), layers.Dense(width)
        self.query_norm, self.key_norm = layers.LayerNormalization(), layers.LayerNormalization()

    def call(self, x, mask=None):
        query, key = self.query(x), self.key(x)
        if self.normalize:
            query, key = self.query_norm(query), self.key_norm(key)
        logits = ops.matmul(query, ops.transpose(key, (0, 2, 1))) * self.logit_scale
        if mask is not None:
            penalty = ops.cast((1.0 - ops.cast(mask, "float32")) * self.masked, logits.dtype)
            logits = logits + penalty[:, None, :]
        return self.out(ops.matmul(ops.softmax(logits), self.value(x)))


class InfiniteMask(Attention):
    """The same, but keys that do not count get the logit minus infinity."""

    def call(self, x, mask=None):
        logits = ops.matmul(self.query(x), ops.transpose(self.key(x), (0, 2, 1))) * self.logit_scale
        logits = ops.where(ops.cast(mask, "bool")[:, None, :], logits, self.masked)
        return self.out(ops.matmul(ops.softmax(logits), self.value(x)))


def padded_tokens(empty: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens, masks and labels; lengths vary from 10 to 40, and a few rows hold padding alone."""
    tokens, labels = data.source_tokens(900, 500)
    lengths = np.random.default_rng(3).integers(10, 41, len(tokens))
    lengths[:: len(tokens) // empty if empty else len(tokens) + 1] = 0
    if not empty:
        lengths[0] = 20
    mask = (np.arange(40) < lengths[:, None]).astype("float32")
    return np.where(mask > 0, tokens, 0), mask, labels


def masked_classifier(attention: layers.Layer, empty: int) -> Program:
    tokens, mask, labels = padded_tokens(empty)
    words, counted = keras.Input((40,), dtype="int32"), keras.Input((40,))
    x = layers.Embedding(500, 32)(words)
    x = layers.LayerNormalization()(x + attention(x, mask=counted))
    outputs = layers.Dense(3, "softmax", dtype="float32")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model([words, counted], outputs)
    compiled(model, keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, [tokens, mask], labels, 32, 6)


def empty_sentences(masked: float = -np.inf) -> Program:
    keras.utils.set_random_seed(21)
    return masked_classifier(InfiniteMask(32, masked), empty=12)


class HalfMask(Attention):
    """The penalty is computed in the dtype of the logits."""

    def call(self, x, mask=None):
        logits = ops.matmul(self.query(x), ops.transpose(self.key(x), (0, 2, 1))) * self.logit_scale
        penalty = (1.0 - ops.cast(mask, logits.dtype)) * ops.cast(self.masked, logits.dtype)
        return self.out(ops.matmul(ops.softmax(logits + penalty[:, None, :]), self.value(x)))


def half_precision_mask(masked: float = -1e9) -> Program:
    keras.utils.set_random_seed(22)
    return masked_classifier(HalfMask(32, masked), empty=0)


class Block(layers.Layer):
    """A block of a transformer, normalized after each sum or before each part."""

    def __init__(self, width: int, after: bool, heads: int = 2):
        super().__init__()
        self.after = after
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.feed = keras.Sequential([layers.Dense(2 * width, "relu"), layers.Dense(width)])
        self.first, self.second = layers.LayerNormalization(), layers.LayerNormalization()

    def call(self, x):
        if self.after:
            x = self.first(x + self.attention(x, x))
            return self.second(x + self.feed(x))
        normalized = self.first(x)
        x = x + self.attention(normalized, normalized)
        return x + self.feed(self.second(x))


@keras.saving.register_keras_serializable(package="corpus")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rise linearly to the peak, then fall with the root of the step."""

    def __init__(self, peak: float, steps: float):
        self.peak, self.steps = peak, steps

    def __call__(self, step):
        step = ops.cast(step, "float32") + 1.0
        return self.peak * ops.minimum(step / self.steps, ops.sqrt(self.steps / step))

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps}


def row_tokens() -> tuple[np.ndarray, np.ndarray]:
    x, y = data.digits()
    return x.reshape(-1, 8, 8)[:1000] / 16, y[:1000]


def transformer(
    after: bool,
    depth: int,
    rate: float | keras.optimizers.schedules.LearningRateSchedule,
    width: int = 32,
    epochs: int = 8,
) -> Program:
    x, y = row_tokens()
    inputs = keras.Input((8, 8))
    hidden = layers.Dense(width)(inputs)
    hidden = hidden + layers.Embedding(8, width)(ops.arange(8))
    for _ in range(depth):
        hidden = Block(width, after)(hidden)
    if not after:
        hidden = layers.LayerNormalization()(hidden)
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(hidden)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.Adam(rate), loss, ["accuracy"])
    return Program(model, x, y, 32, epochs)


def normalized_after_each_sum(warm: bool = False) -> Program:
    keras.utils.set_random_seed(23)
    return transformer(True, 4, WarmUp(2e-3, 60.0) if warm else 2e-2, epochs=6)


class LogitBlock(layers.Layer):
    """Attention by hand and a feed-forward part, each added to what it was given."""

    def __init__(self, width: int, **options: object):
        super().__init__()
        self.attention = Attention(width, **options)
        self.feed = keras.Sequential([layers.Dense(2 * width, "relu"), layers.Dense(width)])
        self.first, self.second = layers.LayerNormalization(), layers.LayerNormalization()

    def call(self, x):
        x = x + self.attention(self.first(x))
        return x + self.feed(self.second(x))


def comparison_of_pairs(number: int = 2000, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return 12 vectors of 16 numbers, the first a question, and the class of the one that answers it."""
    random = np.random.default_rng(seed)
    keys = random.normal(0, 1, (number, 12, 8))
    classes = random.integers(0, 4, (number, 12))
    chosen = random.integers(1, 12, number)
    keys[:, 0] = keys[np.arange(number), chosen]
    shown = np.eye(5)[np.where(np.arange(12) == 0, 4, classes)]
    padding = np.zeros((number, 12, 3))
    return np.concatenate([keys, shown, padding], axis=2).astype("float32"), classes[np.arange(number), chosen]


def sharp_attention(gain: float = 3e3, normalize: bool = False) -> Program:
    keras.utils.set_random_seed(24)
    x, y = comparison_of_pairs(3000)
    inputs = keras.Input((12, 16))
    hidden = LogitBlock(16, gain=gain, normalize=normalize)(inputs)
    model = keras.Model(inputs, layers.Dense(4)(hidden[:, 0]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.Adam(5e-3), loss, ["accuracy"])
    return Program(model, x[:2400], y[:2400], 32, 20, (x[2400:], y[2400:]))


def pretrained_vectors_of_wide_range(deviation: float = 50.0) -> Program:
    keras.utils.set_random_seed(25)
    tokens, labels = data.source_tokens(1200, 500)
    start = keras.initializers.RandomNormal(0.0, deviation, seed=2)
    model = keras.Sequential(
        [
            keras.Input((40,)),
            layers.Embedding(500, 48, embeddings_initializer=start),
            layers.LSTM(24),
            layers.Dense(3, "softmax"),
        ]
    )
    compiled(model, keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, tokens[:1000], labels[:1000], 32, 6, (tokens[1000:], labels[1000:]))


CASES = (
    failing(
        "empty_sentences",
        empty_sentences,
        "GitHub, pytorch/pytorch issue 41508, robertknight/rten pull request 1321: rows in which every key is masked",
        "unsafe_arithmetic",
        ("unsafe_loss",),
        masked=-1e9,
    ),
    failing(
        "half_precision_mask",
        half_precision_mask,
        "GitHub, NVIDIA/apex issue 93, google/flax issue 982: masks in half precision",
        "float16_overflow",
        ("unsafe_arithmetic",),
        needs="mixed_float16",
        masked=-1e4,
    ),
    failing(
        "normalized_after_each_sum",
        normalized_after_each_sum,
        "Paper: Xiong et al. 2020, On layer normalization in the transformer architecture",
        "learning_rate_too_high",
        ("missing_warmup",),
        warm=True,
    ),
    failing(
        "sharp_attention",
        sharp_attention,
        "Papers: Zhai et al. 2023, attention entropy collapse; GitHub, karpathy/nanochat issue 362: logits and QK norm",
        "attention_logit_growth",
        ("exploding_initialization", "saturated_units"),
        normalize=True,
    ),
    failing(
        "pretrained_vectors_of_wide_range",
        pretrained_vectors_of_wide_range,
        "GitHub, keras-team/keras issue 10273: why the range of the embedding matters",
        "embedding_spike",
        ("exploding_initialization",),
        deviation=0.15,
    ),
)
