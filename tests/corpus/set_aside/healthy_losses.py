"""Sound programs with losses of their own that a hasty rule would take for sick ones."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


def quantiles() -> Program:
    """Three quantiles of house prices by the pinball loss."""
    keras.utils.set_random_seed(421)
    x, y = data.boston()
    levels = np.array([0.1, 0.5, 0.9], "float32")

    def pinball(true, pred):
        error = true - pred
        return ops.mean(ops.maximum(levels * error, (levels - 1) * error))

    model = keras.Sequential([layers.Input((13,)), layers.Dense(48, activation="relu"), layers.Dense(3)])
    model.compile(optimizers.Adam(0.005), pinball)
    return Program(
        model, data.standardized(x), np.repeat(data.standardized(y)[:, None], 3, axis=1), batch_size=32, epochs=15
    )


def density() -> Program:
    """Likelihood of a Gaussian: below zero as soon as it is sharp."""
    keras.utils.set_random_seed(422)
    series = data.standardized(np.log(data.daily_prices()))
    x, y = data.windows(series, 8)

    def nll(true, out):
        spread = ops.softplus(out[:, 1:]) + 1e-2
        return ops.mean(ops.log(spread) + 0.5 * ops.square((true - out[:, :1]) / spread))

    inputs = keras.Input((8, 1))
    hidden = layers.Dense(32, activation="relu")(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    model.compile(optimizers.Adam(0.003), nll)
    return Program(model, x, np.repeat(y[:, None], 1, axis=1), batch_size=32, epochs=12)


def claims() -> Program:
    """Rare counts by Poisson's loss and an exponential output."""
    keras.utils.set_random_seed(423)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2000, 6)).astype("float32")
    y = rng.poisson(np.exp(-1 + 0.6 * x[:, 0] + 0.4 * x[:, 1] * x[:, 2])).astype("float32")
    model = keras.Sequential(
        [
            layers.Input((6,)),
            layers.Dense(24, activation="tanh"),
            layers.Dense(1, activation="exponential", bias_initializer=initializers.Constant(-1)),
        ]
    )
    model.compile(optimizers.Nadam(0.003), "poisson", metrics=["mae"])
    return Program(model, x, y, batch_size=64, epochs=12)


def weighted_classes() -> Program:
    """One in twenty, weighted in the loss."""
    keras.utils.set_random_seed(424)
    x, y = data.digits()
    rare = ((y == 8) & (np.arange(len(y)) % 2 == 0)).astype("float32")[:, None]

    def weighted(true, probability):
        probability = ops.clip(probability, 1e-6, 1 - 1e-6)
        return -ops.mean(15 * true * ops.log(probability) + (1 - true) * ops.log(1 - probability))

    keep = (y != 8) | (np.arange(len(y)) % 2 == 0)
    model = keras.Sequential(
        [layers.Input((64,)), layers.Dense(48, activation="relu"), layers.Dense(1, activation="sigmoid")]
    )
    model.compile(optimizers.Adam(0.002), weighted, metrics=[keras.metrics.Recall(), keras.metrics.Precision()])
    return Program(model, x[keep] / 16, rare[keep], batch_size=32, epochs=10)


def bandit() -> Program:
    """Reward times the logarithm of a chosen action's probability: the loss is what it is."""
    keras.utils.set_random_seed(430)
    rng = np.random.default_rng(7)
    x = rng.normal(size=(2500, 6)).astype("float32")
    action = rng.integers(0, 4, 2500)
    reward = (action == (x[:, 0] > 0) * 2 + (x[:, 1] > 0)).astype("float32") - 0.25
    y = np.column_stack([action, reward]).astype("float32")

    def policy_loss(true, logits):
        log_probability = ops.log_softmax(logits)
        chosen = ops.sum(log_probability * ops.one_hot(ops.cast(true[:, 0], "int32"), 4), -1)
        return -ops.mean(true[:, 1] * ops.exp(chosen) * 4)

    model = keras.Sequential([layers.Input((6,)), layers.Dense(32, activation="relu"), layers.Dense(4)])

    def expected(true, logits):
        probability = ops.sum(ops.softmax(logits) * ops.one_hot(ops.cast(true[:, 0], "int32"), 4), -1)
        return 4 * ops.mean(probability * true[:, 1])

    model.compile(optimizers.Adam(0.003), policy_loss, metrics=[expected])
    return Program(model, x, y, batch_size=64, epochs=10)


CASES = (
    Case("three_quantiles", quantiles, "Koenker's pinball loss as Keras users write it"),
    Case("likelihood_below_zero", density, "Nix, Weigend, 1994; TensorFlow Probability's regression tutorial"),
    Case("claims_by_poisson", claims, "scikit-learn's example of Poisson regression"),
    Case("weighted_rare_digit", weighted_classes, "Keras example 'Imbalanced classification: credit card fraud'"),
    Case("policy_of_a_bandit", bandit, "Williams, 1992; Keras example 'Actor Critic Method'"),
)
