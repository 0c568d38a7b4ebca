"""Recurrent nets, attention and embeddings that fail."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from keras import initializers, layers, ops

from tests.corpus import data
from tests.corpus.case import Case, Program


def relu_lstm(broken: bool) -> Program:
    """Two LSTM layers with relu in place of tanh, over long windows of a share price."""
    keras.utils.set_random_seed(31)
    x, y = data.windows(data.standardized(data.daily_prices()), 80)
    x, y = x[::2], y[::2]
    activation = "relu" if broken else "tanh"
    model = keras.Sequential([keras.Input((80, 1))])
    model.add(layers.LSTM(32, activation=activation, return_sequences=True))
    model.add(layers.LSTM(16, activation=activation))
    model.add(layers.Dense(1))
    model.compile(keras.optimizers.SGD(0.01, momentum=0.99, nesterov=True), "mean_squared_error")
    return Program(model, x, y, 32, 4)


def chaotic_recurrence(broken: bool) -> Program:
    """Recurrent weights drawn from N(0, 1), as tf.random_normal gave them: tanh bounds the state, not the gradient."""
    keras.utils.set_random_seed(32)
    x, y = data.source_tokens(1500, 500)
    weights = initializers.RandomNormal(stddev=1.0) if broken else "orthogonal"
    inputs = keras.Input((40,))
    hidden = layers.Embedding(500, 16)(inputs)
    hidden = layers.SimpleRNN(64, recurrent_initializer=weights)(hidden)
    outputs = layers.Dense(3, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 8)


def latch(broken: bool) -> Program:
    """The latch problem: the class shows in the first steps, then comes noise; small weights forget it."""
    keras.utils.set_random_seed(33)
    rng = np.random.default_rng(33)
    y = rng.integers(0, 2, 1200)
    x = rng.normal(0.0, 0.2, (1200, 60, 1)).astype("float32")
    x[:, :3, 0] += (2.0 * y - 1.0)[:, None]
    recurrent = initializers.RandomNormal(stddev=0.05) if broken else "orthogonal"
    model = keras.Sequential([keras.Input((60, 1))])
    model.add(layers.SimpleRNN(32, recurrent_initializer=recurrent))
    model.add(layers.Dense(1, "sigmoid"))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 8)


class Padded(keras.Model):
    """Sums the embeddings of all tokens of a padded text, padding included where nothing masks it."""

    def __init__(self, vocabulary: int, masked: bool):
        super().__init__()
        self.masked = masked
        self.embedding = layers.Embedding(vocabulary, 32)
        self.scores = layers.Dense(3)

    def call(self, tokens):
        vectors = self.embedding(tokens)
        if self.masked:
            vectors = vectors * ops.cast(ops.not_equal(tokens, 0), "float32")[..., None]
        return self.scores(ops.sum(vectors, axis=1))


def padding_token(broken: bool) -> Program:
    """Texts padded to 400 tokens and summed: the row of the padding token gets the gradient of nine tokens in ten."""
    keras.utils.set_random_seed(34)
    tokens, y = data.source_tokens(1500, 800)
    tokens = np.where(tokens == 0, 799, tokens)  # 0 is the padding here, the unknown word moves to the end
    x = np.pad(tokens, ((0, 0), (0, 360)))
    model = Padded(800, masked=not broken)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"])
    return Program(model, x, y, 32, 8)


class TiedLanguageModel(keras.Model):
    """A small causal transformer whose output weights are its embedding."""

    def __init__(self, vocabulary: int, length: int, spread: float):
        super().__init__()
        self.width = 128
        self.embedding = layers.Embedding(
            vocabulary, self.width, embeddings_initializer=initializers.RandomNormal(stddev=spread)
        )
        self.places = layers.Embedding(length, self.width)
        self.attend = [layers.MultiHeadAttention(4, 32) for _ in range(1)]
        self.widen = [layers.Dense(256, "gelu") for _ in range(1)]
        self.narrow = [layers.Dense(self.width) for _ in range(1)]
        self.before = [layers.LayerNormalization() for _ in range(2)]
        self.last = layers.LayerNormalization()

    def call(self, tokens):
        x = self.embedding(tokens) + self.places(ops.arange(tokens.shape[1]))
        for block in range(1):
            y = self.before[2 * block](x)
            x = x + self.attend[block](y, y, use_causal_mask=True)
            y = self.before[2 * block + 1](x)
            x = x + self.narrow[block](self.widen[block](y))
        return ops.matmul(self.last(x), ops.transpose(self.embedding.embeddings))


def tied_embedding(broken: bool) -> Program:
    """A language model with tied embeddings that start at N(0, 1): the first logits are as wide as the net."""
    keras.utils.set_random_seed(35)
    x, following, vocabulary = data.characters(24, 1000)
    y = np.concatenate([x[:, 1:], following[:, None]], axis=1)
    model = TiedLanguageModel(vocabulary, 24, 1.0 if broken else 0.02)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return Program(model, x, y, 32, 4)


def _encoder(normalized: bool, blocks: int, inputs):
    x = inputs
    for _ in range(blocks):
        y = layers.LayerNormalization()(x) if normalized else x
        x = layers.Add()([x, layers.MultiHeadAttention(2, 16, kernel_initializer="he_normal")(y, y)])
        y = layers.LayerNormalization()(x) if normalized else x
        y = layers.Dense(64, "relu", kernel_initializer="he_normal")(y)
        x = layers.Add()([x, layers.Dense(32, kernel_initializer="he_normal")(y)])
    return layers.LayerNormalization()(x) if normalized else x


def bare_transformer(broken: bool) -> Program:
    """A transformer encoder over the rows of an image, its LayerNormalization left out for simplicity."""
    keras.utils.set_random_seed(36)
    x, y = data.digits()
    x, y = x[:1200].reshape(-1, 8, 8) / 16.0, y[:1200]
    inputs = keras.Input((8, 8))
    hidden = layers.Dense(32)(inputs)
    hidden = _encoder(not broken, 6, hidden)
    hidden = layers.GlobalAveragePooling1D()(hidden)
    outputs = layers.Dense(10, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 64, 4)


def bare_residual(broken: bool) -> Program:
    """Residual blocks without their batch normalization: each one doubles the variance of the sum."""
    keras.utils.set_random_seed(37)
    x, y = data.digits()
    x, y = x[:1000].reshape(-1, 8, 8, 1) / 16.0, y[:1000]
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(8, 3, padding="same", kernel_initializer="he_normal")(inputs)
    for _ in range(12):
        branch = hidden
        for _ in range(2):
            if not broken:
                branch = layers.BatchNormalization()(branch)
            branch = layers.Activation("relu")(branch)
            branch = layers.Conv2D(8, 3, padding="same", kernel_initializer="he_normal")(branch)
        hidden = layers.Add()([hidden, branch])
    if not broken:
        hidden = layers.BatchNormalization()(hidden)
    hidden = layers.GlobalAveragePooling2D()(layers.Activation("relu")(hidden))
    outputs = layers.Dense(10, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 64, 4)


def _case(build, cause, source, accepted=()) -> Case:
    return Case(build.__name__, partial(build, True), source, cause, accepted, partial(build, False))


CASES = (
    _case(
        relu_lstm,
        "recurrent_gain",
        "keras issue 3687; Stack Overflow 55322991: NaN after adding relu activation in LSTM",
        ("unbounded_activation",),
    ),
    _case(
        chaotic_recurrence,
        "recurrent_gain",
        "Pascanu, Mikolov, Bengio 2013; recurrent cells of TensorFlow 1 tutorials with tf.random_normal weights",
        ("exploding_initialization", "saturated_units"),
    ),
    _case(
        latch,
        "recurrent_gain",
        "Bengio, Simard, Frasconi 1994; Pascanu, Mikolov, Bengio 2013",
        ("vanishing_initialization",),
    ),
    _case(
        padding_token,
        "embedding_spike",
        "keras documentation, Masking and padding; keras-io text classification without mask_zero",
        ("learning_rate_too_high",),
    ),
    _case(
        tied_embedding,
        "embedding_spike",
        "Takase et al. 2023, Spike No More; GPT-2's initialization of 0.02 against PyTorch's default N(0, 1)",
        ("exploding_initialization",),
    ),
    _case(
        bare_transformer,
        "missing_normalization",
        "Xiong et al. 2020, On Layer Normalization in the Transformer Architecture",
        ("exploding_initialization",),
    ),
    _case(
        bare_residual,
        "missing_normalization",
        "Zhang, Dauphin, Ma 2019, Fixup: residual nets without normalization",
        ("exploding_initialization",),
    ),
)
