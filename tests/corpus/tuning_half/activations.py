"""Dense nets that fail by their activations, and what mends them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import keras
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STANDARD_NORMAL = initializers.RandomNormal(stddev=1.0)


def _digits() -> tuple:
    x, y = data.digits()
    return x[:1400] / 16, y[:1400], (x[1400:] / 16, y[1400:])


def sigmoid_stack(activation: str = "sigmoid") -> Program:
    """Eight sigmoid layers with Glorot's weights: each passes back at most a quarter."""
    keras.utils.set_random_seed(24)
    x, y, validation = _digits()
    model = keras.Sequential([layers.Input((64,))])
    for _ in range(8):
        model.add(layers.Dense(64, activation=activation))
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, epochs=10, validation_data=validation)


def saturated_tanh(weights: initializers.Initializer | str = STANDARD_NORMAL) -> Program:
    """tanh layers whose weights come from the standard normal distribution: every unit sits at -1 or 1."""
    keras.utils.set_random_seed(25)
    x, y = data.mnist(1500)
    model = keras.Sequential(
        [
            layers.Input((28, 28)),
            layers.Flatten(),
            *[layers.Dense(256, activation="tanh", kernel_initializer=weights) for _ in range(7)],
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x / 255, y, epochs=6)


def born_dead(activation: str = "relu") -> Program:
    """Narrow and deep: a chain of ReLU layers of three units, in which one dead layer silences all."""
    keras.utils.set_random_seed(26)
    x, y = data.iris()
    model = keras.Sequential([layers.Input((4,))])
    for _ in range(10):
        model.add(layers.Dense(3, activation=activation, kernel_initializer="he_normal"))
    model.add(layers.Dense(3, activation="softmax"))
    model.compile(optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=16, epochs=25)


def sparse_by_bias(bias: float = -4.0) -> Program:
    """Hidden ReLUs with a large negative bias, meant to make their activity sparse."""
    keras.utils.set_random_seed(27)
    x, y, validation = _digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(128, activation="relu", bias_initializer=initializers.Constant(bias))(inputs)
    hidden = layers.Dense(128, activation="relu", bias_initializer=initializers.Constant(bias))(hidden)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(hidden))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, epochs=8, validation_data=validation)


def polynomial(activation: Callable | str = ops.square) -> Program:
    """Squares for activations, as nets on encrypted data need them, four layers deep."""
    keras.utils.set_random_seed(30)
    x, y, validation = _digits()
    model = keras.Sequential([layers.Input((64,))])
    for width in (128, 128, 64, 64):
        model.add(layers.Dense(width, activation=activation))
    model.add(layers.Dense(10))
    model.compile(optimizers.SGD(0.05), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, epochs=10, validation_data=validation)


def exponential_rates(hidden: str = "exponential") -> Program:
    """Regression with exponential units throughout, because the target is positive."""
    keras.utils.set_random_seed(31)
    x, y = data.boston()
    model = keras.Sequential(
        [
            layers.Input((13,)),
            layers.Dense(32, activation=hidden),
            layers.Dense(32, activation=hidden),
            layers.Dense(1, activation="exponential"),
        ]
    )
    model.compile(optimizers.Adam(0.003), "poisson")
    return Program(model, data.standardized(x), y / 10, epochs=15)


def _case(name: str, build: Callable[..., Program], source: str, cause: str, accepted: tuple = (), **mended) -> Case:
    return Case(name, build, source, cause, accepted, partial(build, **mended))


CASES = (
    _case(
        "eight_sigmoid_layers",
        sigmoid_stack,
        "Glorot, Bengio, 2010, on sigmoids in deep nets; keras issue 6447, comments: vanishing gradients",
        "vanishing_initialization",
        ("saturated_units", "plain_depth"),
        activation="tanh",
    ),
    _case(
        "tanh_with_the_standard_normal",
        saturated_tanh,
        "LeCun et al., 'Efficient BackProp', section 4.6: weights that push sigmoids into saturation",
        "saturated_units",
        ("exploding_initialization",),
        weights="glorot_normal",
    ),
    _case(
        "narrow_and_born_dead",
        born_dead,
        "Lu et al., 1903.06733: deep narrow ReLU nets are born dead",
        "dead_units",
        ("plain_depth",),
        activation="elu",
    ),
    _case(
        "bias_that_silences",
        sparse_by_bias,
        "Stanford CS231n notes and keras issue 7057 on ReLUs that never fire",
        "dead_units",
        bias=0.0,
    ),
    _case(
        "squares_for_activations",
        polynomial,
        "Gilad-Bachrach et al., CryptoNets, 2016: square activations, and why such nets stay shallow",
        "unbounded_activation",
        activation="relu",
    ),
    _case(
        "exponentials_for_activations",
        exponential_rates,
        "Keras' page of activations: exponential has no bound; keras issue 6615 on activations that give NaN",
        "unbounded_activation",
        hidden="softplus",
    ),
)
