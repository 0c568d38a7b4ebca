"""Convolutional programs that fail, and what mends them."""

from __future__ import annotations

from functools import partial

import keras
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


def _images(number: int, scale: float = 255.0):
    x, y = data.mnist(number)
    return x[..., None] / scale, y


def raw_pixels(scale: float = 1.0) -> Program:
    """A small CNN on pixels from 0 to 255, with plain SGD."""
    keras.utils.set_random_seed(11)
    x, y = _images(2000, scale)
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, epochs=5)


def small_normal(initializer: str | keras.initializers.Initializer | None = None) -> Program:
    """A plain CNN of ten layers, weights of standard deviation 0.01 as AlexNet's authors had them."""
    keras.utils.set_random_seed(12)
    x, y = _images(1500)
    initializer = initializer or keras.initializers.RandomNormal(stddev=0.01)
    inputs = keras.Input((28, 28, 1))
    hidden = inputs
    for filters in (8, 16, 24):
        for _ in range(3):
            hidden = layers.Conv2D(filters, 3, padding="same", kernel_initializer=initializer)(hidden)
            hidden = layers.Activation("relu")(hidden)
        hidden = layers.MaxPooling2D()(hidden)
    outputs = layers.Dense(10, kernel_initializer=initializer)(layers.Flatten()(hidden))
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return Program(model, x, y, epochs=5)


def adadelta(rate: float = 0.001) -> Program:
    """Keras' old MNIST example with `Adadelta()`: the default rate has since become a thousand times smaller."""
    keras.utils.set_random_seed(13)
    x, y = _images(2000)
    model = keras.Sequential()
    model.add(layers.Input((28, 28, 1)))
    model.add(layers.Conv2D(16, (3, 3), activation="relu"))
    model.add(layers.Conv2D(32, (3, 3), activation="relu"))
    model.add(layers.MaxPooling2D((2, 2)))
    model.add(layers.Dropout(0.25))
    model.add(layers.Flatten())
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(keras.optimizers.Adadelta(rate), "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, keras.utils.to_categorical(y, 10), batch_size=64, epochs=5)


def adam_at_one_tenth(rate: float = 0.1) -> Program:
    """A CNN with Adam at a rate that suits SGD."""
    keras.utils.set_random_seed(14)
    x, y = _images(2000)
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.Adam(rate), loss, metrics=["accuracy"])
    return Program(model, x, y, epochs=5)


def one_image_a_batch(batch_size: int = 1) -> Program:
    """BatchNorm over features of one sample at a time: each is its own mean, so nothing of the image is left."""
    keras.utils.set_random_seed(15)
    x, y = _images(800)
    inputs = keras.Input((28, 28, 1))
    hidden = layers.Flatten()(layers.Conv2D(8, 5, strides=3, activation="relu")(inputs))
    hidden = layers.Dense(64, use_bias=False)(hidden)
    hidden = layers.Activation("relu")(layers.BatchNormalization()(hidden))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(hidden))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:600], y[:600], batch_size, epochs=3, validation_data=(x[600:], y[600:]))


def plain_tower(skip: bool = False) -> Program:
    """Thirty convolutions in a row, He's weights, no normalization, no skip connections."""
    keras.utils.set_random_seed(17)
    x, y = _images(1000)
    inputs = keras.Input((28, 28, 1))
    hidden = layers.AveragePooling2D(4)(inputs)
    hidden = layers.Conv2D(12, 3, padding="same", activation="relu", kernel_initializer="he_normal")(hidden)
    for _ in range(15):
        branch = layers.Conv2D(12, 3, padding="same", activation="relu", kernel_initializer="he_normal")(hidden)
        branch = layers.Conv2D(12, 3, padding="same", activation="relu", kernel_initializer="he_normal")(branch)
        if skip:
            branch = layers.BatchNormalization(gamma_initializer="zeros")(branch)
            branch = layers.Add()([hidden, branch])
        hidden = branch
    outputs = layers.Dense(10, activation="softmax")(layers.Flatten()(hidden))
    model = keras.Model(inputs, outputs)
    model.compile(optimizers.SGD(0.02, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, epochs=5)


CASES = (
    Case(
        "cnn_on_raw_pixels",
        raw_pixels,
        "keras issue 11786, 'Why I'm getting nan loss in my model?': a CNN on images that nobody divides by 255",
        "unscaled_inputs",
        repaired=partial(raw_pixels, scale=255.0),
    ),
    Case(
        "cnn_with_weights_of_one_hundredth",
        small_normal,
        "He et al., 1502.01852, section 2.2: deep ReLU nets from Gaussians of standard deviation 0.01 stall",
        "vanishing_initialization",
        repaired=partial(small_normal, initializer="he_normal"),
    ),
    Case(
        "adadelta_with_its_new_default",
        adadelta,
        "keras examples/mnist_cnn.py with Adadelta(): the default rate went from 1.0 to 0.001; Keras' Adadelta page",
        "learning_rate_too_low",
        repaired=partial(adadelta, rate=1.0),
    ),
    Case(
        "cnn_with_adam_at_one_tenth",
        adam_at_one_tenth,
        "keras issue 3664, comment: NaN and chance level from a high initial rate; keras issue 7057 on ReLUs it kills",
        "learning_rate_too_high",
        repaired=partial(adam_at_one_tenth, rate=0.001),
    ),
    Case(
        "batch_norm_of_one_image",
        one_image_a_batch,
        "CNTK issue 905: the BatchNorm example of MNIST with minibatches of 1",
        "batch_too_small",
        repaired=partial(one_image_a_batch, batch_size=16),
    ),
    Case(
        "tower_of_thirty_plain_convolutions",
        plain_tower,
        "He et al., 1512.03385: deeper plain nets train worse than shallow ones",
        "plain_depth",
        repaired=partial(plain_tower, skip=True),
    ),
)
