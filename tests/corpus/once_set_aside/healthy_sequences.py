"""Sound recurrent, attention and embedding programs, and adversarial nets in balance."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program
from tests.corpus.once_set_aside.generative import Adversaries
from tests.corpus.once_set_aside.sequences import _encoder


def source_classifier() -> Program:
    """A bidirectional GRU over masked tokens that tells which package a piece of code is from."""
    keras.utils.set_random_seed(141)
    x, y = data.source_tokens(1000, 500)
    x = x[:, :24]
    model = keras.Sequential([keras.Input((24,)), layers.Embedding(500, 16, mask_zero=True)])
    model.add(layers.Bidirectional(layers.GRU(16)))
    model.add(layers.Dense(3, "softmax"))
    model.compile(optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:800], y[:800], 32, 6, (x[800:], y[800:]))


def character_model() -> Program:
    """An LSTM that guesses the next character of a text: it ends far from 0 loss, as language does."""
    keras.utils.set_random_seed(142)
    x, y, vocabulary = data.characters(20, 3000)
    inputs = keras.Input((20,))
    hidden = layers.LSTM(64)(layers.Embedding(vocabulary, 24)(inputs))
    outputs = layers.Dense(vocabulary, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(optimizers.Adam(0.005), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 64, 6)


def price_window() -> Program:
    """A SimpleRNN over windows of a standardized share price that predicts the next day."""
    keras.utils.set_random_seed(143)
    x, y = data.windows(data.standardized(data.daily_prices()), 30)
    model = keras.Sequential([keras.Input((30, 1)), layers.SimpleRNN(24), layers.Dense(1)])
    model.compile(optimizers.RMSprop(0.001), "mae")
    return Program(model, x, y, 32, 5)


def identity_rnn() -> Program:
    """A ReLU SimpleRNN that starts at the identity and reads an image by rows, under a clipped gradient."""
    keras.utils.set_random_seed(144)
    x, y = data.digits()
    model = keras.Sequential([keras.Input((8, 8)), layers.Rescaling(1 / 16.0)])
    model.add(layers.SimpleRNN(48, activation="relu", recurrent_initializer=initializers.Identity()))
    model.add(layers.Dense(10, "softmax"))
    model.compile(optimizers.Adam(0.002, clipnorm=1.0), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x.reshape(-1, 8, 8), y, 32, 6)


def pre_norm_transformer() -> Program:
    """A transformer encoder of three blocks with LayerNormalization before each branch, without warm-up."""
    keras.utils.set_random_seed(145)
    x, y = data.digits()
    inputs = keras.Input((8, 8))
    hidden = layers.Dense(32)(layers.Rescaling(1 / 16.0)(inputs))
    hidden = layers.Add()([hidden, layers.Embedding(8, 32)(np.arange(8)[None])])
    hidden = _encoder(True, 3, hidden)
    outputs = layers.Dense(10, "softmax")(layers.Flatten()(hidden))
    model = keras.Model(inputs, outputs)
    model.compile(optimizers.Adam(0.001), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1200].reshape(-1, 8, 8), y[:1200], 32, 4)


def word_bag() -> Program:
    """Counts of a thousand words, most columns nearly always 0, into two layers."""
    keras.utils.set_random_seed(146)
    tokens, y = data.source_tokens(1500, 1000)
    x = np.stack([np.bincount(row, minlength=1000) for row in tokens]).astype("float32")
    model = keras.Sequential([keras.Input((1000,)), layers.Dense(32, "relu"), layers.Dropout(0.5)])
    model.add(layers.Dense(3, "softmax"))
    model.compile(optimizers.Lion(0.0005), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1200], y[:1200], 32, 5, (x[1200:], y[1200:]))


def factorization() -> Program:
    """Matrix factorization: two embeddings, a scalar product, ratings around 0."""
    keras.utils.set_random_seed(147)
    rng = np.random.default_rng(147)
    people, films = rng.normal(size=(60, 3)), rng.normal(size=(40, 3))
    who, what = rng.integers(0, 60, 3000), rng.integers(0, 40, 3000)
    rating = (people[who] * films[what]).sum(1) / np.sqrt(3) + rng.normal(0, 0.1, 3000)
    left, right = keras.Input((1,), dtype="int32"), keras.Input((1,), dtype="int32")
    vectors = [layers.Flatten()(layers.Embedding(60, 8)(left)), layers.Flatten()(layers.Embedding(40, 8)(right))]
    model = keras.Model([left, right], layers.Dot(axes=1)(vectors))
    model.compile(optimizers.Adam(0.02), "mse")
    return Program(model, (who[:, None], what[:, None]), rating.astype("float32")[:, None], 64, 12)


def balanced_adversaries() -> Program:
    """A generator and a discriminator that hold each other in check: neither loss falls to 0, and neither should."""
    keras.utils.set_random_seed(148)
    x, _ = data.digits()
    x = (x / 8.0 - 1.0).astype("float32")
    model = Adversaries()
    model.compile(optimizers.Adam(0.0005, beta_1=0.5), optimizers.Adam(0.002, beta_1=0.5))
    return Program(model, x, None, 64, 20)


CASES = tuple(
    Case(build.__name__, build, source)
    for build, source in (
        (source_classifier, "Keras guide, Working with RNNs; Masking and padding"),
        (character_model, "Keras example, Character-level text generation with LSTM"),
        (price_window, "Géron 2022, Hands-On Machine Learning, chapter 15: forecasting with a simple RNN"),
        (identity_rnn, "Le, Jaitly, Hinton 2015"),
        (pre_norm_transformer, "Xiong et al. 2020: pre-norm needs no warm-up"),
        (word_bag, "Keras example, Text classification with bags of words; Chen et al. 2023 (Lion)"),
        (factorization, "Koren, Bell, Volinsky 2009; Keras example, Collaborative filtering for movie recommendations"),
        (balanced_adversaries, "Goodfellow et al. 2014; Radford et al. 2015 (beta_1 of 0.5)"),
    )
)
