"""Programs that fail by their learning rate or their optimizer, and what mends them."""

from __future__ import annotations

import keras
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear_rate(rate: float = 2.0) -> Program:
    """Linear regression by SGD at a rate of two."""
    keras.utils.set_random_seed(61)
    x, y = data.boston()
    model = keras.Sequential([layers.Input((13,)), layers.Dense(1)])
    model.compile(optimizers.SGD(rate), "mse", metrics=["mae"])
    return Program(model, data.standardized(x), data.standardized(y), batch_size=32, epochs=15)


def convnet_by_fast_adam(rate: float = 0.5) -> Program:
    """A convnet by Adam at a rate of one half."""
    keras.utils.set_random_seed(62)
    x, y = data.mnist(1500)
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(3),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizers.Adam(learning_rate=rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[..., None] / 255, y, batch_size=64, epochs=5)


def warm_up_to_heat(peak: float = 4.0) -> Program:
    """The warm-up ends at four; the owner wrote the rate for a batch of 8192."""
    keras.utils.set_random_seed(63)
    x, y, validation = data.split_digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(128, activation="gelu")(inputs)
    hidden = layers.Dense(128, activation="gelu")(hidden)
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    schedule = optimizers.schedules.CosineDecay(0.001, 400, warmup_target=peak, warmup_steps=60)
    model.compile(optimizers.SGD(schedule, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=10, validation_data=validation)


def convnet_by_slow_sgd(rate: float = 1e-6) -> Program:
    """A convnet by SGD at a rate of one millionth."""
    keras.utils.set_random_seed(64)
    x, y, validation = data.split_digits(images=True)
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(24, 3, activation="relu")(inputs)
    hidden = layers.Conv2D(24, 3, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(hidden)))
    model.compile(optimizers.SGD(rate, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8, validation_data=validation)


def early_pieces(boundaries: tuple[int, int] = (10, 20)) -> Program:
    """Boundaries in epochs where the schedule counts steps."""
    keras.utils.set_random_seed(65)
    x, y = data.source_tokens(1400)
    schedule = optimizers.schedules.PiecewiseConstantDecay(list(boundaries), [1e-3, 1e-5, 1e-7])
    model = keras.Sequential(
        [
            layers.Input((40,)),
            layers.Embedding(1000, 32),
            layers.Conv1D(48, 5, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(3),
        ]
    )
    model.compile(optimizers.Adam(schedule), LOGITS, metrics=["accuracy"])
    return Program(model, x[:1100], y[:1100], batch_size=32, epochs=6, validation_data=(x[1100:], y[1100:]))


def momentum_of_one(momentum: float = 1.0) -> Program:
    """A momentum of one forgets no gradient."""
    keras.utils.set_random_seed(66)
    x, y, validation = data.split_digits()
    model = keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    model.compile(optimizers.SGD(0.05, momentum=momentum), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8, validation_data=validation)


def stale_moments(fresh: bool = False) -> Program:
    """Trained first on prices in dollars, then compiled again with the same optimizer on scaled ones."""
    keras.utils.set_random_seed(67)
    x, y = data.boston()
    x = data.standardized(x)
    model = keras.Sequential(
        [layers.Input((13,)), layers.Dense(64, activation="relu"), layers.Dense(64, activation="relu"), layers.Dense(1)]
    )
    adam = optimizers.Adam(0.001, beta_2=0.9999)
    model.compile(adam, "mse")
    model.fit(x, y * 1000, batch_size=32, epochs=4, verbose=0)
    weights = keras.models.clone_model(model).get_weights()
    model.set_weights(weights)
    model.compile(optimizers.Adam(0.001, beta_2=0.9999) if fresh else adam, "mse")
    return Program(model, x, data.standardized(y), batch_size=32, epochs=15)


def adam_without_epsilon(epsilon: float = 0.0) -> Program:
    """Adam with an epsilon of 0; words that do not occur have a gradient of exactly 0."""
    keras.utils.set_random_seed(68)
    x, y = data.source_tokens(1200)
    inputs = keras.Input((40,), dtype="int32")
    hidden = layers.Embedding(1000, 24)(inputs)
    hidden = layers.Dense(32, activation="relu")(layers.GlobalMaxPooling1D()(hidden))
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    model.compile(optimizers.Adam(0.002, epsilon=epsilon), LOGITS, metrics=["accuracy"])
    return Program(model, x[:1000], y[:1000], batch_size=32, epochs=6, validation_data=(x[1000:], y[1000:]))


CASES = (
    failing(
        "linear_regression_rate_two",
        linear_rate,
        "Stack Overflow on linear regression in Keras whose loss goes to NaN",
        "learning_rate_too_high",
        rate=0.01,
    ),
    failing(
        "convnet_adam_one_half",
        convnet_by_fast_adam,
        "keras issue 2711 and datascience.stackexchange 25704 on loss that does not fall",
        "learning_rate_too_high",
        ("dead_units",),
        rate=0.001,
    ),
    failing(
        "warm_up_to_four",
        warm_up_to_heat,
        "Goyal et al., 1706.02677: the rate belongs to the batch size",
        "learning_rate_too_high",
        peak=0.05,
    ),
    failing(
        "convnet_sgd_one_millionth",
        convnet_by_slow_sgd,
        "keras issue 2711, 'Loss not changing when training'",
        "learning_rate_too_low",
        rate=0.01,
    ),
    failing(
        "pieces_counted_in_epochs",
        early_pieces,
        "Keras' page of PiecewiseConstantDecay: boundaries count steps",
        "learning_rate_too_low",
        boundaries=(5000, 10000),
    ),
    failing(
        "momentum_of_one",
        momentum_of_one,
        "Stack Overflow: SGD in Keras with momentum 1",
        "optimizer_state",
        ("learning_rate_too_high",),
        momentum=0.9,
    ),
    failing(
        "moments_of_another_task",
        stale_moments,
        "keras issues on compiling again with an optimizer that was used before",
        "optimizer_state",
        ("learning_rate_too_low",),
        fresh=True,
    ),
    failing(
        "adam_without_epsilon_on_words",
        adam_without_epsilon,
        "tensorflow issue 323, comments; Keras' page of Adam on epsilon",
        "optimizer_state",
        epsilon=1e-7,
    ),
)
