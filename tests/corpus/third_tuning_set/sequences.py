"""Programs that fail by a recurrent layer or a table of vectors, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Cell(layers.Layer):
    """A recurrent cell of one's own: state = relu(x U + state W), W a multiple of the identity."""

    def __init__(self, units: int, scale: float):
        super().__init__()
        self.units, self.state_size, self.scale = units, units, scale

    def build(self, shape):
        self.u = self.add_weight(
            shape=(shape[-1], self.units), initializer=initializers.RandomNormal(stddev=0.2), name="u"
        )
        self.w = self.add_weight(
            shape=(self.units, self.units), initializer=initializers.Identity(self.scale), name="w"
        )
        self.b = self.add_weight(shape=(self.units,), initializer="zeros", name="b")

    def call(self, x, states):
        state = ops.relu(x @ self.u + states[0] @ self.w + self.b)
        return state, [state]


def own_cell(scale: float = 1.7) -> Program:
    """Digits in pieces of two pixels; the identity of the cell is multiplied by 1.7."""
    keras.utils.set_random_seed(1101)
    x, y, _ = data.split_digits()
    inputs = keras.Input((32, 2))
    model = keras.Model(inputs, layers.Dense(10)(layers.RNN(Cell(48, scale))(inputs)))
    model.compile(optimizers.Adam(0.002), LOGITS, metrics=["accuracy"])
    return Program(model, x[:1000].reshape(-1, 32, 2), y[:1000], batch_size=32, epochs=8)


