"""Programs that fail by their first weights and biases, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.third_tuning_set.own_step import OwnStep


def conv_autoencoder(init: str | None = None) -> Program:
    """Convolutions down, transposed convolutions up, weights from a normal distribution of deviation 1."""
    keras.utils.set_random_seed(1001)
    x, _ = data.mnist(800)
    x = x[..., None] / 255
    init = init or initializers.RandomNormal(mean=0.0, stddev=1.0)
    inputs = keras.Input((28, 28, 1))
    hidden = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", kernel_initializer=init)(inputs)
    hidden = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", kernel_initializer=init)(hidden)
    hidden = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu", kernel_initializer=init)(hidden)
    hidden = layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu", kernel_initializer=init)(
        hidden
    )
    model = keras.Model(inputs, layers.Conv2D(1, 3, padding="same", kernel_initializer=init)(hidden))
    model.compile(optimizers.SGD(0.05, momentum=0.9), "mse")
    return Program(model, x, x, batch_size=32, epochs=6)


class Linear(layers.Layer):
    """The layer of the guide, with weights from tf.random.normal's default of 1."""

    def __init__(self, units: int, stddev: float):
        super().__init__()
        self.units, self.stddev = units, stddev

    def build(self, shape):
        stddev = self.stddev or (2.0 / shape[-1]) ** 0.5
        self.w = self.add_weight(
            shape=(shape[-1], self.units), initializer=initializers.RandomNormal(stddev=stddev), name="w"
        )
        self.b = self.add_weight(shape=(self.units,), initializer="zeros", name="b")

    def call(self, x):
        return x @ self.w + self.b


class HandMade(OwnStep):
    """Three layers of one's own and a linear one, in a step of one's own."""

    def __init__(self, stddev: float):
        super().__init__()
        self.hidden = [Linear(units, stddev) for units in (256, 128, 64)]
        self.out = Linear(1, stddev)

    def call(self, x):
        for layer in self.hidden:
            x = ops.relu(layer(x))
        return self.out(x)

    def objective(self, x, y):
        return ops.mean(ops.square(y[:, None] - self(x, training=True)))


def hand_made_layers(stddev: float = 1.0) -> Program:
    """House prices by layers whose weights have a deviation of 1."""
    keras.utils.set_random_seed(1002)
    x, y = data.boston()
    model = HandMade(stddev)
    model(np.zeros((1, 13), "float32"))
    model.compile(optimizer=optimizers.SGD(0.01))
    return Program(model, data.standardized(x), data.standardized(y), batch_size=32, epochs=20)


def dilated_convolutions(gain: float = 2.5) -> Program:
    """Causal convolutions over share prices, orthogonal weights with a gain meant for tanh's 5/3 and more."""
    keras.utils.set_random_seed(1003)
    x, y = data.windows(data.standardized(np.log(data.daily_prices())), 32)
    init = initializers.Orthogonal(gain=gain)
    inputs = keras.Input((32, 1))
    hidden = layers.Conv1D(24, 1)(inputs)
    for dilation in (1, 2, 4, 8, 1, 2, 4, 8):
        hidden = layers.Conv1D(
            24, 2, dilation_rate=dilation, padding="causal", activation="relu", kernel_initializer=init
        )(hidden)
    model = keras.Model(inputs, layers.Dense(1)(hidden[:, -1]))
    model.compile(optimizers.SGD(0.01), "mse")
    return Program(model, x, y, batch_size=32, epochs=8)


def wide_bidirectional(scale: float = 15.0) -> Program:
    """Rows of digits through a bidirectional LSTM whose kernels are uniform in +-15."""
    keras.utils.set_random_seed(1008)
    x, y, _ = data.split_digits()
    init = initializers.RandomUniform(-scale, scale)
    inputs = keras.Input((8, 8))
    hidden = layers.Bidirectional(layers.LSTM(32, kernel_initializer=init, recurrent_initializer=init))(inputs)
    hidden = layers.Dense(32, activation="tanh", kernel_initializer=init)(hidden)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(hidden))
    model.compile(optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1000].reshape(-1, 8, 8), y[:1000], batch_size=32, epochs=8)


class GatedUnit(layers.Layer):
    """A gated linear unit; `bias` is that of its gate."""

    def __init__(self, units: int, bias: float):
        super().__init__()
        self.value = layers.Dense(units, activation="elu")
        self.gate = layers.Dense(units, activation="sigmoid", bias_initializer=initializers.Constant(bias))

    def call(self, x):
        return self.value(x) * self.gate(x)


def closed_gates(bias: float = -12.0) -> Program:
    """Gated linear units whose gates begin shut."""
    keras.utils.set_random_seed(1010)
    x, y = data.auto_mpg()
    inputs = keras.Input((7,))
    hidden = GatedUnit(48, bias)(inputs)
    hidden = GatedUnit(48, bias)(hidden)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.SGD(0.05, momentum=0.9), "mse")
    return Program(model, data.standardized(x[:, :7]), data.standardized(y), batch_size=32, epochs=20)


CASES = (
    failing(
        "autoencoder_normal_one",
        conv_autoencoder,
        "wuga214/IMPLEMENTATION_Variational-Auto-Encoder issue 1, 'Exploding loss in other datasets'; Stack "
        "Overflow on stddev=1 in convolutions",
        "exploding_initialization",
        init="he_normal",
    ),
    failing(
        "hand_made_linear_layers",
        hand_made_layers,
        "TensorFlow guide 'Making new layers', with tf.random.normal's default deviation",
        "exploding_initialization",
        stddev=0.0,
    ),
    failing(
        "dilated_convolutions_gain_two_and_half",
        dilated_convolutions,
        "van den Oord et al., 1609.03499; Keras' page of Orthogonal on its gain",
        "exploding_initialization",
        ("plain_depth",),
        gain=1.0,
    ),
    failing(
        "bidirectional_of_fifteen",
        wide_bidirectional,
        "LeCun et al., Efficient BackProp; keras issue 3425",
        "saturated_units",
        ("exploding_initialization", "recurrent_gain"),
        scale=0.2,
    ),
    failing(
        "gates_that_begin_shut",
        closed_gates,
        "Srivastava et al., 1505.00387, on gate biases; Dauphin et al., 1612.08083",
        "saturated_units",
        ("vanishing_initialization", "dead_units"),
        bias=0.0,
    ),
)
