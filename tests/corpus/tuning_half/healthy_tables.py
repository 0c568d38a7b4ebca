"""Sound programs on tables, series and text that a hasty rule would take for sick ones."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear_regression() -> Program:
    """Ten standardized columns, one linear unit, SGD."""
    keras.utils.set_random_seed(121)
    x, y = data.diabetes()
    model = keras.Sequential([layers.Input((10,)), layers.Dense(1)])
    model.compile(optimizers.SGD(0.02), "mse")
    return Program(model, data.standardized(x), data.standardized(y), batch_size=32, epochs=15)


def logarithm_of_price() -> Program:
    """The logarithm of house prices by PReLU and Huber's loss; the target's mean is 3, its deviation 0.4."""
    keras.utils.set_random_seed(122)
    x, y = data.boston()
    inputs = keras.Input((13,))
    hidden = inputs
    for _ in range(2):
        hidden = layers.PReLU()(layers.Dense(48, kernel_initializer="he_normal")(hidden))
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.Adam(0.005), keras.losses.Huber(), metrics=["mae"])
    return Program(model, data.standardized(x), np.log(y).astype("float32"), batch_size=32, epochs=25)


def counts_of_words() -> Program:
    """Bags of words: sparse counts, mostly 0, a few up to 10."""
    keras.utils.set_random_seed(123)
    x, y = data.source_tokens(1500)
    counts = np.zeros((len(x), 1000), "float32")
    np.add.at(counts, (np.arange(len(x))[:, None], x), 1.0)
    model = keras.Sequential(
        [layers.Input((1000,)), layers.Dense(32, activation="relu"), layers.Dropout(0.5), layers.Dense(3)]
    )
    model.compile(optimizers.Adam(0.002), LOGITS, metrics=["accuracy"])
    return Program(model, counts[:1200], y[:1200], epochs=8, validation_data=(counts[1200:], y[1200:]))


def averaged_embeddings() -> Program:
    """An average of embeddings, as fastText has it, in which most rows are seldom touched."""
    keras.utils.set_random_seed(124)
    x, y = data.source_tokens(1500)
    model = keras.Sequential([layers.Input((40,)), layers.Embedding(1000, 32), layers.GlobalAveragePooling1D()])
    model.add(layers.Dense(3, activation="softmax"))
    model.compile(optimizers.RMSprop(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1200], y[:1200], epochs=8, validation_data=(x[1200:], y[1200:]))


def next_character() -> Program:
    """The next character by a GRU, whose loss begins at ln 100 and will stay above 1."""
    keras.utils.set_random_seed(125)
    x, y, alphabet = data.characters(length=16, number=3000)
    inputs = keras.Input((16,), dtype="int32")
    hidden = layers.GRU(96)(layers.Embedding(alphabet, 32)(inputs))
    model = keras.Model(inputs, layers.Dense(alphabet)(hidden))
    model.compile(optimizers.Adam(0.004, clipnorm=1.0), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=64, epochs=5)


def series_by_convolution() -> Program:
    """Tomorrow's value of a scaled series by dilated causal convolutions."""
    keras.utils.set_random_seed(126)
    x, y = data.windows(data.standardized(np.log(data.daily_prices())), 32)
    model = keras.Sequential([layers.Input((32, 1))])
    for dilation in (1, 2, 4, 8):
        model.add(layers.Conv1D(16, 2, padding="causal", dilation_rate=dilation, activation="elu"))
    model.add(layers.Lambda(lambda hidden: hidden[:, -1], output_shape=(16,)))
    model.add(layers.Dense(1))
    model.compile(optimizers.Adam(0.003), "mae")
    return Program(model, x, y, batch_size=64, epochs=12)


def white_pixels() -> Program:
    """A small count by Poisson regression with an exponential output: how many white pixels has the lower half?"""
    keras.utils.set_random_seed(127)
    x, _ = data.digits()
    bright = (x[:, 32:] == 16).sum(axis=1).astype("float32")
    inputs = keras.Input((32,))
    hidden = layers.Dense(32, activation="softplus")(inputs)
    model = keras.Model(inputs, layers.Dense(1, activation="exponential")(hidden))
    model.compile(optimizers.Adam(0.002), "poisson", metrics=["mae"])
    return Program(model, x[:, :32] / 16, bright, batch_size=32, epochs=10)


def several_labels() -> Program:
    """Five yes-or-no questions about a digit at once, most answers no, focal loss."""
    keras.utils.set_random_seed(128)
    x, y = data.digits()
    targets = np.stack([y == 0, y == 1, y % 3 == 0, y > 7, y == 5], axis=1).astype("float32")
    model = keras.Sequential(
        [layers.Input((64,)), layers.Dense(64, activation="gelu"), layers.Dense(5, activation="sigmoid")]
    )
    model.compile(optimizers.AdamW(0.003), keras.losses.BinaryFocalCrossentropy(), metrics=["binary_accuracy"])
    return Program(model, x / 16, targets, epochs=10)


CASES = (
    Case("linear_regression", linear_regression, "scikit-learn's diabetes example, by SGD"),
    Case(
        "logarithm_of_price",
        logarithm_of_price,
        "Kaggle's House Prices: the logarithm of the target; He et al., 1502.01852, PReLU",
    ),
    Case("counts_of_words", counts_of_words, "Keras example reuters_mlp.py: bags of words"),
    Case("averaged_embeddings", averaged_embeddings, "Joulin et al., 1607.01759"),
    Case("next_character_by_gru", next_character, "TensorFlow tutorial 'Text generation with an RNN'"),
    Case("dilated_convolutions", series_by_convolution, "van den Oord et al., 1609.03499"),
    Case("poisson_counts", white_pixels, "Keras' page of the Poisson loss: counts and an exponential output"),
    Case("five_questions", several_labels, "Keras' page of BinaryFocalCrossentropy; several labels, most of them no"),
)
