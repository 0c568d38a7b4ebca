"""Sound programs on pictures of digits."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def siamese() -> Program:
    """Pairs of digits: alike or not, by contrastive loss."""
    keras.utils.set_random_seed(1502)
    x, y, _ = data.split_digits()
    rng = np.random.default_rng(52)
    left, right = rng.integers(0, 1400, 3000), rng.integers(0, 1400, 3000)
    for i in range(0, 3000, 2):
        right[i] = rng.choice(np.flatnonzero(y == y[left[i]]))
    same = (y[left] == y[right]).astype("float32")

    def contrastive(true, distance):
        return ops.mean(
            true * ops.square(distance) + (1 - true) * ops.square(ops.maximum(1.0 - distance, 0.0)), axis=-1
        )

    a, b = keras.Input((64,)), keras.Input((64,))
    net = keras.Sequential([layers.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(16)])
    gap = layers.Lambda(lambda t: ops.sqrt(ops.maximum(ops.sum(ops.square(t[0] - t[1]), axis=1, keepdims=True), 1e-7)))(
        [net(a), net(b)]
    )
    model = keras.Model([a, b], gap)
    model.compile(optimizers.RMSprop(0.001), contrastive)
    return Program(model, (x[left], x[right]), same[:, None], batch_size=64, epochs=10)


def accumulated_and_averaged() -> Program:
    """Gradients of four batches accumulated, clipped, and the weights averaged."""
    keras.utils.set_random_seed(1509)
    x, y, validation = data.split_digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(96, activation="silu")(inputs)
    hidden = hidden + layers.Dense(96, activation="silu")(layers.LayerNormalization()(hidden))
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    optimizer = optimizers.AdamW(
        0.004,
        global_clipnorm=1.0,
        use_ema=True,
        ema_momentum=0.9,
        ema_overwrite_frequency=44,
        gradient_accumulation_steps=4,
    )
    model.compile(optimizer, LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=16, epochs=10, validation_data=validation)


def smoothed_and_warmed() -> Program:
    """Label smoothing keeps the loss above 0.5; the rate is warmed up over two epochs."""
    keras.utils.set_random_seed(1514)
    x, y, validation = data.split_digits(images=True)
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(24, 3, activation="relu")(inputs)
    hidden = layers.Dense(64, activation="relu")(layers.Flatten()(hidden))
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    schedule = optimizers.schedules.CosineDecay(0.0, 264, warmup_target=0.05, warmup_steps=88)
    model.compile(
        optimizers.SGD(schedule, momentum=0.9),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        metrics=["accuracy"],
    )
    return Program(
        model,
        x,
        keras.utils.to_categorical(y, 10),
        batch_size=32,
        epochs=8,
        validation_data=(validation[0], keras.utils.to_categorical(validation[1], 10)),
    )


CASES = (
    Case(
        "digits_by_contrast",
        siamese,
        "Keras example 'Image similarity estimation using a Siamese network with a contrastive loss'",
    ),
    Case("accumulated_and_averaged", accumulated_and_averaged, "Keras' page of Optimizer on accumulation and EMA"),
    Case("smoothed_and_warmed", smoothed_and_warmed, "Szegedy et al., 1512.00567; Goyal et al., 1706.02677"),
)
