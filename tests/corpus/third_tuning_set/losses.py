"""Programs that fail by their loss, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.third_tuning_set.own_step import OwnStep


def mean_over_mask(floor: float = 0.0) -> Program:
    """Targets of which two in five are known (the rest is -100); the loss is divided by the number known in a row."""
    keras.utils.set_random_seed(1201)
    x, _ = data.boston()
    z = data.standardized(x)
    y = z[:, :4] * 1.0
    hidden = np.random.default_rng(19).uniform(size=y.shape) < 0.6
    y[hidden] = -100.0

    def masked(true, pred):
        known = ops.cast(ops.not_equal(true, -100.0), "float32")
        error = ops.sum(known * ops.square(true - pred), axis=-1)
        return error / ops.maximum(ops.sum(known, axis=-1), floor)

    model = keras.Sequential(
        [layers.Input((9,)), layers.Dense(32, activation="relu"), layers.Dense(32, activation="relu"), layers.Dense(4)]
    )
    model.compile(optimizers.Adam(0.003), masked)
    return Program(model, z[:, 4:], y, batch_size=32, epochs=12)


class Critic(OwnStep):
    """A critic with a penalty on the norm of its gradient; its last layer begins at zero."""

    def __init__(self, floor: float):
        super().__init__()
        self.floor = floor
        self.net = keras.Sequential(
            [
                layers.Dense(48, activation="tanh"),
                layers.Dense(48, activation="tanh"),
                layers.Dense(1, kernel_initializer="zeros"),
            ]
        )

    def call(self, x):
        return self.net(x)

    def objective(self, x, fake):
        mix = tf.random.uniform((tf.shape(x)[0], 1))
        between = mix * x + (1 - mix) * fake
        with tf.GradientTape() as tape:
            tape.watch(between)
            score = self(between)
        slope = tape.gradient(score, between)
        norm = tf.sqrt(tf.reduce_sum(tf.square(slope), axis=1) + self.floor)
        return tf.reduce_mean(self(fake)) - tf.reduce_mean(self(x)) + 10 * tf.reduce_mean(tf.square(norm - 1))


def penalty_of_flat_critic(floor: float = 0.0) -> Program:
    """The norm of a gradient that is 0 at the start: its square root has no slope there."""
    keras.utils.set_random_seed(1203)
    rng = np.random.default_rng(21)
    x = (rng.normal(size=(1500, 8)) * 0.5 + 1).astype("float32")
    fake = rng.normal(size=(1500, 8)).astype("float32") - 1
    model = Critic(floor)
    model(x[:1])
    model.compile(optimizer=optimizers.Adam(0.002))
    return Program(model, x, fake, batch_size=32, epochs=6)


def crossentropy_of_standardized(squash: bool = False) -> Program:
    """An autoencoder with a sigmoid and binary cross-entropy, on standardised columns."""
    keras.utils.set_random_seed(1206)
    x, _ = data.breast_cancer()
    z = data.standardized(x)
    if squash:
        z = ((x - x.min(0)) / (x.max(0) - x.min(0))).astype("float32")
    model = keras.Sequential(
        [
            layers.Input((30,)),
            layers.Dense(20, activation="relu"),
            layers.Dense(10, activation="relu"),
            layers.Dense(20, activation="relu"),
            layers.Dense(30, activation="sigmoid"),
        ]
    )
    model.compile(optimizers.Adam(0.003), "binary_crossentropy", metrics=["mae"])
    return Program(model, z, z, batch_size=16, epochs=25)


def poisson_of_linear(activation: str | None = None) -> Program:
    """Counts under the Poisson loss, from an output that may be negative."""
    keras.utils.set_random_seed(1207)
    rng = np.random.default_rng(24)
    series = rng.poisson(np.exp(1 + 0.8 * np.sin(np.arange(1500) / 9))).astype("float32")
    x, y = data.windows(series, 24)
    inputs = keras.Input((24, 1))
    hidden = layers.Conv1D(16, 5, activation="relu")(layers.Rescaling(0.2)(inputs))
    hidden = layers.Dense(24, activation="relu")(layers.Flatten()(hidden))
    model = keras.Model(inputs, layers.Dense(1, activation=activation)(hidden))
    model.compile(optimizers.Adam(0.003), "poisson", metrics=["mae"])
    return Program(model, x, y[:, None], batch_size=32, epochs=10)


def likelihood_of_large_targets(scaled: bool = False) -> Program:
    """Mean and deviation of targets of 800 +- 150: the deviation grows instead of the mean."""
    keras.utils.set_random_seed(1208)
    x, _ = data.boston()
    z = data.standardized(x)
    y = z[:, :1] * (1.0 if scaled else 150.0) + (0.0 if scaled else 800.0)

    def likelihood(true, pred):
        deviation = 1e-3 + ops.softplus(pred[:, 1:])
        return ops.log(deviation) + 0.5 * ops.square((true - pred[:, :1]) / deviation)

    model = keras.Sequential(
        [layers.Input((12,)), layers.Dense(32, activation="relu"), layers.Dense(32, activation="relu"), layers.Dense(2)]
    )
    model.compile(optimizers.Adam(0.005), likelihood)
    return Program(model, z[:, 1:], y, batch_size=32, epochs=20)


def one_hot_of_labels_from_1(first: int = 1) -> Program:
    """Labels 1 to 3 as one-hot rows of three columns: those of the last class are 0."""
    keras.utils.set_random_seed(1209)
    x, labels = data.wine()
    y = np.eye(4, dtype="float32")[labels + first][:, :3]
    model = keras.Sequential(
        [layers.Input((13,)), layers.Dense(24, activation="relu"), layers.Dense(3, activation="softmax")]
    )
    model.compile(optimizers.Adam(0.005), "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=16, epochs=15)


CASES = (
    failing(
        "likelihood_of_large_targets",
        likelihood_of_large_targets,
        "tensorflow/probability issues 703 and 751: a scale by softplus, targets far from 1",
        "unscaled_targets",
        scaled=True,
    ),
    failing(
        "one_hot_of_labels_from_1",
        one_hot_of_labels_from_1,
        "Stack Overflow: tf.one_hot of labels that begin at 1 gives rows of zeros",
        "loss_output_mismatch",
        first=0,
    ),
    failing(
        "mean_over_an_empty_mask",
        mean_over_mask,
        "keras issues 3270 and 7517: division by the mean of a mask that is all zero",
        "unsafe_loss",
        floor=1.0,
    ),
    failing(
        "penalty_of_a_flat_critic",
        penalty_of_flat_critic,
        "irfanICMLL/structure_knowledge_distillation issue 21; pytorch issue 2534 on sqrt at 0",
        "unsafe_loss",
        floor=1e-8,
    ),
    failing(
        "crossentropy_of_standard_scores",
        crossentropy_of_standardized,
        "Stack Overflow: autoencoder with negative binary_crossentropy loss",
        "loss_output_mismatch",
        squash=True,
    ),
    failing(
        "poisson_of_a_linear_unit",
        poisson_of_linear,
        "Keras' page of the Poisson loss; Stack Overflow on its NaN with a linear output",
        "loss_output_mismatch",
        ("unsafe_loss",),
        activation="softplus",
    ),
)
