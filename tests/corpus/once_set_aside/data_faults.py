"""Programs that fail because of what they are fed: scales, values that are not numbers, a single bad record."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from keras import layers

from tests.corpus import data
from tests.corpus.case import Case, Program


def raw_measurements(broken: bool) -> Program:
    """Tumour measurements as they come, areas in the thousands beside fractions, into a small net with SGD."""
    keras.utils.set_random_seed(41)
    x, y = data.breast_cancer()
    if not broken:
        x = data.standardized(x)
    model = keras.Sequential([keras.Input((30,))])
    model.add(layers.Dense(16, "relu"))
    model.add(layers.Dense(8, "relu"))
    model.add(layers.Dense(1, "sigmoid"))
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x[:450], y[:450], 16, 15, (x[450:], y[450:]))


def one_raw_column(broken: bool) -> Program:
    """Simple linear regression on one column, a car's weight in pounds, one row at a time."""
    keras.utils.set_random_seed(42)
    x, y = data.auto_mpg()
    x, y = x[:, 3:4], y.astype("float32")[:, None]
    if not broken:
        x, y = data.standardized(x), data.standardized(y)
    inputs = keras.Input((1,))
    outputs = layers.Dense(1, activation="linear")(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(), "mse")
    return Program(model, x, y, 1, 3)


