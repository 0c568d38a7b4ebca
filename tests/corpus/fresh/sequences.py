"""Recurrent nets that lose or multiply what they carry."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.fresh.common import column, compiled, wave_windows


def rectified_memory(activation: str = "relu") -> Program:
    keras.utils.set_random_seed(61)
    x, y = wave_windows(500, 120)
    model = keras.Sequential([keras.Input((120, 1)), layers.LSTM(32, activation=activation), layers.Dense(1)])
    model.layers[0].set_weights([weight * 2.0 for weight in model.layers[0].get_weights()])
    compiled(model, keras.optimizers.Adam(0.01), "mse")
    return Program(model, x, data.standardized(y), 32, 8)


def exponential_state(activation: str = "exponential") -> Program:
    keras.utils.set_random_seed(62)
    x, y = wave_windows(500, 30)
    model = keras.Sequential([keras.Input((30, 1)), layers.SimpleRNN(24, activation=activation), layers.Dense(1)])
    compiled(model, keras.optimizers.Adam(3e-3), "mse")
    return Program(model, x, data.standardized(y), 32, 20)


def linear_recurrence(gain: float = 1.35) -> Program:
    keras.utils.set_random_seed(63)
    x, y = wave_windows(500, 80)
    start = keras.initializers.Orthogonal(gain, seed=4)
    model = keras.Sequential(
        [
            keras.Input((80, 1)),
            layers.SimpleRNN(24, activation="linear", recurrent_initializer=start, return_sequences=True),
            layers.SimpleRNN(24, activation="relu"),
            layers.Dense(1),
        ]
    )
    compiled(model, keras.optimizers.Adam(3e-3), "mse")
    return Program(model, x, data.standardized(y), 32, 12)


def first_of_the_row(gain: float = 0.3) -> Program:
    keras.utils.set_random_seed(64)
    random = np.random.default_rng(12)
    label = random.integers(0, 4, 1200)
    x = np.zeros((1200, 40, 5), "float32")
    x[np.arange(1200), 0, label] = 1.0
    x[:, 1:, 4] = random.normal(0, 0.3, (1200, 39))
    start = keras.initializers.Orthogonal(gain, seed=4)
    model = keras.Sequential(
        [
            keras.Input((40, 5)),
            layers.SimpleRNN(32, recurrent_initializer=start),
            layers.Dense(4, "softmax"),
        ]
    )
    compiled(model, keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x, label, 32, 8)


def prices_as_they_are(scaled: bool = False) -> Program:
    keras.utils.set_random_seed(65)
    prices = data.daily_prices()
    if scaled:
        prices = data.standardized(prices)
    x, y = data.windows(prices, 20)
    model = keras.Sequential([keras.Input((20, 1)), layers.LSTM(16), layers.Dense(1)])
    compiled(model, keras.optimizers.Adam(3e-3), "mse")
    return Program(model, x, column(y), 32, 8)


def letters_at_rate_one(rate: float = 1.0) -> Program:
    keras.utils.set_random_seed(66)
    x, y, number = data.characters(10, 3000)
    model = keras.Sequential(
        [keras.Input((10,)), layers.Embedding(number, 24), layers.GRU(48), layers.Dense(number, "softmax")]
    )
    compiled(model, keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x, y, 32, 8)


CASES = (
    failing(
        "rectified_memory",
        rectified_memory,
        "GitHub, keras-team/keras issue 2194, AlexanderVNikitin/tsgm issue 59: LSTM with ReLU",
        "recurrent_gain",
        ("unbounded_activation", "exploding_initialization"),
        activation="tanh",
    ),
    failing(
        "exponential_state",
        exponential_state,
        "GitHub, tensorflow/tensorflow issue 53779: recurrent layer with exponential activation gives NaN",
        "unbounded_activation",
        ("recurrent_gain",),
        activation="tanh",
    ),
    failing(
        "linear_recurrence",
        linear_recurrence,
        "Paper: Le, Jaitly and Hinton 2015, A simple way to initialize recurrent networks of rectified linear units",
        "recurrent_gain",
        ("exploding_initialization",),
        gain=0.95,
    ),
    failing(
        "first_of_the_row",
        first_of_the_row,
        "Paper: Bengio, Simard and Frasconi 1994, Learning long-term dependencies is difficult",
        "recurrent_gain",
        ("vanishing_initialization",),
        gain=1.0,
    ),
    failing(
        "prices_as_they_are",
        prices_as_they_are,
        "GitHub, austineaero/Remaining-Useful-Life-RUL-Estimation issue 19: recurrent net and data not normalized",
        "unscaled_inputs",
        ("unscaled_targets", "saturated_units"),
        scaled=True,
    ),
    failing(
        "letters_at_rate_one",
        letters_at_rate_one,
        "GitHub, keras-team/keras issue 21: training diverges after some epochs",
        "learning_rate_too_high",
        ("saturated_units",),
        rate=5e-3,
    ),
)
