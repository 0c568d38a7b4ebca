"""Nets whose weights or depth fail before the first step: initialization, plain depth, saturation, dead units."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from keras import initializers, layers

from tests.corpus import data
from tests.corpus.case import Case, Program


def _images(size: int = 14, number: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    x, y = data.mnist(number)
    if size == 14:
        x = x.reshape(-1, 14, 2, 14, 2).mean((2, 4))
    return (x / 255.0).astype("float32")[..., None], y


def normal_weights(broken: bool) -> Program:
    """The multilayer perceptron of the TensorFlow 1 tutorials, whose weights came from tf.random_normal as it is."""
    keras.utils.set_random_seed(11)
    x, y = data.mnist(3000)
    x = x.reshape(-1, 784) / 255.0
    weights = initializers.RandomNormal(stddev=1.0) if broken else "he_normal"
    inputs = keras.Input((784,))
    hidden = layers.Dense(256, "relu", kernel_initializer=weights)(inputs)
    hidden = layers.Dense(256, "relu", kernel_initializer=weights)(hidden)
    hidden = layers.Dense(256, "relu", kernel_initializer=weights)(hidden)
    outputs = layers.Dense(10, kernel_initializer=weights)(hidden)
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    return Program(model, x[:2500], y[:2500], 100, 5, (x[2500:], y[2500:]))


def constant_weights(broken: bool) -> Program:
    """All weights start as 1, as in a report that wondered why Keras would not follow large gradients."""
    keras.utils.set_random_seed(12)
    x, y = data.digits()
    x = x / 16.0
    one = initializers.Constant(1.0) if broken else "he_normal"
    model = keras.Sequential([keras.Input((64,))])
    model.add(layers.Dense(128, "relu", kernel_initializer=one))
    model.add(layers.Dense(128, "relu", kernel_initializer=one))
    model.add(layers.Dense(10, "softmax", kernel_initializer=one))
    model.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, keras.utils.to_categorical(y, 10), 32, 5)


class SmallVgg(keras.Model):
    """Stacked 3 x 3 convolutions as VGG has them, written as a subclass."""

    def __init__(self, weights: str | initializers.Initializer):
        super().__init__()
        self.stages = [
            layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer=weights)
            for filters in (16, 16, 32, 32, 32, 48, 48, 48)
        ]
        self.pool = layers.MaxPooling2D()
        self.flatten = layers.Flatten()
        self.hidden = layers.Dense(64, "relu", kernel_initializer=weights)
        self.scores = layers.Dense(10, "softmax", kernel_initializer=weights)

    def call(self, x):
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in (1, 4):
                x = self.pool(x)
        return self.scores(self.hidden(self.flatten(x)))


def narrow_gaussian(broken: bool) -> Program:
    """AlexNet's recipe, a Gaussian of 0.01 for all weights, in a deeper convolutional net."""
    keras.utils.set_random_seed(13)
    x, y = _images()
    model = SmallVgg(initializers.RandomNormal(stddev=0.01) if broken else "he_normal")
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 64, 4)


def zero_weights(broken: bool) -> Program:
    """Weights that all start as zero: the hidden layers get no gradient at all."""
    keras.utils.set_random_seed(14)
    x, y = data.wine()
    x = data.standardized(x)
    weights = "zeros" if broken else "glorot_uniform"
    model = keras.Sequential([keras.Input((13,))])
    for width in (32, 16):
        model.add(layers.Dense(width, "relu", kernel_initializer=weights))
    model.add(layers.Dense(3, "softmax", kernel_initializer=weights))
    model.compile("rmsprop", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 16, 20)


def plain_hundred(broken: bool) -> Program:
    """Highway Networks' baseline: a hundred plain layers of fifty units; its twin has ten."""
    keras.utils.set_random_seed(15)
    x, y = data.digits()
    x = x / 16.0
    inputs = keras.Input((64,))
    hidden = layers.Dense(50, "relu", kernel_initializer="he_normal")(inputs)
    for _ in range(99 if broken else 9):
        hidden = layers.Dense(50, "relu", kernel_initializer="he_normal")(hidden)
    outputs = layers.Dense(10, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 64, 8)


