"""Sound programs on text and series that a hasty rule would take for sick ones."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def post_norm_transformer() -> Program:
    """One block of a transformer that normalizes its sums."""
    keras.utils.set_random_seed(224)
    x, y = data.source_tokens(1400)
    tokens = keras.Input((40,), dtype="int32")
    hidden = layers.Embedding(1000, 32)(tokens) + layers.Embedding(40, 32)(np.arange(40))
    attention = layers.MultiHeadAttention(2, 16)(hidden, hidden)
    hidden = layers.LayerNormalization(epsilon=1e-6)(hidden + layers.Dropout(0.1)(attention))
    dense = layers.Dense(32)(layers.Dense(32, activation="relu")(hidden))
    hidden = layers.LayerNormalization(epsilon=1e-6)(hidden + layers.Dropout(0.1)(dense))
    hidden = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(hidden))
    hidden = layers.Dense(20, activation="relu")(hidden)
    model = keras.Model(tokens, layers.Dense(3, activation="softmax")(hidden))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1100], y[:1100], batch_size=32, epochs=6, validation_data=(x[1100:], y[1100:]))


def raw_word_counts() -> Program:
    """Bags of words: raw counts."""
    keras.utils.set_random_seed(228)
    tokens, y = data.source_tokens(1500)
    x = np.stack([np.bincount(row, minlength=1000) for row in tokens]).astype("float32")
    model = keras.Sequential(
        [
            layers.Input((1000,)),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizers.RMSprop(0.001), "categorical_crossentropy", metrics=["accuracy"])
    return Program(
        model,
        x[:1200],
        keras.utils.to_categorical(y)[:1200],
        batch_size=32,
        epochs=6,
        validation_data=(x[1200:], keras.utils.to_categorical(y)[1200:]),
    )


def large_embedding() -> Program:
    """A table of eight thousand words, of which a thousand occur."""
    keras.utils.set_random_seed(229)
    x, y = data.source_tokens(1500, vocabulary=1000)
    model = keras.Sequential(
        [layers.Input((40,)), layers.Embedding(8000, 96), layers.Bidirectional(layers.LSTM(24)), layers.Dense(3)]
    )
    model.compile(optimizers.Adam(0.003, clipnorm=1.0), LOGITS, metrics=["accuracy"])
    return Program(model, x[:1200], y[:1200], batch_size=32, epochs=4, validation_data=(x[1200:], y[1200:]))


def price_by_gru() -> Program:
    """Tomorrow's value of a scaled series by a GRU, log-cosh."""
    keras.utils.set_random_seed(236)
    series = data.standardized(np.log(data.daily_prices()))
    x, y = data.windows(series, 15)
    model = keras.Sequential([layers.Input((15, 1)), layers.GRU(24), layers.Dense(1)])
    model.compile(optimizers.Adam(0.005), keras.losses.LogCosh())
    return Program(model, x, y, batch_size=32, epochs=8)


CASES = (
    Case("one_post_norm_block", post_norm_transformer, "Keras example 'Text classification with Transformer'"),
    Case("raw_counts_of_words", raw_word_counts, "Keras' TextVectorization with output_mode='count'"),
    Case("embedding_of_eight_thousand", large_embedding, "Keras example 'Bidirectional LSTM on IMDB'"),
    Case("price_by_gru", price_by_gru, "TensorFlow tutorial 'Time series forecasting'"),
)
