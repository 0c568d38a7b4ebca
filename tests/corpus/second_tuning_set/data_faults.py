"""Programs that fail by their data, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def raw_cancer(scaled: bool = False) -> Program:
    """Raw measurements, from 1e-3 to 4e3, with SGD."""
    keras.utils.set_random_seed(41)
    x, y = data.breast_cancer()
    if scaled:
        x = data.standardized(x)
    model = keras.Sequential()
    model.add(layers.Input((30,)))
    model.add(layers.Dense(16, activation="relu"))
    model.add(layers.Dense(8, activation="relu"))
    model.add(layers.Dense(1, activation="sigmoid"))
    model.compile(optimizer=optimizers.SGD(0.01), loss="binary_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=10, epochs=15)


def sensor_counts(scaled: bool = False) -> Program:
    """Twelve-bit readings of two sensors beside a fraction, standardised targets, momentum."""
    keras.utils.set_random_seed(42)
    rng = np.random.default_rng(3)
    x = np.stack([rng.integers(0, 4096, 1500), rng.integers(0, 4096, 1500), rng.uniform(0, 1, 1500)], 1).astype(
        "float32"
    )
    y = data.standardized(np.sin(x[:, 0] / 1000) + x[:, 1] / 4096 * x[:, 2])
    if scaled:
        x = x / np.array([4096, 4096, 1], "float32")
    inputs = keras.Input((3,))
    hidden = layers.Dense(64, activation="tanh")(inputs)
    hidden = layers.Dense(64, activation="tanh")(hidden)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.SGD(0.05, momentum=0.9), "mse")
    return Program(model, x, y, batch_size=32, epochs=20)


def friedman(scale: float = 1e5) -> Program:
    """Friedman's function in a unit that makes its values some 300,000, under squared error."""
    keras.utils.set_random_seed(43)
    rng = np.random.default_rng(4)
    x = rng.uniform(0, 1, (1500, 5)).astype("float32")
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = (y - y.mean()) / y.std() * scale + (scale * 3 if scale > 1 else 0)
    model = keras.Sequential(
        [layers.Input((5,)), layers.Dense(64, activation="relu"), layers.Dense(32, activation="relu"), layers.Dense(1)]
    )
    model.compile(optimizers.SGD(0.01), "mean_squared_error", metrics=["mean_absolute_error"])
    return Program(model, (x - 0.5) * 3, y.astype("float32"), batch_size=32, epochs=15)


def class_and_income(scale: float = 60_000.0) -> Program:
    """Which class, and a value in rupees, from one trunk."""
    keras.utils.set_random_seed(44)
    x, y = data.wine()
    z = data.standardized(x)
    income = (z[:, 0] - z[:, 5] + 0.3 * z[:, 9]) / 2
    income = income if scale == 1 else 250_000 + scale * income
    inputs = keras.Input((13,))
    trunk = layers.Dense(64, activation="relu")(inputs)
    kind = layers.Dense(3, activation="softmax", name="kind")(trunk)
    value = layers.Dense(1, name="value")(trunk)
    model = keras.Model(inputs, [kind, value])
    model.compile(optimizers.Adam(0.01), ["sparse_categorical_crossentropy", "mse"], metrics=[["accuracy"], []])
    return Program(model, z, [y, income.astype("float32")], batch_size=16, epochs=25)


def log_of_nothing(floor: float = 0.0) -> Program:
    """The logarithm of pixels, many of which are 0."""
    keras.utils.set_random_seed(45)
    x, y, validation = data.split_digits()
    with np.errstate(divide="ignore"):
        x, unseen = np.log(x + np.float32(floor)), np.log(validation[0] + np.float32(floor))
    model = keras.Sequential([layers.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(10)])
    model.compile(optimizers.Adam(0.002), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8, validation_data=(unseen, validation[1]))


def missing_values(filled: bool = False) -> Program:
    """Two in a hundred readings are missing, as a data frame holds them."""
    keras.utils.set_random_seed(46)
    x, y = data.diabetes()
    x = data.standardized(x)
    holes = np.random.default_rng(5).uniform(size=x.shape) < 0.02
    x[holes] = 0.0 if filled else np.nan
    inputs = keras.Input((10,))
    hidden = layers.Dense(32, activation="selu", kernel_initializer="lecun_normal")(inputs)
    hidden = layers.Dense(16, activation="selu", kernel_initializer="lecun_normal")(hidden)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.Nadam(0.003), "mse", metrics=["mae"])
    return Program(model, x, data.standardized(y), batch_size=16, epochs=15)


