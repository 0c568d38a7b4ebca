"""Sound programs on tables, with losses of their own."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


def gamma_regression() -> Program:
    """Positive amounts under the deviance of the gamma distribution."""
    keras.utils.set_random_seed(1505)
    rng = np.random.default_rng(55)
    x = rng.normal(size=(2000, 6)).astype("float32")
    y = (rng.gamma(4.0, 0.25, 2000) * np.exp(0.6 * x[:, 0] - 0.4 * np.abs(x[:, 1]) + 1)).astype("float32")

    def deviance(true, pred):
        return ops.mean(true * ops.exp(-pred) + pred, axis=-1)

    model = keras.Sequential(
        [layers.Input((6,)), layers.Dense(32, activation="relu"), layers.Dense(32, activation="relu"), layers.Dense(1)]
    )
    model.compile(optimizers.Adam(0.002), deviance)
    return Program(model, x, y[:, None], batch_size=32, epochs=12)


class Thresholds(layers.Layer):
    """Cumulative logits for ordered grades: one score, rising thresholds."""

    def build(self, shape):
        self.first = self.add_weight(shape=(1,), initializer=initializers.Constant(-1.5), name="first")
        self.steps = self.add_weight(shape=(3,), initializer="zeros", name="steps")

    def call(self, score):
        cuts = ops.concatenate([self.first, self.first + ops.cumsum(ops.softplus(self.steps))], axis=0)
        return score - cuts


def ordinal() -> Program:
    """Five ordered grades by cumulative logits."""
    keras.utils.set_random_seed(1506)
    x, y = data.diabetes()
    x, y = data.standardized(x), np.digitize(y, np.quantile(y, [0.2, 0.4, 0.6, 0.8]))
    levels = (y[:, None] > np.arange(4)).astype("float32")
    inputs = keras.Input((10,))
    hidden = layers.Dense(24, activation="relu")(inputs)
    model = keras.Model(inputs, Thresholds()(layers.Dense(1)(hidden)))
    model.compile(optimizers.Adam(0.005), keras.losses.BinaryCrossentropy(from_logits=True))
    return Program(model, x, levels, batch_size=32, epochs=20)


def bayesian_ranking() -> Program:
    """-log sigmoid of the difference of two scores: users, a film seen, a film not seen."""
    keras.utils.set_random_seed(1510)
    rng = np.random.default_rng(57)
    taste, film = rng.normal(size=(100, 3)), rng.normal(size=(80, 3))
    user, i, j = rng.integers(0, 100, 5000), rng.integers(0, 80, 5000), rng.integers(0, 80, 5000)
    better = (taste[user] * film[i]).sum(1) > (taste[user] * film[j]).sum(1)
    seen, unseen = np.where(better, i, j), np.where(better, j, i)
    a, b, c = (keras.Input((), dtype="int32", name=name) for name in ("user", "seen", "unseen"))
    users, films = layers.Embedding(100, 16), layers.Embedding(80, 16)
    u = users(a)
    model = keras.Model([a, b, c], ops.sum(u * (films(b) - films(c)), axis=-1, keepdims=True))

    def ranking(true, pred):
        return ops.mean(ops.softplus(-pred), axis=-1)

    model.compile(optimizers.Adam(0.005), ranking)
    return Program(
        model, {"user": user, "seen": seen, "unseen": unseen}, np.ones((5000, 1), "float32"), batch_size=64, epochs=12
    )


def partly_known() -> Program:
    """Most targets are unknown; the loss is divided by how many are known, and at least by 1."""
    keras.utils.set_random_seed(1512)
    x, _ = data.wine()
    z = data.standardized(x)
    y = z[:, :4] * 1.0
    y[np.random.default_rng(58).uniform(size=y.shape) < 0.6] = -100.0

    def masked(true, pred):
        known = ops.cast(true > -99, "float32")
        return ops.sum(known * ops.square(true - pred), axis=-1) / ops.maximum(ops.sum(known, axis=-1), 1.0)

    model = keras.Sequential([layers.Input((9,)), layers.Dense(32, activation="relu"), layers.Dense(4)])
    model.compile(optimizers.Adam(0.005), masked)
    return Program(model, z[:, 4:], y, batch_size=16, epochs=25)


CASES = (
    Case("gamma_deviance", gamma_regression, "scikit-learn example 'Tweedie regression on insurance claims'"),
    Case("ordered_grades", ordinal, "Cao et al., 1901.07884 (CORAL)"),
    Case("bayesian_ranking", bayesian_ranking, "Rendle et al., 1205.2618"),
    Case("partly_known_targets", partly_known, "keras issue 12850"),
)
