"""Programs that fail by their first weights or their depth, and what mends them."""

from __future__ import annotations

import keras
from keras import initializers, layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def convnet_of_wide_normal(init: str | None = None) -> Program:
    """Five convolutions whose weights have a standard deviation of one half."""
    keras.utils.set_random_seed(11)
    x, y, validation = data.split_digits(images=True)
    init = init or initializers.RandomNormal(mean=0.0, stddev=0.5)
    model = keras.Sequential([layers.Input((8, 8, 1))])
    for filters in (16, 16, 32, 32, 32):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer=init))
    model.add(layers.GlobalMaxPooling2D())
    model.add(layers.Dense(10, activation="softmax", kernel_initializer=init))
    model.compile(optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8, validation_data=validation)


def uniform_regressor(init: str | None = None) -> Program:
    """Five layers whose weights are uniform from -1 to 1."""
    keras.utils.set_random_seed(12)
    x, y = data.diabetes()
    init = init or initializers.RandomUniform(minval=-1, maxval=1, seed=3)
    inputs = keras.Input((10,))
    hidden = inputs
    for units in (200, 100, 100, 50):
        hidden = layers.Dense(units, activation="relu", kernel_initializer=init)(hidden)
    out = layers.Dense(1, kernel_initializer=init)(hidden)
    model = keras.Model(inputs, out)
    model.compile(optimizers.SGD(0.01), "mean_squared_error")
    return Program(model, data.standardized(x), data.standardized(y), batch_size=32, epochs=20)


def tiny_normal(stddev: float = 0.001) -> Program:
    """Six layers from weights of one thousandth."""
    keras.utils.set_random_seed(13)
    x, y = data.mnist(1500)
    init = initializers.RandomNormal(stddev=stddev)
    inputs = keras.Input((28, 28))
    hidden = layers.Flatten()(inputs)
    for _ in range(5):
        hidden = layers.Dense(100, activation="tanh", kernel_initializer=init)(hidden)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax", kernel_initializer=init)(hidden))
    model.compile(optimizers.SGD(0.1, momentum=0.5), "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x / 255, keras.utils.to_categorical(y), batch_size=50, epochs=5)


def all_zeros(init: str = "zeros") -> Program:
    """All weights zero: no unit fires, and no gradient passes."""
    keras.utils.set_random_seed(14)
    x, y = data.breast_cancer()
    model = keras.Sequential(
        [
            layers.Input((30,)),
            layers.Dense(32, activation="relu", kernel_initializer=init),
            layers.Dense(16, activation="relu", kernel_initializer=init),
            layers.Dense(1, activation="sigmoid", kernel_initializer=init),
        ]
    )
    model.compile(optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=32, epochs=10)


def sixty_layers(skip: bool = False) -> Program:
    """Sixty ReLU layers of sixteen units in a row, for a table of thirteen columns."""
    keras.utils.set_random_seed(15)
    x, y = data.wine()
    inputs = keras.Input((13,))
    hidden = layers.Dense(16)(inputs)
    for _ in range(60):
        branch = layers.Dense(16, activation="relu", kernel_initializer="he_uniform")(hidden)
        hidden = layers.Add()([hidden, layers.Dense(16, kernel_initializer="zeros")(branch)]) if skip else branch
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    model.compile(optimizers.SGD(0.01), LOGITS, metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=16, epochs=10)


CASES = (
    failing(
        "convnet_normal_half",
        convnet_of_wide_normal,
        "wkentaro/pytorch-fcn issue 167: explosion after a changed weight initialization",
        "exploding_initialization",
        init="he_normal",
    ),
    failing(
        "regressor_uniform_one",
        uniform_regressor,
        "Stack Overflow 37232782, comments on initial weights; keras issue 2134",
        "exploding_initialization",
        init="glorot_uniform",
    ),
    failing(
        "tanh_of_one_thousandth",
        tiny_normal,
        "CS231n notes on small random numbers in deep tanh nets",
        "vanishing_initialization",
        stddev=0.1,
    ),
    failing(
        "all_weights_zero",
        all_zeros,
        "Stack Overflow 20027598, on why weights are not set to zero",
        "vanishing_initialization",
        ("dead_units",),
        init="glorot_uniform",
    ),
    failing(
        "sixty_layers_for_wine",
        sixty_layers,
        "He et al., 1512.03385; Srivastava et al., 1505.00387",
        "plain_depth",
        ("exploding_initialization", "vanishing_initialization"),
        skip=True,
    ),
)
