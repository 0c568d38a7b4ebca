"""Recurrent programs that fail, and what mends them."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from keras import initializers, layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


def relu_lstm(activation: str = "relu") -> Program:
    """A digit, read in 98 strips of 8 pixels, by an LSTM whose owner has heard that ReLU is better than tanh."""
    keras.utils.set_random_seed(1)
    x, y = data.mnist(1500)
    model = keras.Sequential()
    model.add(layers.Input((98, 8)))
    model.add(layers.LSTM(96, activation=activation))
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x.reshape(-1, 98, 8) / 255, y, batch_size=32, epochs=5)


def scaled_up_irnn(gain: float = 2**0.5) -> Program:
    """A ReLU RNN over rows of pixels with the gain of feed-forward ReLU layers on its recurrent weights."""
    keras.utils.set_random_seed(2)
    x, y = data.mnist(2000)
    inputs = keras.Input((112, 7))
    hidden = layers.SimpleRNN(
        100,
        activation="relu",
        kernel_initializer=initializers.RandomNormal(stddev=0.01),
        recurrent_initializer=initializers.Identity(gain) if gain == 1 else initializers.Orthogonal(gain),
    )(inputs)
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(
        optimizers.RMSprop(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return Program(model, x.reshape(-1, 112, 7) / 255, y, batch_size=16, epochs=5)


def _temporal_order(number: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one-hot sequences of distractors with an A or B early and late; the class says which two, in order."""
    random = np.random.default_rng(0)
    symbols = random.integers(2, 6, (number, length))
    early = random.integers(length // 10, 2 * length // 10 + 1, number)
    late = random.integers(4 * length // 10, 5 * length // 10 + 1, number)
    marks = random.integers(0, 2, (number, 2))
    symbols[np.arange(number), early], symbols[np.arange(number), late] = marks.T
    return np.eye(6, dtype="float32")[symbols], 2 * marks[:, 0] + marks[:, 1]


def temporal_order(clip: float | None = None) -> Program:
    """The temporal order task of the paper that proposed clipping, without clipping."""
    keras.utils.set_random_seed(3)
    x, y = _temporal_order(10_000, 20)
    normal = initializers.RandomNormal(stddev=0.1)
    model = keras.Sequential(
        [
            layers.Input((20, 6)),
            layers.SimpleRNN(50, kernel_initializer=normal, recurrent_initializer=normal),
            layers.Dense(4, kernel_initializer=normal, activation="softmax"),
        ]
    )
    optimizer = optimizers.SGD(0.3, global_clipnorm=clip)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=20, epochs=4)


class CharacterModel(keras.Model):
    """Embedding, LSTM, logits of the next character."""

    def __init__(self, alphabet: int):
        super().__init__()
        self.embedding = layers.Embedding(alphabet, 32)
        self.lstm = layers.LSTM(96)
        self.logits = layers.Dense(alphabet)

    def call(self, indices):
        return self.logits(self.lstm(self.embedding(indices)))


def borrowed_rate(rate: float = 20.0) -> Program:
    """A character LSTM with the rate of a well-known example that clips its gradients to 0.25; here none is."""
    keras.utils.set_random_seed(4)
    x, y, alphabet = data.characters(length=30, number=4000)
    model = CharacterModel(alphabet)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.SGD(rate), loss, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=4)


def price_in_dollars(scale: float = 1.0) -> Program:
    """Tomorrow's price from the last 30, in dollars, by an LSTM that ends in one linear unit."""
    keras.utils.set_random_seed(5)
    x, y = data.windows(data.daily_prices() / scale, 30)
    model = keras.Sequential([layers.Input((30, 1)), layers.LSTM(50), layers.Dense(1)])
    model.compile("adam", "mse")
    return Program(model, x, y, batch_size=32, epochs=8)


CASES = (
    Case(
        "relu_lstm_on_strips",
        relu_lstm,
        "keras issue 2194, 'Nan acc in A LSTM model with ReLU activations'; keras issue 13221",
        "recurrent_gain",
        accepted=("unbounded_activation",),
        repaired=partial(relu_lstm, activation="tanh"),
    ),
    Case(
        "irnn_with_the_gain_of_relu",
        scaled_up_irnn,
        "Le, Jaitly, Hinton, 1504.00941: identity against larger recurrent weights of a ReLU RNN",
        "recurrent_gain",
        accepted=("exploding_initialization",),
        repaired=partial(scaled_up_irnn, gain=1.0),
    ),
    Case(
        "temporal_order_without_clipping",
        temporal_order,
        "Pascanu, Mikolov, Bengio, 1211.5063: the temporal order task",
        "recurrent_gain",
        accepted=("learning_rate_too_high",),
        repaired=partial(temporal_order, clip=1.0),
    ),
    Case(
        "character_lstm_at_rate_20",
        borrowed_rate,
        "pytorch/examples word_language_model: rate 20 with clipping to 0.25; Merity et al., 1708.02182",
        "learning_rate_too_high",
        repaired=partial(borrowed_rate, rate=1.0),
    ),
    Case(
        "lstm_price_in_dollars",
        price_in_dollars,
        "austineaero/Remaining-Useful-Life-RUL-Estimation issue 19; keras issue 6447 on constant predictions",
        "unscaled_targets",
        accepted=("unscaled_inputs",),
        repaired=partial(price_in_dollars, scale=741.79),
    ),
)