def deep_sigmoid(broken: bool) -> Program:
    """Nielsen's experiment with more and more sigmoid layers; the twin keeps one of them."""
    keras.utils.set_random_seed(16)
    x, y = data.mnist(2500)
    x = x.reshape(-1, 784) / 255.0
    model = keras.Sequential([keras.Input((784,))])
    for _ in range(8 if broken else 1):
        model.add(layers.Dense(30, "sigmoid"))
    model.add(layers.Dense(10, "softmax"))
    model.compile(keras.optimizers.SGD(0.5), "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, keras.utils.to_categorical(y, 10), 32, 6)


def saturated_tanh(broken: bool) -> Program:
    """A tanh classifier whose weights are drawn with a standard deviation of 1 per weight, whatever the fan-in."""
    keras.utils.set_random_seed(17)
    x, y = data.mnist(2500)
    x = x.reshape(-1, 784) / 255.0
    weights = initializers.RandomNormal(0.0, 1.0) if broken else "glorot_normal"
    inputs = keras.Input((784,))
    hidden = inputs
    for _ in range(5):
        hidden = layers.Dense(100, "tanh", kernel_initializer=weights)(hidden)
    outputs = layers.Dense(10, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 50, 6)


def quadratic_sigmoid(broken: bool) -> Program:
    """Sigmoid units and quadratic cost, weights and biases drawn from N(0, 1), as in Nielsen's first network.py."""
    keras.utils.set_random_seed(18)
    x, y = data.digits()
    normal = initializers.RandomNormal(0.0, 1.0)
    weights, biases = (normal, normal) if broken else ("glorot_normal", "zeros")
    model = keras.Sequential([keras.Input((64,)), layers.Rescaling(1 / 16.0)])
    model.add(layers.Dense(200, "sigmoid", kernel_initializer=weights, bias_initializer=biases))
    model.add(layers.Dense(10, "sigmoid", kernel_initializer=weights, bias_initializer=biases))
    model.compile(keras.optimizers.SGD(3.0), "mean_squared_error", metrics=["accuracy"])
    return Program(model, x, keras.utils.to_categorical(y, 10), 32, 10)


def narrow_relu(broken: bool) -> Program:
    """Ten ReLU layers of two units that shall learn |x|: most such nets are born dead."""
    keras.utils.set_random_seed(19)
    rng = np.random.default_rng(19)
    x = rng.uniform(-1.7, 1.7, (1500, 1)).astype("float32")
    y = np.abs(x)
    model = keras.Sequential([keras.Input((1,))])
    for _ in range(10):
        model.add(layers.Dense(2 if broken else 24, "relu", kernel_initializer="he_uniform"))
    model.add(layers.Dense(1))
    model.compile(keras.optimizers.Adam(0.002), "mse")
    return Program(model, x, y, 64, 15)


def relu_output(broken: bool) -> Program:
    """Prices are never negative, so the last layer got a ReLU; with this seed it starts below zero for every row."""
    keras.utils.set_random_seed(30)
    x, y = data.boston()
    low, high = x.min(0), x.max(0)
    x = ((x - low) / (high - low)).astype("float32")
    y = (y / 50.0).astype("float32")
    model = keras.Sequential([keras.Input((13,))])
    model.add(layers.Dense(13, "relu"))
    model.add(layers.Dense(1, "relu" if broken else None))
    model.compile("adam", "mean_squared_error", metrics=["mae"])
    return Program(model, x, y, 32, 20)


def _case(build, cause, source, accepted=()) -> Case:
    return Case(build.__name__, partial(build, True), source, cause, accepted, partial(build, False))


CASES = (
    _case(
        normal_weights,
        "exploding_initialization",
        "aymericdamien/TensorFlow-Examples, multilayer_perceptron: tf.random_normal without a scale, one layer more",
    ),
    _case(constant_weights, "exploding_initialization", "keras issue 10847"),
    _case(
        narrow_gaussian,
        "vanishing_initialization",
        "Krizhevsky et al. 2012 (N(0, 0.01)) in the nets of Simonyan and Zisserman 2014, section 3.1; He et al. 2015",
    ),
    _case(
        zero_weights,
        "vanishing_initialization",
        "Stack Overflow: Why should weights of neural networks be initialized to random numbers?",
        ("dead_units",),
    ),
    _case(
        plain_hundred, "plain_depth", "Srivastava, Greff, Schmidhuber 2015, Highway Networks: plain nets of 100 layers"
    ),
    _case(
        deep_sigmoid,
        "plain_depth",
        "Nielsen, Neural Networks and Deep Learning, chapter 5; keras issue 2711",
        ("vanishing_initialization",),
    ),
    _case(
        saturated_tanh,
        "saturated_units",
        "Glorot and Bengio 2010; Dive into Weight Initialization (austinyhc.github.io, 2021)",
        ("exploding_initialization",),
    ),
    _case(
        quadratic_sigmoid,
        "saturated_units",
        "Nielsen, Neural Networks and Deep Learning, chapters 1 and 3: large normal weights, quadratic cost",
        ("exploding_initialization",),
    ),
    _case(narrow_relu, "dead_units", "Lu et al. 2019, Dying ReLU and Initialization", ("plain_depth",)),
    _case(relu_output, "dead_units", "keras issues 5173 and 3687: predicts zeros only", ("loss_output_mismatch",)),
)
