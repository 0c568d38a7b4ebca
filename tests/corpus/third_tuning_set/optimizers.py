"""Programs that fail by what their optimizer keeps, and what mends them."""

from __future__ import annotations

import keras
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def average_over_weights(every: int | None = 1, momentum: float = 0.9999) -> Program:
    """EMA written over the weights after each step: they stay where they were."""
    keras.utils.set_random_seed(1408)
    x, y, validation = data.split_digits(images=True)
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    hidden = layers.Add()([hidden, layers.Conv2D(16, 3, padding="same", activation="relu")(hidden)])
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(hidden)))
    model.compile(
        optimizers.Adam(0.002, use_ema=True, ema_momentum=momentum, ema_overwrite_frequency=every),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return Program(model, x, y, batch_size=32, epochs=6, validation_data=validation)


def full_accumulator(initial: float = 1e6) -> Program:
    """Adagrad's accumulator begins at a million, where 0.1 is usual."""
    keras.utils.set_random_seed(1409)
    x, y = data.source_tokens(1200)
    inputs = keras.Input((40,), dtype="int32")
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(1000, 24)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(24, activation="relu")(hidden)))
    model.compile(optimizers.Adagrad(0.3, initial_accumulator_value=initial), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8)


def accumulate_for_ever(steps: int = 100_000) -> Program:
    """gradient_accumulation_steps was meant as the size of the effective batch; there are not so many steps."""
    keras.utils.set_random_seed(1410)
    x, y = data.breast_cancer()
    model = keras.Sequential(
        [layers.Input((30,)), layers.Dense(32, activation="relu"), layers.Dense(16, activation="relu"), layers.Dense(1)]
    )
    model.compile(
        optimizers.Adam(0.005, gradient_accumulation_steps=steps),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
    )
    return Program(model, data.standardized(x), y.astype("float32")[:, None], batch_size=16, epochs=10)


CASES = (
    failing(
        "average_written_over_weights",
        average_over_weights,
        "Keras' page of Optimizer on ema_overwrite_frequency",
        "optimizer_state",
        ("learning_rate_too_low",),
        every=None,
    ),
    failing(
        "adagrad_from_a_million",
        full_accumulator,
        "Keras' page of Adagrad on initial_accumulator_value",
        "optimizer_state",
        ("learning_rate_too_low",),
        initial=0.1,
    ),
    failing(
        "accumulation_without_end",
        accumulate_for_ever,
        "Keras' page of Optimizer on gradient_accumulation_steps",
        "optimizer_state",
        ("learning_rate_too_low",),
        steps=2,
    ),
)
