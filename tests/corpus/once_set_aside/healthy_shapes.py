"""Sound nets whose shape, depth or weights may look suspicious."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers

from tests.corpus import data
from tests.corpus.case import Case, Program
from tests.corpus.once_set_aside.generative import VariationalAutoencoder


def mobile_net() -> Program:
    """MobileNet from keras.applications with random weights, on digits blown up to 32 x 32."""
    keras.utils.set_random_seed(101)
    x, y = data.digits()
    x, y = np.kron(x[:400].reshape(-1, 8, 8, 1) / 8.0 - 1.0, np.ones((1, 4, 4, 3))).astype("float32"), y[:400]
    model = keras.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=10, dropout=0.0)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 40, 8)


def normalized_ten() -> Program:
    """Ten layers with batch normalization and no skip: large gradients at first, and it learns at once."""
    keras.utils.set_random_seed(102)
    x, y = data.digits()
    model = keras.Sequential([keras.Input((64,)), layers.Rescaling(1 / 16.0)])
    for _ in range(10):
        model.add(layers.Dense(64, use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.Dense(10, "softmax"))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 64, 8)


def self_normalizing() -> Program:
    """Twelve SELU layers with LeCun weights and alpha dropout."""
    keras.utils.set_random_seed(103)
    x, y = data.breast_cancer()
    x = data.standardized(x)
    model = keras.Sequential([keras.Input((30,))])
    for _ in range(12):
        model.add(layers.Dense(48, "selu", kernel_initializer="lecun_normal"))
        model.add(layers.AlphaDropout(0.02))
    model.add(layers.Dense(1, "sigmoid"))
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x[:450], y[:450], 32, 10, (x[450:], y[450:]))


def deep_tanh() -> Program:
    """Twelve tanh layers with Keras' default weights: deep, plain and all right."""
    keras.utils.set_random_seed(104)
    x, y = data.wine()
    x = data.standardized(x)
    inputs = keras.Input((13,))
    hidden = inputs
    for _ in range(12):
        hidden = layers.Dense(64, "tanh")(hidden)
    outputs = layers.Dense(3, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 16, 15)


class ReZeroBlock(layers.Layer):
    """A residual block that starts as the identity: its branch is multiplied by a weight that starts at 0."""

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.outer = layers.Dense(width, "relu", kernel_initializer="he_normal"), layers.Dense(width)

    def build(self, shape):
        self.strength = self.add_weight(shape=(), initializer="zeros")
        super().build(shape)

    def call(self, x):
        return x + self.strength * self.outer(self.inner(x))


def zero_start() -> Program:
    """Ten ReZero blocks: their inner weights get no gradient at all in the first step."""
    keras.utils.set_random_seed(105)
    x, y = data.digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(48)(layers.Rescaling(1 / 16.0)(inputs))
    for _ in range(10):
        hidden = ReZeroBlock(48)(hidden)
    outputs = layers.Dense(10, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 64, 6)


