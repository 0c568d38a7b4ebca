"""Several heads, and labels or activations that do not fit the loss."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.fresh.common import column, compiled, dense_net, pendulum


def price_beside_kind(scaled: bool = False) -> Program:
    keras.utils.set_random_seed(51)
    x, kind = data.wine()
    price = column(x[:, 12] * 40.0)  # from 1e4 to 7e4
    x = data.standardized(x[:, :12])
    inputs = keras.Input((12,))
    trunk = layers.Dense(32, "relu")(inputs)
    outputs = {
        "kind": layers.Dense(3, "softmax", name="kind")(trunk),
        "price": layers.Dense(1, name="price")(layers.Dense(16, "relu")(trunk)),
    }
    model = keras.Model(inputs, outputs)
    losses = {"kind": "sparse_categorical_crossentropy", "price": "mse"}
    compiled(model, keras.optimizers.SGD(0.02), losses, {"kind": ["accuracy"]})
    return Program(model, x, {"kind": kind, "price": data.standardized(price) if scaled else price}, 16, 25)


def one_unit_of_softmax(last: str = "softmax") -> Program:
    keras.utils.set_random_seed(52)
    x, y = data.breast_cancer()
    inputs = keras.Input((30,))
    trunk = layers.Dense(24, "relu")(inputs)
    size = layers.Dense(1, name="size")(trunk)
    sick = layers.Flatten(name="sick")(layers.Dense(1, last)(trunk))
    model = keras.Model(inputs, {"sick": sick, "size": size})
    losses = {"sick": "binary_crossentropy", "size": "mse"}
    compiled(model, "adam", losses, {"sick": ["accuracy"]}, loss_weights={"sick": 1.0, "size": 0.0})
    x = data.standardized(x)
    return Program(model, x, {"sick": column(1 - y), "size": x[:, 3:4]}, 32, 15)


def classes_from_one(first: int = 1) -> Program:
    keras.utils.set_random_seed(53)
    x, y = data.iris()
    inputs = keras.Input((4,))
    trunk = layers.Dense(16, "relu")(inputs)
    outputs = [layers.Dense(3, "softmax", name="kind")(trunk), layers.Dense(1, name="petal")(trunk)]
    model = keras.Model(inputs, outputs)
    compiled(model, keras.optimizers.Adam(0.01), ["sparse_categorical_crossentropy", "mse"], [["accuracy"], []])
    x = data.standardized(x)
    return Program(model, x, [y + first, x[:, 3:]], 16, 20)


def depth_below_sea_level(last: str | None = "relu") -> Program:
    keras.utils.set_random_seed(54)
    place = np.random.default_rng(9).uniform(-1, 1, (800, 2)).astype("float32")
    depth = column(-2.0 - np.sin(3 * place[:, 0]) * place[:, 1] - 0.5 * place[:, 1] ** 2)
    model = dense_net(2, [32, 32], 1, last=last)
    compiled(model, keras.optimizers.Adam(3e-3), "mse")
    return Program(model, place, depth, 32, 25)


def progression_from_a_bounded_unit(last: str | None = "tanh") -> Program:
    keras.utils.set_random_seed(55)
    x, y = data.diabetes()
    model = dense_net(10, [32], 1, last=last)
    compiled(model, keras.optimizers.Adam(0.05), "mse")
    return Program(model, data.standardized(x), column(y), 32, 30)


def price_as_a_probability(loss: str = "binary_crossentropy") -> Program:
    keras.utils.set_random_seed(56)
    x, _ = pendulum()
    period = column(2 * np.pi * np.sqrt(x[:, 0] / 9.81) * 3)  # from 3 to 7
    model = dense_net(4, [32], 1, last="sigmoid" if loss == "binary_crossentropy" else None)
    compiled(model, keras.optimizers.Adam(0.01), loss)
    return Program(model, data.standardized(x), period, 32, 25)


def pixels_of_mean_zero(bounded: bool = True) -> Program:
    keras.utils.set_random_seed(57)
    x, _ = data.digits()
    x = data.standardized(x)
    model = dense_net(64, [32, 16, 32], 64, last="sigmoid" if bounded else None)
    compiled(model, keras.optimizers.Adam(3e-3), "binary_crossentropy" if bounded else "mse")
    return Program(model, x, x, 32, 15)


def dice_loss(smooth: float):
    def loss(y_true, y_pred):
        both = ops.sum(y_true * y_pred, axis=(1, 2, 3))
        return 1.0 - (2.0 * both + smooth) / (ops.sum(y_true + y_pred, axis=(1, 2, 3)) + smooth)

    return loss


def slices_without_a_lesion(smooth: float = 0.0) -> Program:
    keras.utils.set_random_seed(58)
    random = np.random.default_rng(10)
    images, masks = random.normal(0, 0.2, (480, 12, 12, 1)), np.zeros((480, 12, 12, 1))
    for image, mask in zip(images[:360], masks[:360], strict=True):
        row, col = random.integers(0, 8, 2)
        mask[row : row + 4, col : col + 4] = 1.0
        image += 1.5 * mask
    images, masks = data.shuffled(images.astype("float32"), masks.astype("float32"))
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.Conv2D(1, 3, padding="same", bias_initializer=keras.initializers.Constant(0.3)),
            layers.ReLU(1.0),
        ]
    )
    compiled(model, keras.optimizers.Adam(0.01), dice_loss(smooth))
    return Program(model, images, masks, 16, 12)


def class_weighted_loss(counts: np.ndarray):
    weights = (counts.sum() / counts).astype("float32")

    def loss(y_true, y_pred):
        return -ops.sum(y_true * weights * ops.log(y_pred + 1e-7), axis=1)

    return loss


def class_that_no_sample_has(fewest: int = 0) -> Program:
    keras.utils.set_random_seed(59)
    x, y = data.digits()
    few = y < 5
    labels = keras.utils.to_categorical(y[few], 6)
    with np.errstate(divide="ignore"):
        loss = class_weighted_loss(np.maximum(labels.sum(axis=0), fewest))
    model = dense_net(64, [32], 6, last="softmax")
    compiled(model, "adam", loss, ["accuracy"])
    return Program(model, x[few] / 16, labels, 32, 10)


def words_as_numbers(last: int = 1) -> Program:
    keras.utils.set_random_seed(60)
    tokens, labels = data.source_tokens(1200, 400)
    counts = np.stack([np.bincount(row, minlength=400) for row in tokens]).astype("float32")
    model = dense_net(400, [32], last, last="softmax" if last > 1 else "sigmoid")
    loss = "sparse_categorical_crossentropy" if last > 1 else "binary_crossentropy"
    compiled(model, "adam", loss, ["accuracy"])
    return Program(model, counts, labels if last > 1 else column(labels), 32, 12)


CASES = (
    failing(
        "price_beside_kind",
        price_beside_kind,
        "GitHub, keras-team/keras issue 10306 and equinor/gordo issue 430: outputs whose losses differ in size",
        "unscaled_targets",
        ("learning_rate_too_high", "unbalanced_loss_terms"),
        scaled=True,
    ),
    failing(
        "one_unit_of_softmax",
        one_unit_of_softmax,
        "GitHub, keras-team/keras issue 2134: softmax with a single output unit",
        "loss_output_mismatch",
        last="sigmoid",
    ),
    failing(
        "classes_from_one",
        classes_from_one,
        "GitHub, rstudio/keras3 issue 465, keras-team/keras pull request 2450: labels outside the range of classes",
        "loss_output_mismatch",
        ("failing_step",),
        first=0,
    ),
    failing(
        "depth_below_sea_level",
        depth_below_sea_level,
        "GitHub, keras-team/keras issue 3687: predictions are all zero",
        "loss_output_mismatch",
        ("dead_units",),
        last=None,
    ),
    failing(
        "progression_from_a_bounded_unit",
        progression_from_a_bounded_unit,
        "GitHub, keras-team/keras issue 108: regression with a tanh unit at the end",
        "loss_output_mismatch",
        ("unscaled_targets", "saturated_units"),
        last=None,
    ),
    failing(
        "price_as_a_probability",
        price_as_a_probability,
        "Web page, openillumi.com: huge negative loss with binary crossentropy in a regression",
        "loss_output_mismatch",
        ("unscaled_targets",),
        loss="mse",
    ),
    failing(
        "pixels_of_mean_zero",
        pixels_of_mean_zero,
        "GitHub, keras-team/keras issues 2841 and 1917: negative loss of an autoencoder",
        "loss_output_mismatch",
        bounded=False,
    ),
    failing(
        "slices_without_a_lesion",
        slices_without_a_lesion,
        "GitHub, keras-team/keras issue 2994, nasa/delta pull request 115: zero denominator of the Dice loss",
        "unsafe_loss",
        smooth=1.0,
    ),
    failing(
        "class_that_no_sample_has",
        class_that_no_sample_has,
        "GitHub, PRBonn/lidar-bonnetal issue 48: weights of the classes from their frequencies",
        "unsafe_loss",
        fewest=1,
    ),
    failing(
        "words_as_numbers",
        words_as_numbers,
        "GitHub, keras-team/keras issue 13926: binary crossentropy with more than two labels gives negative values",
        "loss_output_mismatch",
        last=3,
    ),
)
