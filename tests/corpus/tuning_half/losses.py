"""Programs whose loss does not fit the output or the labels, and what mends them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


def _from_logits(labels, outputs):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(tf.reshape(labels, [-1]), tf.int32), outputs)


def double_softmax(activation: str | None = "softmax") -> Program:
    """A softmax layer, and a loss that takes a softmax once more."""
    keras.utils.set_random_seed(41)
    x, y = data.mnist(2000)
    inputs = keras.Input((784,))
    hidden = layers.Dense(128, activation="relu")(inputs)
    hidden = layers.Dense(64, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(10, activation=activation)(hidden))
    model.compile(optimizers.SGD(0.02), _from_logits, metrics=["accuracy"])
    return Program(model, x.reshape(-1, 784) / 255, y, epochs=5)


def forgotten_softmax(loss: Any = "sparse_categorical_crossentropy") -> Program:
    """Linear outputs, handed to a loss that expects probabilities."""
    keras.utils.set_random_seed(42)
    x, y = data.mnist(2000)
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    model.compile("adam", loss, metrics=["accuracy"])
    return Program(model, x[..., None] / 255, y, epochs=4)


def softmax_of_one(activation: str = "softmax") -> Program:
    """Two classes by one softmax unit, whose output is 1 whatever comes."""
    keras.utils.set_random_seed(43)
    x, y = data.breast_cancer()
    model = keras.Sequential()
    model.add(layers.Input((30,)))
    model.add(layers.Dense(64, activation="tanh"))
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(64, activation="tanh"))
    model.add(layers.Dense(1, activation=activation))
    model.compile(optimizers.SGD(0.1, momentum=0.9, nesterov=True), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=16, epochs=8)


def three_classes_in_one_unit(units: int = 1) -> Program:
    """Three cultivars by one sigmoid unit and binary cross-entropy."""
    keras.utils.set_random_seed(44)
    x, y = data.wine()
    inputs = keras.Input((13,))
    hidden = layers.Dense(32, activation="relu")(inputs)
    outputs = layers.Dense(units, activation="sigmoid" if units == 1 else "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    loss = "binary_crossentropy" if units == 1 else "sparse_categorical_crossentropy"
    model.compile(optimizers.Adam(0.005), loss, metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=16, epochs=20)


def labels_from_one(first: int = 1) -> Program:
    """Three classes called 1, 2, 3 and three output units."""
    keras.utils.set_random_seed(45)
    x, y = data.iris()
    model = keras.Sequential([layers.Input((4,)), layers.Dense(16, activation="relu"), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.Adam(0.02), loss, metrics=["accuracy"])
    return Program(model, data.standardized(x), y + first, batch_size=16, epochs=20)


def mask_of_255(top: float = 255.0) -> Program:
    """Segmentation with masks as they come from image files, 0 and 255, and binary cross-entropy."""
    keras.utils.set_random_seed(46)
    x, _ = data.mnist(800)
    images = x[:, ::2, ::2, None] / 255
    noisy = images * 0.6 + np.random.default_rng(0).uniform(0, 0.4, images.shape)
    inputs = keras.Input((14, 14, 1))
    down = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    bottom = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.MaxPooling2D()(down))
    up = layers.Concatenate()([layers.UpSampling2D()(bottom), down])
    outputs = layers.Conv2D(1, 3, padding="same", activation="sigmoid")(up)
    model = keras.Model(inputs, outputs)
    model.compile(optimizers.Adam(0.003), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, noisy.astype("float32"), (images > 0.5) * np.float32(top), batch_size=16, epochs=6)


def tanh_decoder(activation: str = "tanh") -> Program:
    """An autoencoder with a tanh output, trained with binary cross-entropy."""
    keras.utils.set_random_seed(47)
    x, _ = data.digits()
    encoder = keras.Sequential([layers.Input((64,)), layers.Dense(32, activation="relu"), layers.Dense(8)])
    decoder = keras.Sequential(
        [layers.Input((8,)), layers.Dense(32, activation="relu"), layers.Dense(64, activation=activation)]
    )
    inputs = keras.Input((64,))
    model = keras.Model(inputs, decoder(encoder(inputs)))
    model.compile(optimizers.Adam(0.003), "binary_crossentropy")
    return Program(model, x / 16, x / 16, epochs=8)


def clipped_regression(activation: str | None = "sigmoid") -> Program:
    """Regression that ends in a sigmoid, on targets whose mean is 0."""
    keras.utils.set_random_seed(48)
    x, y = data.auto_mpg()
    model = keras.Sequential()
    model.add(layers.Input((7,)))
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dense(1, activation=activation))
    model.compile(optimizers.RMSprop(0.001), "mse")
    return Program(model, data.standardized(x[:, :7]), data.standardized(y), epochs=15)


def _case(name: str, build: Callable[..., Program], source: str, accepted: tuple[str, ...] = (), **mended: Any) -> Case:
    return Case(name, build, source, "loss_output_mismatch", accepted, partial(build, **mended))


CASES = (
    _case(
        "softmax_twice",
        double_softmax,
        "Keras' documentation of from_logits; TensorFlow's tutorials, whose models end in logits",
        activation=None,
    ),
    _case(
        "probabilities_expected_logits_given",
        forgotten_softmax,
        "Keras' page on probabilistic losses: from_logits is False by default; keras issue 4784, comments",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    ),
    _case(
        "softmax_of_one_unit",
        softmax_of_one,
        "keras issue 126, 'MLP example doesn't make progress'",
        activation="sigmoid",
    ),
    _case(
        "three_classes_in_one_sigmoid",
        three_classes_in_one_unit,
        "keras issue 4784, 'Accuracy not changing across the epochs': the model does not match the loss",
        units=3,
    ),
    _case(
        "classes_from_1_to_3",
        labels_from_one,
        "rstudio/keras3 issue 465: iris with labels 1, 2, 3; tensorflow issue 8484",
        first=0,
    ),
    _case(
        "mask_from_0_to_255",
        mask_of_255,
        "shekkizh/FCN.tensorflow issue 17; zhixuhao/unet issues on masks that are not divided by 255",
        ("unscaled_targets",),
        top=1.0,
    ),
    _case(
        "tanh_under_binary_cross_entropy",
        tanh_decoder,
        "pkmital/tensorflow_tutorials issue 23, 'VAE costs are nan': tanh before logarithms",
        activation="sigmoid",
    ),
    _case(
        "regression_through_a_sigmoid",
        clipped_regression,
        "keras issue 6447, 'model.predict() gives same output for all inputs'; keras issue 3687",
        activation=None,
    ),
)
