"""Programs on sequences and text that fail, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear_memory(gain: float = 1.25) -> Program:
    """A linear recurrent layer whose weights stretch what they remember."""
    keras.utils.set_random_seed(331)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1200, 60, 3)).astype("float32")
    decay = 0.9 ** np.arange(60)[::-1]
    y = data.standardized((x[..., 0] * decay).sum(1) - (x[..., 2] * decay).sum(1))
    model = keras.Sequential(
        [
            layers.Input((60, 3)),
            layers.SimpleRNN(32, activation="linear", recurrent_initializer=initializers.Orthogonal(gain)),
            layers.Dense(1),
        ]
    )
    model.compile(optimizers.SGD(0.01), "mse")
    return Program(model, x, y, batch_size=32, epochs=8)


class AddingCell(layers.Layer):
    """A recurrent cell that adds to its state what it makes of it."""

    def __init__(self, units: int, keep: float, add: float, **kwargs):
        super().__init__(**kwargs)
        self.units, self.state_size, self.keep, self.add = units, units, keep, add

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], self.units), initializer="glorot_uniform", name="w")
        self.u = self.add_weight(shape=(self.units, self.units), initializer="he_normal", name="u")
        self.b = self.add_weight(shape=(self.units,), initializer="zeros", name="b")

    def call(self, inputs, states):
        state = states[0]
        state = self.keep * state + self.add * ops.relu(inputs @ self.w + state @ self.u + self.b)
        return state, [state]


def adding_cell(keep: float = 1.0, add: float = 1.0) -> Program:
    """Pairs of pixels by a cell whose state only ever grows."""
    keras.utils.set_random_seed(332)
    x, y = data.digits()
    inputs = keras.Input((32, 2))
    hidden = layers.RNN(AddingCell(48, keep, add))(inputs)
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(optimizers.Adam(0.003), LOGITS, metrics=["accuracy"])
    return Program(model, x.reshape(-1, 32, 2) / 16, y, batch_size=32, epochs=8)


class SkipGram(keras.Model):
    """Scores of pairs of words by the dot product of two tables."""

    def __init__(self, words: int, width: int, scale: float):
        super().__init__()
        init = initializers.RandomNormal(stddev=scale)
        self.center, self.context = (layers.Embedding(words, width, embeddings_initializer=init) for _ in range(2))

    def call(self, pairs):
        return ops.sum(self.center(pairs[:, 0]) * self.context(pairs[:, 1]), axis=-1, keepdims=True)


def skip_gram(scale: float = 10.0) -> Program:
    """Neighbouring words by vectors with a standard deviation of ten."""
    keras.utils.set_random_seed(333)
    tokens, _ = data.source_tokens(400, vocabulary=300)
    rng = np.random.default_rng(3)
    real = np.stack([tokens[:, 5:-5].ravel(), tokens[:, 6:-4].ravel()], 1)
    real = real[(real > 0).all(1)][:4000]
    fake = np.stack([real[:, 0], rng.integers(1, 300, len(real))], 1)
    x = np.concatenate([real, fake])
    y = np.repeat([1.0, 0.0], len(real)).astype("float32")
    order = rng.permutation(len(x))
    model = SkipGram(300, 100, scale)
    model.compile(
        optimizers.Adam(0.01),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
    )
    return Program(model, x[order], y[order][:, None], batch_size=64, epochs=5)


def times_root_of_width(stddev: float = 4.0) -> Program:
    """Embeddings of deviation four, times the root of their width, as the transformer's paper has it for small ones."""
    keras.utils.set_random_seed(334)
    x, y = data.source_tokens(1200)
    tokens = keras.Input((40,), dtype="int32")
    hidden = layers.Embedding(1000, 64, embeddings_initializer=initializers.RandomNormal(stddev=stddev))(tokens)
    hidden = layers.Rescaling(8.0)(hidden)
    attended = layers.MultiHeadAttention(4, 16)(hidden, hidden)
    hidden = layers.Add()([hidden, attended])
    hidden = layers.Dense(64, activation="relu")(layers.GlobalAveragePooling1D()(hidden))
    model = keras.Model(tokens, layers.Dense(3)(hidden))
    model.compile(optimizers.SGD(0.1, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x[:1000], y[:1000], batch_size=32, epochs=10, validation_data=(x[1000:], y[1000:]))


def attention_by_fast_adam(rate: float = 0.3) -> Program:
    """A block of attention by Adam at a rate of 0.3."""
    keras.utils.set_random_seed(335)
    x, y = data.digits()
    inputs = keras.Input((8, 8))
    hidden = layers.Dense(32)(inputs)
    normal = layers.LayerNormalization()(hidden)
    hidden = hidden + layers.MultiHeadAttention(2, 16)(normal, normal)
    normal = layers.LayerNormalization()(hidden)
    hidden = hidden + layers.Dense(32)(layers.Dense(64, activation="relu")(normal))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(hidden)))
    model.compile(optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x.reshape(-1, 8, 8) / 16, y, batch_size=64, epochs=6)


