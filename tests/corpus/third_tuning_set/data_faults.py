"""Programs that fail by their data, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.third_tuning_set.own_step import OwnStep


def mixed_columns(scaled: bool = False) -> Program:
    """Inhabitants, a year and a share beside the vector of a region."""
    keras.utils.set_random_seed(1302)
    rng = np.random.default_rng(31)
    n = 2000
    region = rng.integers(0, 20, n)
    people, year, share = rng.lognormal(11, 1.2, n), rng.integers(1950, 2021, n), rng.uniform(0, 1, n)
    y = data.standardized(0.6 * np.log(people) + (year - 1985) / 25 + share + rng.normal(size=20)[region] * 0.7)
    numbers = np.stack([people, year, share], 1).astype("float32")
    if scaled:
        numbers = data.standardized(np.stack([np.log(people), year, share], 1))
    a, b = keras.Input((), dtype="int32", name="region"), keras.Input((3,), name="numbers")
    hidden = layers.Concatenate()([layers.Embedding(20, 6)(a), b])
    hidden = layers.Dense(48, activation="relu")(hidden)
    hidden = layers.Dense(24, activation="relu")(hidden)
    model = keras.Model([a, b], layers.Dense(1)(hidden))
    model.compile(optimizers.Adam(0.003), "mse")
    return Program(model, {"region": region, "numbers": numbers}, y, batch_size=32, epochs=10)


def pinball(true, pred):
    """Return the mean pinball loss of the quantiles 0.1, 0.5 and 0.9."""
    error = true - pred
    levels = ops.convert_to_tensor([0.1, 0.5, 0.9], "float32")
    return ops.mean(ops.maximum(levels * error, (levels - 1) * error), axis=-1)


def quantiles_of_prices(scaled: bool = False) -> Program:
    """Three quantiles of house prices in dollars: the loss has slopes of 1 at most and 20,000 dollars to go."""
    keras.utils.set_random_seed(1304)
    x, y = data.boston()
    y = data.standardized(y) if scaled else y * 10_000
    model = keras.Sequential(
        [layers.Input((13,)), layers.Dense(32, activation="relu"), layers.Dense(32, activation="relu"), layers.Dense(3)]
    )
    model.compile(optimizers.Adam(0.001), pinball)
    return Program(model, data.standardized(x), y.astype("float32")[:, None], batch_size=32, epochs=30)


class MeanAndVariance(OwnStep):
    """A mean and a log-variance; the likelihood of a normal distribution."""

    def __init__(self):
        super().__init__()
        self.body = keras.Sequential([layers.Dense(48, activation="relu"), layers.Dense(48, activation="relu")])
        self.mean, self.spread = layers.Dense(1), layers.Dense(1)

    def call(self, x):
        h = self.body(x)
        return self.mean(h), self.spread(h)

    def objective(self, x, y):
        mean, log_variance = self(x, training=True)
        return ops.mean(ops.square(y[:, None] - mean) * ops.exp(-log_variance) + log_variance)


def variance_of_income(scaled: bool = False) -> Program:
    """Incomes of some 42,000, under the likelihood of a normal distribution."""
    keras.utils.set_random_seed(1306)
    x, y = data.auto_mpg()
    z = data.standardized(y)
    model = MeanAndVariance()
    model(np.zeros((1, 7), "float32"))
    model.compile(optimizer=optimizers.SGD(0.01))
    return Program(
        model,
        data.standardized(x[:, :7]),
        z if scaled else (z * 9_000 + 42_000).astype("float32"),
        batch_size=32,
        epochs=30,
    )


class Weighted(OwnStep):
    """The weight of each sample comes beside its label."""

    def __init__(self):
        super().__init__()
        self.net = keras.Sequential([layers.Dense(32, activation="relu"), layers.Dense(1)])

    def call(self, x):
        return self.net(x)

    def objective(self, x, y):
        label, weight = y[:, :1], y[:, 1:]
        return ops.mean(weight * ops.square(label - self(x, training=True)))


def inverse_propensity(smallest: float = 1e-8) -> Program:
    """Weights 1 / propensity, and one propensity that is nearly 0."""
    keras.utils.set_random_seed(1308)
    x, y = data.diabetes()
    propensity = np.random.default_rng(34).uniform(0.4, 1.0, 442)
    propensity[200] = smallest
    model = Weighted()
    model(np.zeros((1, 10), "float32"))
    model.compile(optimizer=optimizers.SGD(0.01))
    return Program(
        model,
        data.standardized(x),
        np.stack([data.standardized(y), 1 / propensity], 1).astype("float32"),
        batch_size=32,
        epochs=20,
    )


CASES = (
    failing(
        "inhabitants_beside_regions",
        mixed_columns,
        "Keras example 'Structured data classification'; Stack Overflow on columns of different scale",
        "unscaled_inputs",
        scaled=True,
    ),
    failing(
        "quantiles_in_dollars",
        quantiles_of_prices,
        "Koenker's pinball loss in Keras; Stack Overflow on regressions whose target is in dollars",
        "unscaled_targets",
        ("learning_rate_too_low",),
        scaled=True,
    ),
    failing(
        "likelihood_of_incomes",
        variance_of_income,
        "Kendall, Gal, 1703.04977, on predicted log-variances; Stack Overflow on their NaN",
        "unscaled_targets",
        ("unsafe_loss",),
        scaled=True,
    ),
    failing(
        "one_propensity_near_zero",
        inverse_propensity,
        "Swaminathan, Joachims on clipped propensities; keras issues on sample weights and NaN",
        "corrupt_batch",
        ("unscaled_targets",),
        smallest=0.5,
    ),
)
