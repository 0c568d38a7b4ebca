"""Recurrent and text programs that fail, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def relu_rnn_on_sines(activation: str = "relu", recurrent: str = "he_normal") -> Program:
    """The frequency of a sine by two recurrent layers of ReLUs over a hundred steps."""
    keras.utils.set_random_seed(31)
    rng = np.random.default_rng(1)
    steps = np.arange(100)
    frequency = rng.uniform(0.05, 0.4, (800, 1))
    x = np.sin(frequency * steps + rng.uniform(0, 6, (800, 1))) + 0.1 * rng.normal(size=(800, 100))
    x = x.astype("float32")[..., None]
    y = data.standardized(frequency[:, 0])
    model = keras.Sequential()
    model.add(layers.Input((100, 1)))
    model.add(layers.SimpleRNN(64, activation=activation, recurrent_initializer=recurrent, return_sequences=True))
    model.add(layers.SimpleRNN(32, activation=activation, recurrent_initializer=recurrent))
    model.add(layers.Dense(1))
    model.compile(optimizers.SGD(0.003, momentum=0.9), "mse")
    return Program(model, x, y, batch_size=32, epochs=6)


def chaotic_tokens(init: str | None = None) -> Program:
    """A recurrent layer whose weights have a standard deviation of one half."""
    keras.utils.set_random_seed(32)
    x, y = data.source_tokens(1500)
    inputs = keras.Input((40,), dtype="int32")
    hidden = layers.Embedding(1000, 32)(inputs)
    hidden = layers.SimpleRNN(64, recurrent_initializer=init or initializers.RandomNormal(stddev=0.5))(hidden)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(hidden))
    model.compile(optimizers.RMSprop(0.001), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1200], y[:1200], batch_size=32, epochs=6, validation_data=(x[1200:], y[1200:]))


class MeanOfVectors(keras.Model):
    """The mean of word vectors, one hidden layer, the logits."""

    def __init__(self, scale: float):
        super().__init__()
        self.table = layers.Embedding(1000, 64, embeddings_initializer=initializers.RandomNormal(stddev=scale))
        self.pool = layers.GlobalAveragePooling1D()
        self.hidden = layers.Dense(64, activation="relu")
        self.out = layers.Dense(3)

    def call(self, tokens):
        return self.out(self.hidden(self.pool(self.table(tokens))))


def wild_vectors(scale: float = 300.0) -> Program:
    """Word vectors with a standard deviation of three hundred."""
    keras.utils.set_random_seed(33)
    x, y = data.source_tokens(1500)
    model = MeanOfVectors(scale)
    model.compile(optimizers.SGD(0.1), LOGITS, metrics=["accuracy"])
    return Program(model, x[:1200], y[:1200], batch_size=16, epochs=20, validation_data=(x[1200:], y[1200:]))


def recommender(scale: float = 1.0) -> Program:
    """Ratings as the dot product of 128-dimensional vectors of users and films."""
    keras.utils.set_random_seed(34)
    rng = np.random.default_rng(2)
    tastes, traits = rng.normal(size=(120, 4)), rng.normal(size=(80, 4))
    pairs = np.stack([rng.integers(0, 120, 6000), rng.integers(0, 80, 6000)], 1)
    ratings = (tastes[pairs[:, 0]] * traits[pairs[:, 1]]).sum(1) / 2 + 0.1 * rng.normal(size=6000)
    init = initializers.RandomNormal(stddev=scale)
    user, item = keras.Input((1,), name="user"), keras.Input((1,), name="item")
    user_vector = layers.Flatten()(layers.Embedding(120, 128, embeddings_initializer=init)(user))
    film_vector = layers.Flatten()(layers.Embedding(80, 128, embeddings_initializer=init)(item))
    model = keras.Model([user, item], layers.Dot(1)([user_vector, film_vector]))
    model.compile(optimizers.SGD(0.5), "mse")
    return Program(model, (pairs[:, :1], pairs[:, 1:]), ratings.astype("float32"), batch_size=64, epochs=25)


def lstm_by_fast_rmsprop(rate: float = 0.5) -> Program:
    """The next character by an LSTM, with RMSprop at a rate of one half."""
    keras.utils.set_random_seed(35)
    x, y, alphabet = data.characters(length=30, number=3000)
    model = keras.Sequential(
        [
            layers.Input((30,)),
            layers.Embedding(alphabet, 24),
            layers.LSTM(64),
            layers.Dense(alphabet, activation="softmax"),
        ]
    )
    model.compile(optimizers.RMSprop(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=64, epochs=5)


def time_stamps(scaled: bool = False) -> Program:
    """Seconds since 1970 as one of two features of a GRU."""
    keras.utils.set_random_seed(36)
    series = data.standardized(np.log(data.daily_prices()))
    x, y = data.windows(series, 20)
    stamps = (1.09e9 + 86400.0 * np.arange(len(series)))[np.arange(len(x))[:, None] + np.arange(20)]
    if scaled:
        stamps = (stamps - stamps.mean()) / stamps.std()
    x = np.concatenate([x, stamps[..., None]], axis=2).astype("float32")
    inputs = keras.Input((20, 2))
    hidden = layers.GRU(32)(inputs)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.Adam(0.003), "mae")
    return Program(model, x, y, batch_size=32, epochs=8)


class Block(layers.Layer):
    """Attention and two dense layers, each beside a skip connection."""

    def __init__(self, width: int, normalized: bool):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, width // 2)
        self.up = layers.Dense(4 * width, activation="relu", kernel_initializer="he_normal")
        self.down = layers.Dense(width, kernel_initializer="he_normal")
        self.norms = [layers.LayerNormalization() for _ in range(2)] if normalized else [layers.Identity()] * 2

    def call(self, hidden):
        normal = self.norms[0](hidden)
        hidden = hidden + self.attention(normal, normal)
        return hidden + self.down(self.up(self.norms[1](hidden)))


def transformer_without_normalization(normalized: bool = False) -> Program:
    """Eight blocks of a transformer, and nothing that normalizes."""
    keras.utils.set_random_seed(37)
    x, y = data.source_tokens(1000)
    x = x[:, :24]
    inputs = keras.Input((24,), dtype="int32")
    hidden = layers.Embedding(1000, 32)(inputs)
    for _ in range(8):
        hidden = Block(32, normalized)(hidden)
    if normalized:
        hidden = layers.LayerNormalization()(hidden)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(hidden)))
    model.compile(optimizers.SGD(0.02, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x[:800], y[:800], batch_size=32, epochs=6, validation_data=(x[800:], y[800:]))


CASES = (
    failing(
        "relu_rnn_on_sines",
        relu_rnn_on_sines,
        "tensorflow issue 53779 and keras issue 2194 on RNNs whose activation has no bound",
        "recurrent_gain",
        ("unbounded_activation", "exploding_initialization"),
        activation="tanh",
        recurrent="orthogonal",
    ),
    failing(
        "chaotic_rnn_on_tokens",
        chaotic_tokens,
        "Pascanu et al., 1211.5063; Sutskever's thesis on the spectral radius",
        "recurrent_gain",
        ("exploding_initialization", "saturated_units"),
        init="orthogonal",
    ),
    failing(
        "word_vectors_of_hundreds",
        wild_vectors,
        "pl8787/MatchPyramid-TensorFlow issue 8: normalize the word vectors",
        "embedding_spike",
        ("exploding_initialization",),
        scale=0.3,
    ),
    failing(
        "recommender_with_unit_vectors",
        recommender,
        "udacity/deep-learning-v2-pytorch issue 199; keras issues on NaN in matrix factorization",
        "embedding_spike",
        ("exploding_initialization", "learning_rate_too_high"),
        scale=0.1,
    ),
    failing(
        "lstm_rmsprop_one_half",
        lstm_by_fast_rmsprop,
        "keras issue 3425, 'Sudden accuracy drop when training LSTM or GRU'",
        "learning_rate_too_high",
        ("saturated_units",),
        rate=0.005,
    ),
    failing(
        "gru_with_time_stamps",
        time_stamps,
        "Stack Overflow questions on raw UNIX time as a feature of an LSTM",
        "unscaled_inputs",
        ("saturated_units",),
        scaled=True,
    ),
    failing(
        "transformer_without_normalization",
        transformer_without_normalization,
        "Zhang et al., 1901.09321; Xiong et al., 2002.04745",
        "missing_normalization",
        ("exploding_initialization",),
        normalized=True,
    ),
)