def ten_shares_in_cents(scaled: bool = False) -> Program:
    """Does the third share end above its mean? From the cents of ten, by a convolution and a dense layer."""
    keras.utils.set_random_seed(336)
    prices = data.share_prices()
    prices = data.standardized(np.log(prices)) if scaled else prices * 100
    length = 12
    x = np.stack([prices[i : i + length] for i in range(len(prices) - length)])
    y = (x[:, -1, 2] > x.mean(axis=1)[:, 2]).astype("float32")
    inputs = keras.Input((length, 10))
    hidden = layers.Conv1D(16, 3, activation="relu")(inputs)
    hidden = layers.Dense(16, activation="relu")(layers.Flatten()(hidden))
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(hidden))
    model.compile(optimizers.SGD(0.05, momentum=0.9), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x.astype("float32"), y, batch_size=16, epochs=25)


def price_in_the_smallest_unit(unit: float = 1e6) -> Program:
    """Tomorrow's price in the smallest unit of a currency."""
    keras.utils.set_random_seed(337)
    series = data.standardized(np.log(data.daily_prices()))
    x, y = data.windows(series, 10)
    y = y * 0.3 * unit + (2.5 * unit if unit > 1 else 0)
    inputs = keras.Input((10, 1))
    hidden = layers.LSTM(24)(inputs)
    hidden = layers.Dense(24, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.RMSprop(0.002), "mae")
    return Program(model, x, y.astype("float32"), batch_size=32, epochs=8)


def spike_in_the_series(height: float = 1e8) -> Program:
    """One value of a series that a meter got wrong."""
    keras.utils.set_random_seed(338)
    rng = np.random.default_rng(4)
    times = np.arange(1400)
    series = (np.sin(times / 9) + 0.5 * np.sin(times / 23) + 0.1 * rng.normal(size=1400)).astype("float32")
    x, y = data.windows(series, 24)
    if height:
        x[612, 11, 0] = height
    model = keras.Sequential(
        [
            layers.Input((24, 1)),
            layers.Conv1D(16, 3, activation="relu"),
            layers.Conv1D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    model.compile(optimizers.SGD(0.02, momentum=0.9), "mse")
    return Program(model, x, y, batch_size=32, epochs=5)


CASES = (
    failing(
        "linear_memory_that_stretches",
        linear_memory,
        "Pascanu et al., 1211.5063, section 2.1; Arjovsky et al., 1511.06464",
        "recurrent_gain",
        ("exploding_initialization",),
        gain=0.95,
    ),
    failing(
        "cell_that_adds",
        adding_cell,
        "Pascanu et al., 1211.5063; Kag et al., 1908.08574, on residual recurrence",
        "recurrent_gain",
        ("unbounded_activation", "exploding_initialization"),
        keep=0.9,
        add=0.1,
    ),
    failing(
        "skip_gram_of_deviation_ten",
        skip_gram,
        "udacity/deep-learning-v2-pytorch issue 199; mp2893/med2vec issue 22",
        "embedding_spike",
        ("exploding_initialization",),
        scale=0.05,
    ),
    failing(
        "embeddings_times_root_of_width",
        times_root_of_width,
        "Vaswani et al., 1706.03762, section 3.4; kimiyoung/transformer-xl issue 24",
        "embedding_spike",
        ("exploding_initialization",),
        stddev=0.02,
    ),
    failing(
        "attention_with_adam_at_three_tenths",
        attention_by_fast_adam,
        "Xiong et al., 2002.04745; huggingface forum on rates that are too high",
        "learning_rate_too_high",
        rate=0.002,
    ),
    failing(
        "ten_shares_in_cents",
        ten_shares_in_cents,
        "Stack Overflow on LSTMs over raw share prices",
        "unscaled_inputs",
        ("dead_units",),
        scaled=True,
    ),
    failing(
        "price_in_the_smallest_unit",
        price_in_the_smallest_unit,
        "Stack Overflow on predicting prices in wons with Keras; keras issue 2134",
        "unscaled_targets",
        unit=1.0,
    ),
    failing(
        "one_spike_in_the_series",
        spike_in_the_series,
        "Stack Overflow 33962226: a corrupt sample; PaLM, 2204.02311, on skipping batches",
        "corrupt_batch",
        ("unscaled_inputs",),
        height=0,
    ),
)
