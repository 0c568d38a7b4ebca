"""Programs that fail by small batches, by BatchNorm or without it, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batch_norm_of_one(batch_size: int = 1) -> Program:
    """BatchNorm over a single sample, which is its own mean."""
    keras.utils.set_random_seed(69)
    x, y = data.breast_cancer()
    model = keras.Sequential()
    model.add(layers.Input((30,)))
    for units in (32, 16):
        model.add(layers.Dense(units))
        model.add(layers.BatchNormalization())
        model.add(layers.Activation("relu"))
    model.add(layers.Dense(1, activation="sigmoid"))
    model.compile(optimizers.Adam(0.003), "binary_crossentropy", metrics=["accuracy"])
    return Program(
        model, data.standardized(x)[:400], y[:400], batch_size=batch_size, epochs=4 if batch_size == 1 else 10
    )


def noisy_ones(batch_size: int = 1) -> Program:
    """A noisy regression, sample by sample, at a rate that batches of 64 bear well."""
    keras.utils.set_random_seed(70)
    rng = np.random.default_rng(10)
    x = rng.standard_t(3, size=(1500, 20)).astype("float32")
    y = (x @ rng.normal(size=20) / 4 + 0.5 * rng.normal(size=1500)).astype("float32")
    inputs = keras.Input((20,))
    hidden = layers.Dense(64, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.SGD(0.03), "mse")
    return Program(model, x, y, batch_size=batch_size, epochs=2 if batch_size == 1 else 15)


def batch_norm_tower(skip: bool = False) -> Program:
    """Thirty-four convolutions with BatchNorm in a row."""
    keras.utils.set_random_seed(71)
    x, y, _ = data.split_digits(images=True)
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(12, 3, padding="same")(inputs)
    for _ in range(34):
        branch = layers.Conv2D(12, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(hidden)
        branch = layers.Activation("relu")(layers.BatchNormalization()(branch))
        hidden = layers.Add()([hidden, branch]) if skip else branch
    if skip:
        hidden = layers.BatchNormalization()(hidden)
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(hidden)))
    model.compile(optimizers.SGD(0.1), LOGITS, metrics=["accuracy"])
    return Program(model, x[:900], y[:900], batch_size=32, epochs=6)


def batch_norm_layers(skip: bool = False) -> Program:
    """Forty-four dense layers with BatchNorm in a row."""
    keras.utils.set_random_seed(72)
    x, y = data.mnist(1500)
    inputs = keras.Input((784,))
    hidden = layers.Rescaling(1 / 255)(inputs)
    hidden = layers.Dense(48, use_bias=False)(hidden)
    for _ in range(44):
        branch = layers.Dense(48, use_bias=False)(hidden)
        branch = layers.BatchNormalization()(branch)
        branch = layers.Activation("relu")(branch)
        hidden = layers.Add()([hidden, branch]) if skip else branch
    hidden = layers.BatchNormalization()(hidden) if skip else hidden
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(optimizers.SGD(0.02), LOGITS, metrics=["accuracy"])
    return Program(model, x.reshape(-1, 784), y, batch_size=100, epochs=8)


def resnet_without_batch_norm(normalized: bool = False) -> Program:
    """Fourteen residual blocks with He's weights and no normalization."""
    keras.utils.set_random_seed(73)
    x, y, validation = data.split_digits(images=True)
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(16, 3, padding="same", kernel_initializer="he_normal")(inputs)
    for _ in range(14):
        branch = hidden
        for _ in range(2):
            branch = layers.BatchNormalization()(branch) if normalized else branch
            branch = layers.Activation("relu")(branch)
            branch = layers.Conv2D(16, 3, padding="same", kernel_initializer="he_normal")(branch)
        hidden = layers.Add()([hidden, branch])
    hidden = layers.BatchNormalization()(hidden) if normalized else hidden
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(hidden)))
    model.compile(optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1000], y[:1000], batch_size=50, epochs=5, validation_data=validation)


CASES = (
    failing(
        "batch_norm_of_one_patient",
        batch_norm_of_one,
        "limhoyeon/ToothGroupNetwork issue 23; Wu, He, 1803.08494",
        "batch_too_small",
        batch_size=32,
    ),
    failing(
        "sample_by_sample",
        noisy_ones,
        "machinelearningmastery.com on the stability of training and the batch size",
        "batch_too_small",
        ("learning_rate_too_high",),
        batch_size=64,
    ),
    failing(
        "tower_of_batch_norm_convolutions",
        batch_norm_tower,
        "Yang et al., 1902.08129",
        "exploding_batch_normalization",
        ("plain_depth",),
        skip=True,
    ),
    failing(
        "dense_layers_of_batch_norm",
        batch_norm_layers,
        "Yang et al., 1902.08129; stepankonev/waymo issue 14",
        "exploding_batch_normalization",
        ("plain_depth",),
        skip=True,
    ),
    failing(
        "resnet_without_batch_norm",
        resnet_without_batch_norm,
        "De, Smith, 2002.10444; Zhang et al., 1901.09321",
        "missing_normalization",
        ("exploding_initialization", "learning_rate_too_high"),
        normalized=True,
    ),
)