def missing_targets(filled: bool = False) -> Program:
    """A moving average of ten leaves NaN in the first nine targets."""
    keras.utils.set_random_seed(47)
    series = data.standardized(np.log(data.daily_prices()))
    x, _ = data.windows(series, 12)
    y = np.full(len(x), np.nan, "float32")
    mean = np.convolve(series, np.ones(10) / 10, "valid").astype("float32")
    y[9:] = mean[12:]
    if filled:
        x, y = x[9:], y[9:]
    model = keras.Sequential(
        [layers.Input((12, 1)), layers.Conv1D(16, 3, activation="relu"), layers.Flatten(), layers.Dense(1)]
    )
    model.compile("adam", "mse")
    return Program(model, x, y, batch_size=32, epochs=10)


def one_burnt_image(value: float = 1e6) -> Program:
    """One picture of which a decoder made something else."""
    keras.utils.set_random_seed(48)
    x, y = data.mnist(1500)
    x = x[..., None] / 255
    if value:
        x[700] = np.random.default_rng(6).uniform(-value, value, (28, 28, 1))
    inputs = keras.Input((28, 28, 1))
    hidden = layers.Conv2D(12, 5, strides=2, activation="relu")(inputs)
    hidden = layers.Conv2D(24, 3, strides=2, activation="relu")(hidden)
    hidden = layers.Dense(48, activation="relu")(layers.Flatten()(hidden))
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(optimizers.SGD(0.05, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=4)


def one_price_in_cents(faulty: bool = True) -> Program:
    """One price that was entered in cents, among scaled ones."""
    keras.utils.set_random_seed(49)
    x, y = data.boston()
    y = data.standardized(y)
    if faulty:
        y[77] = 2.3e7
    model = keras.Sequential(
        [layers.Input((13,)), layers.Dense(48, activation="relu"), layers.Dense(24, activation="relu"), layers.Dense(1)]
    )
    model.compile(optimizers.SGD(0.01), "mse")
    return Program(model, data.standardized(x), y, batch_size=16, epochs=12)


CASES = (
    failing(
        "cancer_in_its_own_units",
        raw_cancer,
        "Stack Overflow: breast cancer data, accuracy stays at 0.62 in Keras",
        "unscaled_inputs",
        ("dead_units",),
        scaled=True,
    ),
    failing(
        "twelve_bit_sensors",
        sensor_counts,
        "LeCun et al., Efficient BackProp, section 4.3 on inputs",
        "unscaled_inputs",
        ("saturated_units",),
        scaled=True,
    ),
    failing(
        "friedman_in_cents",
        friedman,
        "rstudio-conf-2020/dl-keras-tf issue 9: NaN from prices to 755000 under squared error",
        "unscaled_targets",
        scale=1.0,
    ),
    failing(
        "kind_and_income",
        class_and_income,
        "Stack Overflow on several outputs of different scale in Keras",
        "unscaled_targets",
        scale=1.0,
    ),
    failing(
        "logarithm_of_black_pixels",
        log_of_nothing,
        "Stack Overflow 40050397: NaN from -inf after a logarithm",
        "nonfinite_data",
        floor=0.1,
    ),
    failing(
        "missing_readings",
        missing_values,
        "keras issue 12371, comments; Stack Overflow 37232782, NaN in the inputs",
        "nonfinite_data",
        filled=True,
    ),
    failing(
        "targets_of_a_moving_average",
        missing_targets,
        "Stack Overflow on pandas rolling() and loss nan in Keras",
        "nonfinite_data",
        filled=True,
    ),
    failing(
        "one_burnt_image",
        one_burnt_image,
        "Stack Overflow 33962226: a corrupt sample among the causes of NaN",
        "corrupt_batch",
        ("unscaled_inputs",),
        value=0.0,
    ),
    failing(
        "one_price_in_cents",
        one_price_in_cents,
        "Karpathy's recipe on outliers in the data",
        "corrupt_batch",
        ("unscaled_targets",),
        faulty=False,
    ),
)
