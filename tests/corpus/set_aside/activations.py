"""Programs that fail by their activations or by biases that shut them, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Product(layers.Layer):
    """The product of two linear maps."""

    def __init__(self, units: int, gate: str | None):
        super().__init__()
        self.a = layers.Dense(units, kernel_initializer="he_normal")
        self.b = layers.Dense(units, activation=gate, kernel_initializer="he_normal")

    def call(self, x):
        return self.a(x) * self.b(x)


def products(gate: str | None = None) -> Program:
    """Five products of linear maps in a row: each doubles the degree."""
    keras.utils.set_random_seed(316)
    x, y = data.digits()
    model = keras.Sequential(
        [
            layers.Input((64,)),
            Product(96, gate),
            Product(96, gate),
            Product(96, gate),
            Product(96, gate),
            Product(96, gate),
            layers.Dense(10),
        ]
    )
    model.compile(optimizers.SGD(0.01), LOGITS, metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=32, epochs=10)


def exponential_convnet(activation: str = "exponential") -> Program:
    """A convnet whose activation is the exponential."""
    keras.utils.set_random_seed(317)
    x, y = data.mnist(1200)
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(12, 5, strides=2, activation=activation),
            layers.Conv2D(12, 3, strides=2, activation=activation),
            layers.Flatten(),
            layers.Dense(32, activation=activation),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[..., None] / 255, y, batch_size=32, epochs=5)


def shut_gates(bias: float = 20.0) -> Program:
    """The trick of the forget gate's bias on a GRU, for every gate: nothing is ever let in."""
    keras.utils.set_random_seed(318)
    x, y = data.mnist(1200)
    inputs = keras.Input((28, 28))
    hidden = layers.GRU(48, bias_initializer=initializers.Constant(bias))(inputs)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(hidden))
    model.compile(optimizers.Adam(0.003), "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x / 255, keras.utils.to_categorical(y), batch_size=32, epochs=6)


def biased_code(bias: float = 18.0) -> Program:
    """Sigmoid units with a bias of 18."""
    keras.utils.set_random_seed(319)
    x, _ = data.digits()
    bias = initializers.Constant(bias)
    model = keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(48, activation="sigmoid", bias_initializer=bias),
            layers.Dense(24, activation="sigmoid", bias_initializer=bias),
            layers.Dense(48, activation="tanh", bias_initializer=bias),
            layers.Dense(64),
        ]
    )
    model.compile(optimizers.Adam(0.005), "mse")
    return Program(model, data.standardized(x), data.standardized(x), batch_size=32, epochs=12)


def shifted_norm(beta: float = -7.0) -> Program:
    """BatchNorm whose shift begins far below zero, and a ReLU behind it."""
    keras.utils.set_random_seed(320)
    x, y = data.wine()
    inputs = keras.Input((13,))
    hidden = inputs
    for _ in range(3):
        hidden = layers.Dense(32, use_bias=False)(hidden)
        hidden = layers.BatchNormalization(beta_initializer=initializers.Constant(beta))(hidden)
        hidden = layers.ReLU()(hidden)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(hidden))
    model.compile(optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=32, epochs=20)


class Hinges(keras.Model):
    """ReLU units whose knees all lie outside of the data."""

    def __init__(self, knee: float):
        super().__init__()
        self.first = layers.Dense(40, activation="relu", bias_initializer=initializers.Constant(-knee))
        self.second = layers.Dense(40, activation="relu")
        self.last = layers.Dense(1)

    def call(self, x):
        return self.last(self.second(self.first(x)))


def far_knees(knee: float = 6.0) -> Program:
    """A sine by ReLUs whose knees are out of reach."""
    keras.utils.set_random_seed(321)
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, (1200, 2)).astype("float32")
    y = data.standardized(np.sin(2 * x[:, 0]) * x[:, 1])
    model = Hinges(knee)
    model.compile(optimizers.RMSprop(0.003), "mse")
    return Program(model, x, y, batch_size=32, epochs=15)


CASES = (
    failing(
        "products_of_linear_maps",
        products,
        "Stack Overflow on multiplicative layers that overflow; Shazeer, 2002.05202, on gates",
        "unbounded_activation",
        ("exploding_initialization", "missing_normalization"),
        gate="sigmoid",
    ),
    failing(
        "exponential_convnet",
        exponential_convnet,
        "tensorflow issue 53779 on the exponential activation",
        "unbounded_activation",
        activation="elu",
    ),
    failing(
        "gates_that_are_shut",
        shut_gates,
        "Jozefowicz et al., 2015, on the bias of the forget gate; Karpathy et al., 1506.02078, on saturated gates",
        "saturated_units",
        ("vanishing_initialization",),
        bias=0.0,
    ),
    failing(
        "biases_of_eighteen",
        biased_code,
        "LeCun et al., Efficient BackProp; Glorot, Bengio, 2010",
        "saturated_units",
        ("exploding_initialization",),
        bias=0.0,
    ),
    failing(
        "batch_norm_shifted_below_zero",
        shifted_norm,
        "Keras' page of BatchNormalization on beta_initializer; keras issue 7057 on dead ReLUs",
        "dead_units",
        beta=0.0,
    ),
    failing(
        "knees_out_of_reach",
        far_knees,
        "community.deeplearning.ai thread 324182 on loss values that do not change",
        "dead_units",
        knee=0.0,
    ),
)
