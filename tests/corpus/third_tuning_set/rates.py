"""Programs that fail by the size of their steps, and what mends them."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.third_tuning_set.own_step import OwnStep

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def decay_that_grows(rate: float = 1.1) -> Program:
    """A decay rate of 1.1 every ten steps, where 0.9 was meant: the rate grows."""
    keras.utils.set_random_seed(1402)
    x, y, validation = data.split_digits(images=True)
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(16, 3, activation="relu")(inputs)
    hidden = layers.Conv2D(32, 3, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(hidden)))
    schedule = optimizers.schedules.ExponentialDecay(0.05, decay_steps=10, decay_rate=rate)
    model.compile(optimizers.SGD(schedule, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=15, validation_data=validation)


class Variational(OwnStep):
    """The likelihood is a sum over pixels and over the batch, as the formula has it."""

    def __init__(self):
        super().__init__()
        self.down = layers.Dense(64, activation="relu")
        self.mean, self.spread = layers.Dense(4), layers.Dense(4, kernel_initializer="zeros")
        self.up = keras.Sequential([layers.Dense(64, activation="relu"), layers.Dense(64)])

    def call(self, x):
        h = self.down(x)
        mean, spread = self.mean(h), self.spread(h)
        return self.up(mean + ops.exp(spread / 2) * tf.random.normal(tf.shape(mean))), mean, spread

    def objective(self, x, y):
        out, mean, spread = self(x, training=True)
        divergence = -0.5 * ops.sum(1 + spread - ops.square(mean) - ops.exp(spread))
        return ops.sum(ops.square(x - out)) + 0.1 * divergence


def sum_of_everything(rate: float = 0.02) -> Program:
    """Digits by a variational autoencoder at a rate that suits a mean."""
    keras.utils.set_random_seed(1403)
    x, _, _ = data.split_digits()
    model = Variational()
    model(x[:2])
    model.compile(optimizer=optimizers.SGD(rate))
    return Program(model, x, x, batch_size=64, epochs=20)


def clipped_to_nothing(value: float = 1e-6) -> Program:
    """clipvalue of 1e-6 before plain SGD."""
    keras.utils.set_random_seed(1405)
    x, y = data.auto_mpg()
    inputs = keras.Input((7,))
    hidden = layers.Dense(48, activation="relu")(inputs)
    hidden = layers.Add()([hidden, layers.Dense(48, activation="relu")(hidden)])
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.SGD(0.02, clipvalue=value), "mse", metrics=["mae"])
    return Program(model, data.standardized(x[:, :7]), data.standardized(y), batch_size=32, epochs=20)


def warm_up_in_samples(warm_up: int = 200_000) -> Program:
    """A warm-up counted in samples, where the schedule counts steps."""
    keras.utils.set_random_seed(1406)
    x, y, validation = data.split_digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(96, activation="gelu")(inputs)
    hidden = layers.Dense(96, activation="gelu")(hidden)
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    schedule = optimizers.schedules.CosineDecay(0.0, 400_000, warmup_target=0.1, warmup_steps=warm_up)
    model.compile(optimizers.SGD(schedule, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8, validation_data=validation)


CASES = (
    failing(
        "decay_rate_above_one",
        decay_that_grows,
        "tensorflow issue 46071, on what decay_rate means",
        "learning_rate_too_high",
        rate=0.95,
    ),
    failing(
        "sum_over_pixels_and_batch",
        sum_of_everything,
        "AppliedDataSciencePartners/WorldModels issue 9; rishikksh20/vae_tacotron2 issue 2",
        "learning_rate_too_high",
        ("unbounded_activation",),
        rate=0.0002,
    ),
    failing(
        "clipvalue_of_one_millionth",
        clipped_to_nothing,
        "Stack Overflow on clipvalue and clipnorm whose loss does not fall",
        "learning_rate_too_low",
        ("optimizer_state",),
        value=1.0,
    ),
    failing(
        "warm_up_in_samples",
        warm_up_in_samples,
        "crowsonkb/k-diffusion issue 50; tensorflow pull request 28623",
        "learning_rate_too_low",
        warm_up=100,
    ),
)
