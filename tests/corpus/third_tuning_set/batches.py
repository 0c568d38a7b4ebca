"""Programs whose batches are too small, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.third_tuning_set.own_step import OwnStep

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Contrast(OwnStep):
    """Two noisy views of a picture; the other pictures of the batch are what it is told from."""

    def __init__(self):
        super().__init__()
        self.net = keras.Sequential([layers.Dense(64, activation="relu"), layers.Dense(32)])
        self.hits = keras.metrics.Mean(name="hits")

    @property
    def metrics(self):
        return [self.tracker]

    def call(self, x):
        z = self.net(x)
        return z / ops.sqrt(ops.sum(ops.square(z), axis=-1, keepdims=True) + 1e-8)

    def objective(self, x, y):
        a, b = self(x, training=True), self(y, training=True)
        logits = ops.matmul(a, ops.transpose(b)) / 0.1
        return ops.mean(LOGITS(ops.arange(ops.shape(a)[0]), logits))


def contrast_of_one(batch_size: int = 1) -> Program:
    """A batch of one has nothing to tell its picture from: the loss is 0 and so is its gradient."""
    keras.utils.set_random_seed(1411)
    x, _, _ = data.split_digits()
    rng = np.random.default_rng(41)

    def view():
        return (x + 0.25 * rng.normal(size=x.shape)).astype("float32") * (rng.uniform(size=x.shape) < 0.8)

    model = Contrast()
    model(x[:2])
    model.compile(optimizer=optimizers.Adam(0.003))
    return Program(
        model,
        view().astype("float32"),
        view().astype("float32"),
        batch_size=batch_size,
        epochs=2 if batch_size == 1 else 10,
    )


def pairs_under_batch_norm(batch_size: int = 2) -> Program:
    """Of two samples batch normalization leaves a sign in each unit and no size."""
    keras.utils.set_random_seed(1412)
    x, y = data.auto_mpg()
    inputs = keras.Input((7,))
    hidden = inputs
    for units in (48, 48):
        hidden = layers.Activation("relu")(layers.BatchNormalization()(layers.Dense(units)(hidden)))
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.Adam(0.002), "mse")
    z, t = data.standardized(x[:, :7]), data.standardized(y)
    return Program(
        model,
        z[:300],
        t[:300],
        batch_size=batch_size,
        epochs=4 if batch_size == 2 else 30,
        validation_data=(z[300:], t[300:]),
    )


def rate_of_another_batch(batch_size: int = 1) -> Program:
    """Counts with a heavy tail, one at a time, at the rate of a batch of 128."""
    keras.utils.set_random_seed(1413)
    rng = np.random.default_rng(42)
    x = rng.normal(size=(1280, 16)).astype("float32")
    mean = np.exp(0.5 * x[:, 0] - 0.4 * x[:, 1] + 0.2)
    y = rng.poisson(mean * rng.gamma(0.5, 2.0, 1280)).astype("float32")
    inputs = keras.Input((16,))
    hidden = layers.Dense(48, activation="tanh")(inputs)
    model = keras.Model(inputs, layers.Dense(1, activation="softplus")(hidden))
    model.compile(optimizers.SGD(0.1), "poisson")
    return Program(model, x, y[:, None], batch_size=batch_size, epochs=2 if batch_size == 1 else 30)


CASES = (
    failing(
        "contrast_of_one",
        contrast_of_one,
        "Chen et al., 2002.05709 (SimCLR), on negatives within the batch",
        "batch_too_small",
        ("loss_output_mismatch",),
        batch_size=64,
    ),
    failing(
        "pairs_under_batch_norm",
        pairs_under_batch_norm,
        "Wu, He, 1803.08494; keras issues on batch normalization of tiny batches",
        "batch_too_small",
        batch_size=32,
    ),
    failing(
        "rate_of_another_batch",
        rate_of_another_batch,
        "Goyal et al., 1706.02677; Smith et al., 1711.00489",
        "batch_too_small",
        ("learning_rate_too_high",),
        batch_size=64,
    ),
)
