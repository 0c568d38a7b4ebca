"""Programs that fail by their data, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def ratio_of_zero(repaired: bool = False) -> Program:
    """A ratio of two columns as one more feature; now and then the divisor is 0."""
    keras.utils.set_random_seed(360)
    rng = np.random.default_rng(8)
    visits, bought = rng.poisson(4, 1200), rng.poisson(2, 1200)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = bought / (np.maximum(visits, 1) if repaired else visits)
    other = rng.normal(size=(1200, 4))
    y = (other[:, 0] + 0.8 * bought - 0.4 * visits > 0).astype("float32")
    x = np.column_stack([ratio, bought / 4, visits / 4, other]).astype("float32")
    model = keras.Sequential(
        [layers.Input((7,)), layers.Dense(32, activation="relu"), layers.Dense(1, activation="sigmoid")]
    )
    model.compile(optimizers.Adam(0.005), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=10)


def hole_in_one_source(filled: bool = False) -> Program:
    """Two sources in a dict; one row of the second was not measured."""
    keras.utils.set_random_seed(361)
    x, y = data.wine()
    x = data.standardized(x)
    x[17, 9:] = 0 if filled else np.nan
    chemistry, colour = keras.Input((8,), name="chemistry"), keras.Input((5,), name="colour")
    hidden = layers.concatenate(
        [layers.Dense(16, activation="tanh")(chemistry), layers.Dense(16, activation="tanh")(colour)]
    )
    model = keras.Model({"chemistry": chemistry, "colour": colour}, layers.Dense(3)(hidden))
    model.compile(optimizers.Adagrad(0.1), LOGITS, metrics=["accuracy"])
    return Program(model, {"chemistry": x[:, :8], "colour": x[:, 8:]}, y, batch_size=16, epochs=12)


def sixteen_bit_pictures(divisor: float = 1.0) -> Program:
    """Pixels from 0 to 65520."""
    keras.utils.set_random_seed(362)
    x, y = data.digits()
    x = x * 4095.0 / divisor
    inputs = keras.Input((64,))
    hidden = layers.Dense(64, activation="relu")(inputs)
    hidden = layers.Dense(32, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(hidden))
    model.compile(optimizers.SGD(0.05), "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, keras.utils.to_categorical(y), batch_size=64, epochs=8)


def corners_in_pixels(size: float = 1920.0) -> Program:
    """Corners of a box in pixels of a large picture."""
    keras.utils.set_random_seed(363)
    x, _ = data.digits()
    images = x.reshape(-1, 8, 8)
    weight, place = images.sum((1, 2)), (np.arange(8) + 0.5) / 8
    cx, cy = (images.sum(1) * place).sum(1) / weight, (images.sum(2) * place).sum(1) / weight
    sx = np.sqrt((images.sum(1) * (place - cx[:, None]) ** 2).sum(1) / weight)
    sy = np.sqrt((images.sum(2) * (place - cy[:, None]) ** 2).sum(1) / weight)
    box = np.stack([cx - 2 * sx, cy - 2 * sy, cx + 2 * sx, cy + 2 * sy], 1)
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(4),
        ]
    )
    model.compile(optimizers.SGD(0.02, momentum=0.9), "mse")
    return Program(model, images[..., None] / 16, (box * size).astype("float32"), batch_size=32, epochs=12)


def two_from_another_camera(factor: float = 65535.0) -> Program:
    """Two neighbouring pictures whose camera writes sixteen bits."""
    keras.utils.set_random_seed(364)
    x, y = data.mnist(1280)
    x = x.reshape(-1, 784) / 255
    if factor > 1:
        x[640] *= factor
        x[641] *= factor
    model = keras.Sequential(
        [
            layers.Input((784,)),
            layers.Dense(96, activation="gelu"),
            layers.Dense(48, activation="gelu"),
            layers.Dense(10),
        ]
    )
    model.compile(optimizers.SGD(0.1), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=6)


CASES = (
    failing(
        "ratio_with_a_divisor_of_zero",
        ratio_of_zero,
        "Stack Overflow 37232782, comments on inf in engineered features",
        "nonfinite_data",
        repaired=True,
    ),
    failing(
        "hole_in_one_source",
        hole_in_one_source,
        "keras issue 14490, 'Nan loss for classification'",
        "nonfinite_data",
        ("corrupt_batch",),
        filled=True,
    ),
    failing(
        "sixteen_bit_pictures",
        sixteen_bit_pictures,
        "Stack Overflow on 16-bit images in Keras",
        "unscaled_inputs",
        ("dead_units",),
        divisor=65520.0,
    ),
    failing(
        "corners_in_pixels",
        corners_in_pixels,
        "Stack Overflow on bounding boxes in pixels and loss nan",
        "unscaled_targets",
        size=1.0,
    ),
    failing(
        "two_pictures_of_another_camera",
        two_from_another_camera,
        "Karpathy's recipe: look at the data; Stack Overflow 33962226",
        "corrupt_batch",
        ("unscaled_inputs",),
        factor=1.0,
    ),
)
