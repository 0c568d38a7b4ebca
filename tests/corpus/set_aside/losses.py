"""Programs whose loss does not fit or is unsafe numerically, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing


def poisson_of_a_line(activation: str | None = None) -> Program:
    """Counts under Poisson's loss, whose rate comes from a linear unit."""
    keras.utils.set_random_seed(351)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(1500, 8)).astype("float32")
    y = rng.poisson(np.exp(0.5 * x[:, 0] - 0.7 * x[:, 1] * (x[:, 2] > 0))).astype("float32")

    def poisson(true, rate):
        return ops.mean(rate - true * ops.log(rate))

    inputs = keras.Input((8,))
    hidden = layers.Dense(32, activation="tanh")(inputs)
    model = keras.Model(inputs, layers.Dense(1, activation=activation)(hidden))
    model.compile(optimizers.Adam(0.003), poisson)
    return Program(model, x, y[:, None], batch_size=32, epochs=8)


def softmax_over_tags(last: str = "softmax") -> Program:
    """Several tags at once by softmax and categorical cross-entropy, some pictures without any tag."""
    keras.utils.set_random_seed(352)
    x, y = data.digits()
    tags = np.stack([y % 2 == 0, y % 3 == 0, y > 4, np.isin(y, (0, 6, 8, 9)), y < 2], 1).astype("float32")
    model = keras.Sequential(
        [layers.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(5, activation=last)]
    )
    loss = "categorical_crossentropy" if last == "softmax" else "binary_crossentropy"
    model.compile(optimizers.Adam(0.003), loss, metrics=[keras.metrics.BinaryAccuracy(name="tags")])
    return Program(model, x / 16, tags, batch_size=32, epochs=10)


def digit_by_sigmoid(activation: str = "sigmoid") -> Program:
    """How many years: ages of 0 to 9 by a sigmoid under squared error."""
    keras.utils.set_random_seed(354)
    x, y = data.digits()
    hidden = inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(16, 3, activation="relu")(hidden)
    hidden = layers.Dense(48, activation="relu")(layers.Flatten()(hidden))
    model = keras.Model(inputs, layers.Dense(1, activation=activation)(hidden))
    model.compile(optimizers.Adam(0.002), "mse", metrics=["mae"])
    return Program(model, x.reshape(-1, 8, 8, 1) / 16, y.astype("float32"), batch_size=32, epochs=12)


class Direction(keras.Model):
    """A direction, judged by its angle to the true one."""

    def __init__(self, safe: bool):
        super().__init__()
        self.net = keras.Sequential([layers.Dense(32, activation="relu"), layers.Dense(2)])
        self.safe = safe

    def call(self, x):
        base = x[:, :2]
        moved = base + self.net(x[:, 2:])
        return moved / ops.sqrt(ops.sum(moved * moved, -1, keepdims=True) + 1e-9)


def angle_between(safe: bool = False) -> Program:
    """Directions of which one in eight need not turn at all, where the arc cosine's slope has no bound."""
    keras.utils.set_random_seed(355)
    rng = np.random.default_rng(6)
    heading = rng.uniform(-np.pi, np.pi, 1200)
    turn = rng.uniform(-1, 1, 1200)
    turn[::8] = 0
    x = np.stack([np.cos(heading), np.sin(heading), turn * np.cos(heading), turn * np.sin(heading), turn], 1).astype(
        "float32"
    )
    x[::8, 2:] = 0
    y = np.stack([np.cos(heading + turn), np.sin(heading + turn)], 1).astype("float32")

    def angle(true, predicted):
        cosine = ops.sum(true * predicted, -1)
        cosine = ops.clip(cosine, -1 + 1e-6, 1 - 1e-6) if safe else ops.clip(cosine, -1.0, 1.0)
        return ops.mean(ops.arccos(cosine))

    model = Direction(safe)
    model(x[:2])
    model.compile(optimizers.Adam(0.003), angle)
    return Program(model, x, y, batch_size=32, epochs=10)


def dice_of_nothing(smooth: float = 0.0) -> Program:
    """Dice over single pictures, some of which show nothing."""
    keras.utils.set_random_seed(356)
    x, _ = data.digits()
    images = x[:1000].reshape(-1, 8, 8, 1) / 16
    masks = (images > 0.5).astype("float32")
    noisy = images + np.random.default_rng(7).normal(scale=0.15, size=images.shape)
    masks[::25], noisy[::25] = 0.0, 0.0

    def dice(true, pred):
        overlap = ops.sum(true * pred, axis=(1, 2, 3))
        total = ops.sum(true, axis=(1, 2, 3)) + ops.sum(pred, axis=(1, 2, 3))
        return 1 - ops.mean((2 * overlap + smooth) / (total + smooth))

    model = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(1, 3, padding="same"),
            layers.ReLU(max_value=1.0),
        ]
    )
    model.compile(optimizers.Adam(0.005), dice, metrics=["binary_accuracy"])
    return Program(model, noisy.astype("float32"), masks, batch_size=20, epochs=8)


def concordance(epsilon: float = 0.0) -> Program:
    """1 - correlation of a batch; the last layer begins at zero, so nothing varies yet."""
    keras.utils.set_random_seed(357)
    x, y = data.diabetes()

    def loss(true, pred):
        wanted, given = true - ops.mean(true), pred - ops.mean(pred)
        return 1 - ops.sum(wanted * given) / (
            ops.sqrt(ops.sum(wanted * wanted)) * ops.sqrt(ops.sum(given * given) + epsilon) + epsilon
        )

    inputs = keras.Input((10,))
    hidden = layers.Dense(32, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Dense(1, kernel_initializer="zeros")(hidden))
    model.compile(optimizers.Adam(0.003), loss)
    return Program(model, data.standardized(x), data.standardized(y)[:, None], batch_size=32, epochs=12)


CASES = (
    failing(
        "poisson_of_a_line",
        poisson_of_a_line,
        "Stack Overflow on the Poisson loss in Keras that gives NaN",
        "loss_output_mismatch",
        ("unsafe_loss",),
        activation="exponential",
    ),
    failing(
        "softmax_over_tags",
        softmax_over_tags,
        "Stack Overflow 44164749 on multi-label classification in Keras",
        "loss_output_mismatch",
        last="sigmoid",
    ),
    failing(
        "digits_by_a_sigmoid",
        digit_by_sigmoid,
        "keras issue 3687 and Stack Overflow on regression through a sigmoid",
        "loss_output_mismatch",
        ("unscaled_targets", "saturated_units"),
        activation=None,
    ),
    failing(
        "angle_between_directions",
        angle_between,
        "PyTorch and TensorFlow issues on the gradient of acos at 1",
        "unsafe_loss",
        safe=True,
    ),
    failing(
        "dice_of_nothing",
        dice_of_nothing,
        "keras-contrib and U-Net issues on dice loss without smoothing",
        "unsafe_loss",
        smooth=1.0,
    ),
    failing(
        "correlation_of_a_constant",
        concordance,
        "Stack Overflow on correlation as a loss in Keras and NaN",
        "unsafe_loss",
        epsilon=1e-6,
    ),
)
