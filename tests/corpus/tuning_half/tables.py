"""Programs on tables and series that fail by their data, and what mends them."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


def _regressor(columns: int, width: int = 64) -> keras.Sequential:
    return keras.Sequential(
        [
            layers.Input((columns,)),
            layers.Dense(width, activation="relu"),
            layers.Dense(width, activation="relu"),
            layers.Dense(1),
        ]
    )


def raw_columns(scaled: bool = False) -> Program:
    """Miles per gallon from raw columns, among them weights of 5140 pounds, with SGD."""
    keras.utils.set_random_seed(61)
    x, y = data.auto_mpg()
    x = data.standardized(x[:, :7]) if scaled else x[:, :7]
    model = _regressor(7)
    model.compile(optimizers.SGD(0.01), "mse")
    return Program(model, x, data.standardized(y), epochs=15)


def raw_wine(scaled: bool = False) -> Program:
    """Three cultivars from raw columns: proline to 1680 beside a hue of 0.5."""
    keras.utils.set_random_seed(62)
    x, y = data.wine()
    inputs = keras.Input((13,))
    hidden = inputs
    if scaled:
        normalization = layers.Normalization()
        normalization.adapt(x)
        hidden = normalization(inputs)
    hidden = layers.Dense(32, activation="relu")(hidden)
    hidden = layers.Dense(16, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(hidden))
    model.compile(optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=16, epochs=20)


def prices_in_dollars(unit: float = 1000.0) -> Program:
    """House prices in dollars, 5000 to 50000, from scaled columns, with SGD."""
    keras.utils.set_random_seed(63)
    x, y = data.boston()
    model = _regressor(13)
    model.compile(optimizers.SGD(0.005, momentum=0.9), "mse")
    target = data.standardized(y) if unit == 1 else y * unit
    return Program(model, data.standardized(x), target, epochs=15)


def names_of_cars(columns: int = 8) -> Program:
    """All columns of a table, the name of the car too, which its loader turned to NaN."""
    keras.utils.set_random_seed(64)
    x, y = data.auto_mpg()
    mean, deviation = x[:, :columns].mean(axis=0), x[:, :columns].std(axis=0)
    model = _regressor(columns)
    model.compile(optimizers.Adam(0.005), "mse", metrics=["mae"])
    return Program(model, (x[:, :columns] - mean) / deviation, data.standardized(y), epochs=12)


def pixels_that_never_light(floor: float = 0.0) -> Program:
    """Pixels standardized one by one: some are 0 in every picture, and 0 divided by 0 is NaN."""
    keras.utils.set_random_seed(65)
    x, y = data.digits()
    with np.errstate(invalid="ignore"):
        x = (x - x.mean(axis=0)) / (x.std(axis=0) + np.float32(floor))
    model = keras.Sequential()
    model.add(layers.Input((64,)))
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(10, activation="softmax"))
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, keras.utils.to_categorical(y), batch_size=64, epochs=8)


def slipped_point(factor: float = 1e4) -> Program:
    """One row in which the points of three numbers slipped, in a table that is scaled by the year before."""
    keras.utils.set_random_seed(66)
    x, y = data.boston()
    x = data.standardized(x)
    x[301, [4, 5, 10]] *= factor
    inputs = keras.Input((13,))
    hidden = layers.Dense(32, activation="relu")(inputs)
    hidden = layers.Dense(16, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.SGD(0.02), "mse")
    return Program(model, x, data.standardized(y), batch_size=16, epochs=10)


def meter_out_of_order(reading: float | None = -99_999.0) -> Program:
    """Tomorrow's value of a scaled series by a GRU; one target is what the meter writes when it is out of order."""
    keras.utils.set_random_seed(67)
    x, y = data.windows(data.standardized(np.log(data.daily_prices())), 20)
    if reading is not None:
        y[400] = reading
    inputs = keras.Input((20, 1))
    hidden = layers.GRU(24, return_sequences=True)(inputs)
    hidden = layers.GRU(24)(hidden)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.Adam(0.003), "mse")
    return Program(model, x, y, batch_size=32, epochs=4)


CASES = (
    Case(
        "auto_mpg_raw",
        raw_columns,
        "Stack Overflow 37232782, 'NaN loss when training regression network'",
        "unscaled_inputs",
        repaired=partial(raw_columns, scaled=True),
    ),
    Case(
        "wine_raw",
        raw_wine,
        "scikit-learn, 'Importance of Feature Scaling', on the same table; keras issue 2711, comments",
        "unscaled_inputs",
        repaired=partial(raw_wine, scaled=True),
    ),
    Case(
        "boston_in_dollars",
        prices_in_dollars,
        "Stack Overflow 52800582, 'Why do I fail to predict y=x**4 with Keras? (y=x**3 works)'; 37232782",
        "unscaled_targets",
        repaired=partial(prices_in_dollars, unit=1.0),
    ),
    Case(
        "auto_mpg_with_the_names_of_the_cars",
        names_of_cars,
        "mlxtend's autompg_data, whose eighth column is NaN; keras issue 12371, comments: NaN in the inputs",
        "nonfinite_data",
        repaired=partial(names_of_cars, columns=7),
    ),
    Case(
        "digits_divided_by_no_deviation",
        pixels_that_never_light,
        "fferroni/DEC-Keras issue 9: columns of zeros; Stack Overflow 40050397, 'Deep-Learning Nan loss reasons'",
        "nonfinite_data",
        repaired=partial(pixels_that_never_light, floor=1e-7),
    ),
    Case(
        "one_row_with_a_slipped_point",
        slipped_point,
        "Stack Overflow 33962226, 'Common causes of nans during training of neural networks': a corrupt sample",
        "corrupt_batch",
        accepted=("unscaled_inputs",),
        repaired=partial(slipped_point, factor=1.0),
    ),
    Case(
        "one_target_out_of_order",
        meter_out_of_order,
        "Karpathy, 'A Recipe for Training Neural Networks', on outliers; PaLM, 2204.02311, section 5.1, on spikes",
        "corrupt_batch",
        accepted=("unscaled_targets",),
        repaired=partial(meter_out_of_order, reading=None),
    ),
)
