"""Programs that fail by their activations or by weights that shut them, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def cubes(act: str | None = None) -> Program:
    """Cubes for activations."""
    keras.utils.set_random_seed(16)
    x, y = data.boston()
    act = act or (lambda t: t**3)
    model = keras.Sequential(
        [
            layers.Input((13,)),
            layers.Dense(64, activation=act),
            layers.Dense(64, activation=act),
            layers.Dense(32, activation=act),
            layers.Dense(1),
        ]
    )
    model.compile(optimizers.Adam(0.001), "mse", metrics=["mae"])
    return Program(model, data.standardized(x), data.standardized(y), batch_size=32, epochs=20)


def steep_leak(slope: float = 3.0) -> Program:
    """Ten layers whose leak is 3; it was meant to be 0.3."""
    keras.utils.set_random_seed(17)
    x, y, validation = data.split_digits()
    model = keras.Sequential([layers.Input((64,))])
    for _ in range(10):
        model.add(layers.Dense(96))
        model.add(layers.LeakyReLU(negative_slope=slope))
    model.add(layers.Dense(10))
    model.compile(optimizers.SGD(0.02), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8, validation_data=validation)


def tanh_convnet(stddev: float = 8.0) -> Program:
    """Tanh layers whose weights have a standard deviation of eight."""
    keras.utils.set_random_seed(18)
    x, y, validation = data.split_digits(images=True)
    wide = initializers.TruncatedNormal(stddev=stddev)
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="tanh", kernel_initializer=wide),
            layers.Conv2D(16, 3, activation="tanh", kernel_initializer=wide),
            layers.Flatten(),
            layers.Dense(64, activation="tanh", kernel_initializer=wide),
            layers.Dense(64, activation="tanh", kernel_initializer=wide),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=64, epochs=10, validation_data=validation)


def ones_everywhere(init: str = "ones") -> Program:
    """Sigmoid layers whose weights are all one."""
    keras.utils.set_random_seed(19)
    x, y = data.mnist(1500)
    model = keras.Sequential()
    model.add(layers.Input((784,)))
    model.add(layers.Dense(64, activation="sigmoid", kernel_initializer=init))
    model.add(layers.Dense(32, activation="sigmoid", kernel_initializer=init))
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(optimizers.Adam(0.005), "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x.reshape(-1, 784) / 255, keras.utils.to_categorical(y), batch_size=32, epochs=6)


def negative_mean(mean: float = -0.15) -> Program:
    """ReLUs over weights whose mean is below zero, and pixels that never are."""
    keras.utils.set_random_seed(20)
    x, y = data.mnist(1500)
    init = initializers.TruncatedNormal(mean=mean, stddev=0.05)
    inputs = keras.Input((28, 28, 1))
    hidden = layers.Conv2D(16, 3, strides=2, activation="relu", kernel_initializer=init)(inputs)
    hidden = layers.Conv2D(32, 3, strides=2, activation="relu", kernel_initializer=init)(hidden)
    hidden = layers.Flatten()(hidden)
    hidden = layers.Dense(64, activation="relu", kernel_initializer=init)(hidden)
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(optimizers.Adam(0.002), LOGITS, metrics=["accuracy"])
    return Program(model, x[..., None] / 255, y, batch_size=32, epochs=5)


def monotone(act: str = "relu") -> Program:
    """Weights held at 0 or above, inputs at 0 or below: no ReLU ever fires."""
    keras.utils.set_random_seed(21)
    rng = np.random.default_rng(0)
    x = -rng.uniform(0, 1, (1200, 6)).astype("float32")
    y = data.standardized(np.sqrt(-x).sum(1) * -1 + 0.1 * rng.normal(size=1200))
    model = keras.Sequential([layers.Input((6,))])
    for _ in range(2):
        model.add(
            layers.Dense(
                32,
                activation=act,
                kernel_initializer=initializers.RandomUniform(0, 0.3),
                kernel_constraint=keras.constraints.NonNeg(),
            )
        )
    model.add(layers.Dense(1, kernel_constraint=keras.constraints.NonNeg()))
    model.compile(optimizers.Adam(0.01), "mse")
    return Program(model, x, y, batch_size=32, epochs=15)


CASES = (
    failing(
        "cubes_for_activations",
        cubes,
        "Stack Overflow on custom polynomial activations in Keras that give NaN",
        "unbounded_activation",
        act="tanh",
    ),
    failing(
        "leak_of_three",
        steep_leak,
        "Keras' page of LeakyReLU: alpha against negative_slope",
        "unbounded_activation",
        ("exploding_initialization",),
        slope=0.3,
    ),
    failing(
        "tanh_convnet_from_wide_weights",
        tanh_convnet,
        "LeCun et al., Efficient BackProp, on saturated units",
        "saturated_units",
        ("exploding_initialization",),
        stddev=0.1,
    ),
    failing(
        "sigmoids_from_ones",
        ones_everywhere,
        "Stack Overflow: weights initialized by ones, all outputs the same",
        "saturated_units",
        ("exploding_initialization",),
        init="glorot_uniform",
    ),
    failing(
        "weights_below_zero", negative_mean, "CS231n notes on dead ReLUs; Lu et al., 1903.06733", "dead_units", mean=0.0
    ),
    failing(
        "monotone_net_on_losses",
        monotone,
        "keras issues on NonNeg constraints for monotone nets that predict a constant",
        "dead_units",
        act="elu",
    ),
)