def very_wide() -> Program:
    """A single layer of 4096 units before ten: three million parameters for 1,500 images."""
    keras.utils.set_random_seed(106)
    x, y = data.mnist(1500)
    x = x.reshape(-1, 784) / 255.0
    model = keras.Sequential([keras.Input((784,)), layers.Dense(4096, "relu"), layers.Dense(10, "softmax")])
    model.compile(keras.optimizers.Adam(0.0003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 64, 4)


def bottleneck() -> Program:
    """A neck of three units between wide layers, as autoencoders for pictures of data have it."""
    keras.utils.set_random_seed(107)
    x, _ = data.digits()
    x = (x / 16.0).astype("float32")
    model = keras.Sequential([keras.Input((64,))])
    for width in (128, 32, 3, 32, 128):
        model.add(layers.Dense(width, "elu" if width > 3 else None))
    model.add(layers.Dense(64, "sigmoid"))
    model.compile(keras.optimizers.Nadam(0.002), "binary_crossentropy", metrics=["mse"])
    return Program(model, x, x.copy(), 64, 10)


def logistic_unit() -> Program:
    """A single unit, with a rate of one half and no hidden layer: logistic regression."""
    keras.utils.set_random_seed(108)
    x, y = data.breast_cancer()
    x = data.standardized(x)
    model = keras.Sequential([keras.Input((30,)), layers.Dense(1, "sigmoid", kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x[:450], y[:450], 64, 10, (x[450:], y[450:]))


def learned_slopes() -> Program:
    """Convolutions with PReLU, depthwise separable, strided, without any pooling."""
    keras.utils.set_random_seed(109)
    x, y = data.mnist(1500)
    x = (x / 127.5 - 1.0).astype("float32")[..., None]
    model = keras.Sequential([keras.Input((28, 28, 1))])
    model.add(layers.Conv2D(12, 5, strides=2))
    model.add(layers.PReLU(shared_axes=[1, 2]))
    model.add(layers.SeparableConv2D(24, 3, strides=2))
    model.add(layers.PReLU(shared_axes=[1, 2]))
    model.add(layers.Flatten())
    model.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.RMSprop(), loss, metrics=["accuracy"])
    return Program(model, x, y, 32, 5)


def random_features() -> Program:
    """A frozen layer of random tanh features, some of them near their stops, and a trainable one on top."""
    keras.utils.set_random_seed(110)
    x, y = data.digits()
    inputs = keras.Input((64,))
    wide = initializers.RandomNormal(stddev=0.25)
    frozen = layers.Dense(600, "tanh", kernel_initializer=wide, trainable=False)(layers.Rescaling(1 / 16.0)(inputs))
    outputs = layers.Dense(10, "softmax")(frozen)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 6)


def pre_activation() -> Program:
    """A residual net of ten pre-activation blocks on the small digits."""
    keras.utils.set_random_seed(111)
    x, y = data.digits()
    x, y = x[:900].reshape(-1, 8, 8, 1) / 16.0, y[:900]
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    for _ in range(10):
        branch = layers.Activation("relu")(layers.BatchNormalization()(hidden))
        branch = layers.Conv2D(8, 3, padding="same", use_bias=False)(branch)
        hidden = layers.Add()([hidden, branch])
    hidden = layers.Activation("relu")(layers.BatchNormalization()(hidden))
    outputs = layers.Dense(10, "softmax")(layers.Flatten()(hidden))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 4)


def small_vae() -> Program:
    """A variational autoencoder with a train step of its own; its loss is a sum over pixels, in the hundreds."""
    keras.utils.set_random_seed(112)
    x, _ = data.mnist(1500)
    x = (x.reshape(-1, 784) / 255.0).astype("float32")
    model = VariationalAutoencoder(784, 2, 128)
    model.compile(optimizer=keras.optimizers.Adam(0.001))
    return Program(model, x, None, 64, 6)


CASES = tuple(
    Case(build.__name__, build, source)
    for build, source in (
        (mobile_net, "keras.applications.MobileNet, weights=None"),
        (normalized_ten, "Ioffe and Szegedy 2015; Yang et al. 2019 at depths that train"),
        (self_normalizing, "Klambauer et al. 2017, Self-Normalizing Neural Networks"),
        (deep_tanh, "Glorot and Bengio 2010"),
        (zero_start, "Bachlechner et al. 2021, ReZero is All You Need"),
        (very_wide, "Lee et al. 2019, Wide Neural Networks of Any Depth Evolve as Linear Models"),
        (bottleneck, "Hinton and Salakhutdinov 2006; Keras blog, Building Autoencoders in Keras"),
        (logistic_unit, "Keras documentation, a single Dense unit; zero weights are right for a convex loss"),
        (learned_slopes, "He et al. 2015 (PReLU); Chollet 2017 (Xception)"),
        (random_features, "Huang et al. 2006, extreme learning machine; Keras guide, Transfer learning: frozen layers"),
        (pre_activation, "He et al. 2016, Identity Mappings in Deep Residual Networks"),
        (small_vae, "keras example generative/vae.py"),
    )
)
