"""Sound programs on tables, text and symbols that a hasty rule would take for sick ones."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def deep_and_wide() -> Program:
    """Kinds one-hot beside cities embedded, with Ftrl."""
    keras.utils.set_random_seed(425)
    rng = np.random.default_rng(4)
    cities, kinds = rng.integers(0, 200, 2500), rng.integers(0, 12, 2500)
    numbers = rng.normal(size=(2500, 5)).astype("float32")
    score = rng.normal(size=200)[cities] + rng.normal(size=12)[kinds] + numbers[:, 0] - numbers[:, 1]
    y = (score > 0).astype("float32")
    city, kind, number = (
        keras.Input((1,), name="city"),
        keras.Input((1,), name="kind"),
        keras.Input((5,), name="number"),
    )
    wide = layers.CategoryEncoding(12, output_mode="one_hot")(kind)
    deep = layers.concatenate([layers.Flatten()(layers.Embedding(200, 8)(city)), number])
    deep = layers.Dropout(0.1)(layers.Dense(32, activation="relu")(deep))
    model = keras.Model([city, kind, number], layers.Dense(1, activation="sigmoid")(layers.concatenate([wide, deep])))
    model.compile(optimizers.Ftrl(0.1), "binary_crossentropy", metrics=["accuracy", "AUC"])
    return Program(model, (cities[:, None], kinds[:, None], numbers), y, batch_size=64, epochs=10)


def three_tasks() -> Program:
    """Three outputs by their names, each with a loss and a weight."""
    keras.utils.set_random_seed(426)
    x, y = data.digits()
    hidden = inputs = keras.Input((64,))
    hidden = layers.Dense(80, activation="leaky_relu")(hidden)
    out = {
        "digit": layers.Dense(10, activation="softmax", name="digit")(hidden),
        "odd": layers.Dense(1, activation="sigmoid", name="odd")(hidden),
        "ink": layers.Dense(1, name="ink")(hidden),
    }
    model = keras.Model(inputs, out)
    model.compile(
        optimizers.Adamax(0.003),
        {"digit": "sparse_categorical_crossentropy", "odd": "binary_crossentropy", "ink": "mse"},
        loss_weights={"digit": 1.0, "odd": 0.3, "ink": 0.1},
        metrics={
            "digit": ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(3)],
            "odd": ["accuracy"],
            "ink": ["mae"],
        },
    )
    target = {"digit": y, "odd": (y % 2).astype("float32"), "ink": data.standardized(x.sum(1))}
    return Program(model, x / 16, target, batch_size=32, epochs=8)


def reversed_symbols() -> Program:
    """Sequence to sequence with teacher forcing: write the symbols backwards."""
    keras.utils.set_random_seed(427)
    symbols = np.random.default_rng(5).integers(1, 8, (2500, 5))
    target = symbols[:, ::-1]
    fed = np.concatenate([np.zeros((2500, 1), int), target[:, :-1]], 1)
    source, so_far = keras.Input((5,), dtype="int32", name="source"), keras.Input((5,), dtype="int32", name="so_far")
    table = layers.Embedding(8, 16)
    _, state = layers.GRU(64, return_state=True)(table(source))
    hidden = layers.GRU(64, return_sequences=True)(table(so_far), initial_state=state)
    model = keras.Model([source, so_far], layers.Dense(8)(hidden))
    model.compile(optimizers.Adam(0.01), LOGITS, metrics=["accuracy"])
    return Program(model, (symbols, fed), target, batch_size=64, epochs=6)


def stacked_lstm_by_sgd() -> Program:
    """The rate of one is high, the clipping makes it safe."""
    keras.utils.set_random_seed(428)
    x, y, alphabet = data.characters(length=16, number=4000)
    model = keras.Sequential(
        [
            layers.Input((16,)),
            layers.Embedding(alphabet, 24),
            layers.LSTM(48, return_sequences=True),
            layers.LSTM(48),
            layers.Dense(alphabet),
        ]
    )
    model.compile(optimizers.SGD(1.0, clipnorm=1.0), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=5)


def masked_words() -> Program:
    """Sequences of unequal length, masked zeros, an LSTM."""
    keras.utils.set_random_seed(429)
    x, y = data.source_tokens(1300, vocabulary=400)
    x = np.where(np.arange(40) < np.random.default_rng(6).integers(15, 41, (len(x), 1)), x + 1, 0)
    model = keras.Sequential(
        [
            layers.Input((40,)),
            layers.Embedding(402, 32, mask_zero=True),
            layers.SpatialDropout1D(0.2),
            layers.LSTM(32),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizers.Adam(0.004), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1000], y[:1000], batch_size=32, epochs=5, validation_data=(x[1000:], y[1000:]))


def line_by_sgd() -> Program:
    """Linear regression by SGD at a rate of 0.1."""
    keras.utils.set_random_seed(431)
    x, y = data.auto_mpg()
    model = keras.Sequential([layers.Input((7,)), layers.Dense(1)])
    model.compile(optimizers.SGD(0.1), "mse", metrics=["mae", "mape"])
    return Program(model, data.standardized(x[:, :7]), data.standardized(y), batch_size=64, epochs=15)


def small_learner() -> Program:
    """A rate of a ten-thousandth that is small, and enough."""
    keras.utils.set_random_seed(432)
    x, y = data.mnist(2500)
    model = keras.Sequential(
        [
            layers.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(200, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizers.Adam(2e-4), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x / 255, y, batch_size=32, epochs=6)


def wrong_three_in_ten() -> Program:
    """Labels of which three in ten are wrong."""
    keras.utils.set_random_seed(433)
    rng = np.random.default_rng(8)
    x = rng.normal(size=(2000, 10)).astype("float32")
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0) ^ (rng.uniform(size=2000) < 0.3)
    model = keras.Sequential(
        [
            layers.Input((10,)),
            layers.Dense(24, activation="relu", kernel_regularizer="l2"),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizers.Adam(0.005), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x, y.astype("float32"), batch_size=64, epochs=12)


CASES = (
    Case("wide_and_deep", deep_and_wide, "Cheng et al., 1606.07792"),
    Case("three_tasks_of_a_digit", three_tasks, "Keras guide 'Training and evaluation with the built-in methods'"),
    Case("symbols_backwards", reversed_symbols, "The Keras blog on sequence to sequence"),
    Case("stacked_lstm_by_clipped_sgd", stacked_lstm_by_sgd, "Zaremba et al., 1409.2329: SGD at rate 1 with clipping"),
    Case("masked_words", masked_words, "Keras guide 'Masking and padding'"),
    Case("line_of_seven_columns", line_by_sgd, "TensorFlow tutorial 'Basic regression: Predict fuel efficiency'"),
    Case("adam_at_two_ten_thousandths", small_learner, "TensorFlow quickstart for beginners, at a small rate"),
    Case("three_in_ten_wrong", wrong_three_in_ten, "Rolnick et al., 1705.10694, on noisy labels"),
)