def time_stamp(broken: bool) -> Program:
    """A GRU that is fed the date as seconds since 1970 beside the scaled price."""
    keras.utils.set_random_seed(43)
    price = data.standardized(data.daily_prices())
    x, y = data.windows(price, 20)
    seconds = (1.1e9 + 86400.0 * np.arange(len(price))).astype("float32")
    stamps, _ = data.windows(seconds if broken else data.standardized(seconds), 20)
    x = np.concatenate([x, stamps], axis=2)
    model = keras.Sequential([keras.Input((20, 2)), layers.GRU(24), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    return Program(model, x, y, 32, 6)


def dollars(broken: bool) -> Program:
    """House prices in dollars: with Adam's default rate the net stays near zero."""
    keras.utils.set_random_seed(44)
    x, y = data.boston()
    x = data.standardized(x)
    y = (1000.0 * y).astype("float32")
    if not broken:
        y = data.standardized(y)
    model = keras.Sequential([keras.Input((13,))])
    model.add(layers.Dense(64, "relu"))
    model.add(layers.Dense(64, "relu"))
    model.add(layers.Dense(1))
    model.compile(keras.optimizers.Adam(), "mse")
    return Program(model, x[:400], y[:400], 32, 15)


def fourth_power(broken: bool) -> Program:
    """y = x^4 for x from -100 to 100 where y = x^3 still seemed to work: targets of a hundred millions."""
    keras.utils.set_random_seed(45)
    x = np.linspace(-100.0, 100.0, 2000, dtype="float32")[:, None]
    y = x**4
    if not broken:
        x, y = x / 100.0, y / 1e8
    x, y = data.shuffled(x, y)
    inputs = keras.Input((1,))
    hidden = layers.Dense(50, "elu", kernel_initializer="he_uniform")(inputs)
    hidden = layers.Dense(50, "elu", kernel_initializer="he_uniform")(hidden)
    outputs = layers.Dense(1)(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return Program(model, x, y, 50, 15)


def distances(broken: bool) -> Program:
    """Disease progression, 25 to 346, by SGD with momentum on standardized columns."""
    keras.utils.set_random_seed(46)
    x, y = data.diabetes()
    x, y = data.standardized(x), y.astype("float32")[:, None]
    if not broken:
        y = data.standardized(y)
    model = keras.Sequential([keras.Input((10,))])
    for _ in range(3):
        model.add(layers.Dense(64, "relu", kernel_initializer="he_normal"))
    model.add(layers.Dense(1))
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return Program(model, x, y, 32, 15)


def unknown_horsepower(broken: bool) -> Program:
    """Auto MPG with the six question marks of its horsepower column turned into NaN on reading."""
    keras.utils.set_random_seed(47)
    x, y = data.auto_mpg()
    x = data.standardized(x[:, :7])
    y = data.standardized(y.astype("float32")[:, None])
    missing = [32, 126, 330, 336, 354, 374]
    x[missing, 2] = np.nan
    if not broken:
        x, y = np.delete(x, missing, axis=0), np.delete(y, missing, axis=0)
    model = keras.Sequential([keras.Input((7,)), layers.Dense(64, "relu"), layers.Dense(64, "relu"), layers.Dense(1)])
    model.compile(keras.optimizers.RMSprop(0.001), "mse", metrics=["mae"])
    return Program(model, x, y, 32, 12)


def logarithm_of_zero(broken: bool) -> Program:
    """Skewed columns are put on a logarithmic scale, and thirteen tumours have a concavity of exactly 0."""
    keras.utils.set_random_seed(48)
    x, y = data.breast_cancer()
    with np.errstate(divide="ignore"):
        x = np.log(x) if broken else np.log1p(x)
    finite = np.where(np.isfinite(x), x, np.nan)
    x = ((x - np.nanmean(finite, axis=0)) / np.nanstd(finite, axis=0)).astype("float32")
    model = keras.Sequential([keras.Input((30,)), layers.Dense(32, "tanh"), layers.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 10)


def returns_of_gaps(broken: bool) -> Program:
    """Returns over a price series in which a missing day was filled with 0: a division by zero."""
    keras.utils.set_random_seed(49)
    price = data.daily_prices()
    price[500] = 0.0 if broken else price[499]
    with np.errstate(divide="ignore", invalid="ignore"):
        change = (100.0 * (price[1:] - price[:-1]) / price[:-1]).astype("float32")
    x, y = data.windows(change, 15)
    smooth = np.convolve(change, np.ones(15, "float32") / 15.0, "valid")[: len(y)]
    inputs = keras.Input((15, 1))
    hidden = layers.Conv1D(16, 3, activation="relu")(inputs)
    outputs = layers.Dense(1)(layers.Flatten()(hidden))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mae")
    return Program(model, x, smooth, 32, 10)


def broken_scan(broken: bool) -> Program:
    """One image of the training set was read with the wrong byte order: its pixels are of the order of 1e30."""
    keras.utils.set_random_seed(50)
    x, y = data.mnist(1500)
    x = (x / 255.0).astype("float32")[..., None]
    if broken:
        x[777] *= 3e30
    model = keras.Sequential([keras.Input((28, 28, 1))])
    model.add(layers.Conv2D(8, 3, strides=2, activation="relu"))
    model.add(layers.Conv2D(16, 3, strides=2, activation="relu"))
    model.add(layers.Flatten())
    model.add(layers.Dense(10, "softmax"))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 4)


def missing_value_code(broken: bool) -> Program:
    """One target carries the archive's code for a missing value, 9999999, among values of the order of 1."""
    keras.utils.set_random_seed(51)
    x, y = data.auto_mpg()
    x, y = data.standardized(x[:, :7]), data.standardized(y.astype("float32")[:, None])
    if broken:
        y[200] = 9999999.0
    model = keras.Sequential([keras.Input((7,)), layers.Dense(32, "relu"), layers.Dense(32, "relu"), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return Program(model, x, y, 16, 10)


def _case(build, cause, source, accepted=()) -> Case:
    return Case(build.__name__, partial(build, True), source, cause, accepted, partial(build, False))


CASES = (
    _case(
        raw_measurements, "unscaled_inputs", "AUTOTRAINER and UMLAUT studies: input not normalized; keras issue 2711"
    ),
    _case(
        one_raw_column,
        "unscaled_inputs",
        "Cross Validated 284189, Simple linear regression in Keras",
        ("unscaled_targets", "learning_rate_too_high"),
    ),
    _case(time_stamp, "unscaled_inputs", "Keras code example, timeseries weather forecasting, without its normalize()"),
    _case(dollars, "unscaled_targets", "community.deeplearning.ai 752992: incomes in dollars and Adam"),
    _case(
        fourth_power,
        "unscaled_targets",
        "Stack Overflow 52800582: Why do I fail to predict y=x^4 with Keras?",
        ("unscaled_inputs",),
    ),
    _case(
        distances,
        "unscaled_targets",
        "Cross Validated 418955: diverges because the target is not scaled",
        ("learning_rate_too_high",),
    ),
    _case(unknown_horsepower, "nonfinite_data", "TensorFlow tutorial, Basic regression, without its dropna()"),
    _case(logarithm_of_zero, "nonfinite_data", "keras issue 6447, comment of 2020: NaN in the table"),
    _case(returns_of_gaps, "nonfinite_data", "Stack Overflow: infinite values after pandas pct_change in a Keras net"),
    _case(broken_scan, "corrupt_batch", "keras issue 6921: the batch that provoked the NaN loss"),
    _case(
        missing_value_code, "corrupt_batch", "keras issue 6921; codes for missing values in archives of measurements"
    ),
)