def recall(length, number, seed):
    """The first of `length` vectors says which class it is; small noise follows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, number)
    x = (rng.normal(size=(number, length, 4)) * 0.05).astype("float32")
    x[np.arange(number), 0, y] += 1
    return x, y


def forgetful_rnn(recurrent: str | None = None) -> Program:
    """A recurrent matrix so small that the first vector is forgotten within a few steps."""
    keras.utils.set_random_seed(1102)
    x, y = recall(25, 1500, 13)
    inputs = keras.Input((25, 4))
    hidden = layers.SimpleRNN(48, recurrent_initializer=recurrent or initializers.RandomNormal(stddev=0.02))(inputs)
    model = keras.Model(inputs, layers.Dense(4, activation="softmax")(hidden))
    model.compile(optimizers.Adam(0.001), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8)


def linear_memory(gain: float = 1.3) -> Program:
    """TimeDistributed features into a recurrent layer with no activation, orthogonal with a gain."""
    keras.utils.set_random_seed(1104)
    rng = np.random.default_rng(15)
    x = rng.normal(size=(800, 80, 3)).astype("float32")
    y = data.standardized((x[:, :, 0] * 0.95 ** np.arange(80)[::-1]).sum(1))
    inputs = keras.Input((80, 3))
    hidden = layers.TimeDistributed(layers.Dense(16, activation="tanh"))(inputs)
    hidden = layers.SimpleRNN(32, activation=None, recurrent_initializer=initializers.Orthogonal(gain))(hidden)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.Adam(0.002), "mse")
    return Program(model, x, y, batch_size=32, epochs=10)


def entity_embeddings(stddev: float = 100.0) -> Program:
    """Categories as vectors beside standardised numbers."""
    keras.utils.set_random_seed(1105)
    rng = np.random.default_rng(16)
    shop, day = rng.integers(0, 50, 2500), rng.integers(0, 7, 2500)
    numbers = rng.normal(size=(2500, 4)).astype("float32")
    y = data.standardized(rng.normal(size=50)[shop] + np.sin(day) + numbers[:, 0] - 0.5 * numbers[:, 1])
    init = initializers.RandomNormal(stddev=stddev)
    a, b, c = (
        keras.Input((), dtype="int32", name="shop"),
        keras.Input((), dtype="int32", name="day"),
        keras.Input((4,), name="numbers"),
    )
    hidden = layers.Concatenate()(
        [
            layers.Embedding(50, 12, embeddings_initializer=init)(a),
            layers.Embedding(7, 4, embeddings_initializer=init)(b),
            c,
        ]
    )
    hidden = layers.Dense(48, activation="relu")(hidden)
    hidden = layers.Dense(24, activation="relu")(hidden)
    model = keras.Model([a, b, c], layers.Dense(1)(hidden))
    model.compile(optimizers.SGD(0.02), "mse")
    return Program(model, {"shop": shop, "day": day, "numbers": numbers}, y, batch_size=32, epochs=15)


class TiedCharacters(keras.Model):
    """The table of the vectors gives the logits too."""

    def __init__(self, alphabet: int, stddev: float):
        super().__init__()
        self.table = layers.Embedding(alphabet, 64, embeddings_initializer=initializers.RandomNormal(stddev=stddev))
        self.mix = layers.Conv1D(64, 4, padding="causal", activation="tanh")
        self.last = layers.Dense(64)

    def call(self, tokens):
        h = self.table(tokens)
        h = self.last(h[:, -1] + self.mix(h)[:, -1])
        return ops.matmul(h, ops.transpose(self.table.embeddings))


def tied_table(stddev: float = 4.0) -> Program:
    """The next character, by a table whose vectors have a deviation of 4."""
    keras.utils.set_random_seed(1106)
    x, y, alphabet = data.characters(length=12, number=3000)
    model = TiedCharacters(alphabet, stddev)
    model.compile(optimizers.SGD(0.05, momentum=0.9), LOGITS, metrics=["accuracy"])
    model(x[:1])
    return Program(model, x, y, batch_size=32, epochs=10)


def broken_row(scale: float = 2e4) -> Program:
    """Vectors read from a file in which the row of a frequent word is damaged."""
    keras.utils.set_random_seed(1107)
    x, y = data.source_tokens(1400)
    matrix = np.random.default_rng(17).normal(size=(1000, 32)).astype("float32") * 0.3
    matrix[9] *= scale
    inputs = keras.Input((40,), dtype="int32")
    table = layers.Embedding(1000, 32, embeddings_initializer=initializers.Constant(matrix))
    hidden = layers.Conv1D(32, 3, activation="relu")(table(inputs))
    hidden = layers.GlobalAveragePooling1D()(hidden)
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(32, activation="relu")(hidden)))
    model.compile(optimizers.SGD(0.1, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x[:1100], y[:1100], batch_size=32, epochs=8, validation_data=(x[1100:], y[1100:]))


CASES = (
    failing(
        "own_cell_of_one_point_seven",
        own_cell,
        "Le et al., 1504.00941 (IRNN); Stack Overflow on own RNN cells whose loss is NaN",
        "recurrent_gain",
        ("exploding_initialization", "unbounded_activation"),
        scale=1.0,
    ),
    failing(
        "rnn_that_forgets",
        forgetful_rnn,
        "Hochreiter, Bengio et al., 'Gradient flow in recurrent nets'; 1211.5063 on vanishing",
        "recurrent_gain",
        ("vanishing_initialization",),
        recurrent="orthogonal",
    ),
    failing(
        "linear_memory_with_gain",
        linear_memory,
        "Stack Overflow on SimpleRNN with activation=None; 1211.5063, section 2",
        "recurrent_gain",
        ("exploding_initialization", "unbounded_activation"),
        gain=0.97,
    ),
    failing(
        "entity_vectors_of_a_hundred",
        entity_embeddings,
        "Guo, Berkhahn, 1604.06737; keras issues on embeddings beside numbers that give NaN",
        "embedding_spike",
        ("exploding_initialization",),
        stddev=0.1,
    ),
    failing(
        "tied_table_of_four",
        tied_table,
        "Press, Wolf, 1608.05859; openai/gpt-2's deviation of 0.02 for tied vectors",
        "embedding_spike",
        ("exploding_initialization",),
        stddev=0.05,
    ),
    failing(
        "damaged_row_of_vectors",
        broken_row,
        "Keras example 'Using pre-trained word embeddings'; Stack Overflow on loss nan with own vectors",
        "embedding_spike",
        ("exploding_initialization",),
        scale=1.0,
    ),
)
