"""Programs that fail by their first weights or their depth, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Tower(keras.Model):
    """Swish layers in a row."""

    def __init__(self, units: int, depth: int, init: initializers.Initializer, out: int):
        super().__init__()
        self.stack = [layers.Dense(units, activation="swish", kernel_initializer=init) for _ in range(depth)]
        self.head = layers.Dense(out)

    def call(self, x):
        for layer in self.stack:
            x = layer(x)
        return self.head(x)


def variance_of_thirty(scale: float = 30.0) -> Program:
    """Eight swish layers whose weights have fifteen times He's variance."""
    keras.utils.set_random_seed(311)
    x, y = data.auto_mpg()
    model = Tower(80, 8, initializers.VarianceScaling(scale, mode="fan_in"), 1)
    model.compile(optimizers.SGD(0.003, momentum=0.9), "mse")
    return Program(model, data.standardized(x[:, :7]), data.standardized(y), batch_size=32, epochs=15)


def upsampling(limit: float = 1.0) -> Program:
    """An autoencoder of strided convolutions whose weights are uniform from -1 to 1."""
    keras.utils.set_random_seed(312)
    x, _ = data.digits()
    x = x.reshape(-1, 8, 8, 1)[:1200] / 16
    weights = initializers.RandomUniform(-limit, limit, seed=1) if limit else "glorot_uniform"
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", kernel_initializer=weights)(inputs)
    hidden = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu", kernel_initializer=weights)(hidden)
    hidden = layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu", kernel_initializer=weights)(
        hidden
    )
    hidden = layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu", kernel_initializer=weights)(
        hidden
    )
    model = keras.Model(inputs, layers.Conv2D(1, 3, padding="same", kernel_initializer=weights)(hidden))
    model.compile(optimizers.SGD(0.05, momentum=0.9), "mse")
    return Program(model, x, x, batch_size=32, epochs=8)


def faint_convolutions(stddev: float = 0.004) -> Program:
    """Waves by five convolutions from weights of four thousandths."""
    keras.utils.set_random_seed(313)
    rng = np.random.default_rng(0)
    times = np.linspace(0, 1, 96)
    kind = rng.integers(0, 4, 1000)
    waves = np.stack(
        [np.sin(20 * times), np.sign(np.sin(20 * times)), (20 * times / np.pi) % 2 - 1, np.sin(20 * times) ** 3]
    )
    x = (waves[kind] + rng.normal(scale=0.15, size=(1000, 96))).astype("float32")[..., None]
    init = initializers.RandomNormal(stddev=stddev) if stddev else "he_normal"
    model = keras.Sequential([layers.Input((96, 1))])
    for _ in range(5):
        model.add(
            layers.Conv1D(
                24,
                5,
                strides=2 if len(model.layers) < 3 else 1,
                padding="same",
                activation="relu",
                kernel_initializer=init,
            )
        )
    model.add(layers.GlobalAveragePooling1D())
    model.add(layers.Dense(4, activation="softmax"))
    model.compile(optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, kind, batch_size=32, epochs=8)


def faint_uniform(limit: float = 0.01) -> Program:
    """SELU layers from weights of a hundredth and less."""
    keras.utils.set_random_seed(314)
    x, y = data.breast_cancer()
    x = data.standardized(x)
    init = initializers.RandomUniform(-limit, limit) if limit else "lecun_normal"
    means, rest = keras.Input((10,), name="mean"), keras.Input((20,), name="rest")
    hidden = layers.Concatenate()(
        [
            layers.Dense(20, activation="selu", kernel_initializer=init)(means),
            layers.Dense(20, activation="selu", kernel_initializer=init)(rest),
        ]
    )
    for _ in range(6):
        hidden = layers.Dense(20, activation="selu", kernel_initializer=init)(hidden)
    model = keras.Model([means, rest], layers.Dense(1, activation="sigmoid", kernel_initializer=init)(hidden))
    model.compile(optimizers.SGD(0.02, momentum=0.9), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, (x[:, :10], x[:, 10:]), y, batch_size=16, epochs=8)


def plain_strip(skip: bool = False) -> Program:
    """Thirty-six convolutions in a row over a row of pixels."""
    keras.utils.set_random_seed(315)
    x, y = data.digits()
    inputs = keras.Input((64, 1))
    hidden = layers.Conv1D(12, 3, strides=2, padding="same")(inputs)
    for _ in range(36):
        branch = layers.Conv1D(12, 3, padding="same", activation="relu", kernel_initializer="he_normal")(hidden)
        hidden = layers.Add()([hidden, layers.Rescaling(0.05)(branch)]) if skip else branch
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(hidden)))
    model.compile(optimizers.SGD(0.03, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x[:1000, :, None] / 16, y[:1000], batch_size=32, epochs=8)


CASES = (
    failing(
        "swish_tower_of_variance_thirty",
        variance_of_thirty,
        "He et al., 1502.01852, section 2.2; keras issue 2134",
        "exploding_initialization",
        scale=2.0,
    ),
    failing(
        "upsampling_from_wide_uniform",
        upsampling,
        "wkentaro/pytorch-fcn issue 167",
        "exploding_initialization",
        limit=0,
    ),
    failing(
        "faint_convolutions",
        faint_convolutions,
        "He et al., 1502.01852: weights of 0.01 and less stall deep nets",
        "vanishing_initialization",
        stddev=0,
    ),
    failing(
        "faint_uniform_selu",
        faint_uniform,
        "Klambauer et al., 1706.02515: SELU needs LeCun's weights",
        "vanishing_initialization",
        limit=0,
    ),
    failing(
        "strip_of_plain_convolutions",
        plain_strip,
        "He et al., 1512.03385",
        "plain_depth",
        ("exploding_initialization", "vanishing_initialization"),
        skip=True,
    ),
)
