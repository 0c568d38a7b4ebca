"""The best constant prediction to the loss that a user's train step computes by itself."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.probes.own_step import OwnStepLoss
from gradrecipes.training.trial import Trial

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(320, 4)).astype(np.float32)
Y = (X[:, 0] + 0.3 * RNG.normal(size=320)).astype(np.float32)


class OwnStep(keras.Model):
    """Trains on a loss of its own, by a step of its own."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.own_loss(x, y)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"nll": loss}


class Likelihood(OwnStep):
    """Predicts mean and logarithm of the variance as two outputs."""

    def __init__(self, *, activation=None, inner=False):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.hidden = layers.Dense(32, activation="relu")
        self.mean, self.spread = layers.Dense(1, activation=activation), layers.Dense(1)
        inputs = keras.Input((4,))
        x = self.hidden(inputs)
        self.net = keras.Model(inputs, [self.mean(x), self.spread(x)]) if inner else None

    def call(self, x):
        x = self.hidden(x)
        return self.mean(x), self.spread(x)

    def own_loss(self, x, y):
        mean, spread = (self.net or self)(x, training=True)
        return tf.reduce_mean(0.5 * spread + 0.5 * tf.square(y[:, None] - mean) * tf.exp(-spread))


class Similar(Likelihood):
    """Takes targets and makes no use of them, as a net that compares two views of its inputs does."""

    def own_loss(self, x, y):
        one, other = (tf.concat(self(part), axis=1) for part in (x, 1.1 * x))
        return tf.reduce_mean(tf.square(one - other)) + 0.0 * tf.reduce_mean(y)


class Drawn(Likelihood):
    """Tries an answer beside its own, by random numbers of the model's, as a net that learns from rewards does."""

    def __init__(self):
        super().__init__()
        self.noise = keras.random.SeedGenerator(3)

    def own_loss(self, x, y):
        mean, spread = self(x, training=True)
        tried = mean + keras.random.normal(tf.shape(mean), seed=self.noise)
        return tf.reduce_mean(tf.square(y[:, None] - tried) + 0.1 * tf.square(spread))


class TwoHeads(OwnStep):
    """Learns a class and two numbers, as a dictionary of targets, or the class alone."""

    def __init__(self, *, activation="softmax", alone=False):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.hidden, self.label = layers.Dense(32, activation="relu"), layers.Dense(3, activation=activation)
        self.box, self.alone = None if alone else layers.Dense(2), alone
        self.softmax = activation == "softmax"

    def call(self, x):
        x = self.hidden(x)
        return self.label(x) if self.alone else {"box": self.box(x), "label": self.label(x)}

    def own_loss(self, x, y):
        answers = self(x, training=True)
        answers, y = ({"label": answers}, {"label": y}) if self.alone else (answers, y)
        entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=not self.softmax)(y["label"], answers["label"])
        return entropy if self.alone else entropy + tf.reduce_mean(tf.square(y["box"] - answers["box"]))


def constant_loss(model, y):
    batches = [
        keras.tree.map_structure(lambda one, at=at: tf.constant(one[at : at + 32]), (X, y))
        for at in range(0, len(X), 32)
    ]
    model(X[:2])
    model.compile(keras.optimizers.Adam(1e-3))
    before = [np.array(weight) for weight in model.weights]
    with Trial(model, batches, steps=8) as trial:
        found = OwnStepLoss.of(trial, trial.varied(1).loss[0])
        best = None if found is None else found.best(batches)
    assert all(np.array_equal(one, np.array(other)) for one, other in zip(before, model.weights, strict=True))
    return best


@pytest.mark.parametrize(("scale", "shift", "inner"), [(1.0, 0.0, False), (9e4, 3e5, True)])
def test_the_constant_prediction_of_a_likelihood_is_the_distribution_of_the_targets(scale, shift, inner):
    y = scale * Y + shift
    assert constant_loss(Likelihood(inner=inner), y) == pytest.approx(math.log(y.std()) + 0.5, abs=0.01)


def test_an_output_is_fitted_within_its_bounds():
    """A mean within (0, 1) cannot reach targets around 3: the variance makes up for it."""
    found = constant_loss(Likelihood(activation="sigmoid"), 3.0 + 0.1 * Y)
    assert found == pytest.approx(0.5 * math.log(np.mean(np.square(2.0 + 0.1 * Y))) + 0.5, abs=0.01)


LABELS = np.digitize(X[:, 1], [-0.5, 1.0])
ENTROPY = -sum(share * math.log(share) for share in np.bincount(LABELS) / len(LABELS))


@pytest.mark.parametrize("activation", ["softmax", None])
def test_the_constant_prediction_of_classes_is_their_entropy(activation):
    assert constant_loss(TwoHeads(activation=activation, alone=True), LABELS) == pytest.approx(ENTROPY, rel=1e-3)


def test_nested_targets_are_fitted_together():
    y = {"label": LABELS, "box": 80.0 * X[:, 2:] + 200.0}
    variance = float(np.mean(np.var(y["box"], axis=0)))
    assert constant_loss(TwoHeads(), y) == pytest.approx(ENTROPY + variance, rel=1e-3)


@pytest.mark.parametrize("activation", ["relu", "softsign"])
def test_nothing_is_said_where_the_last_operation_is_not_known(activation):
    assert constant_loss(Likelihood(activation=activation), Y) is None


def test_nothing_is_said_of_targets_that_the_step_makes_no_use_of():
    assert constant_loss(Similar(), Y) is None


def test_nothing_is_said_of_a_step_that_draws_random_numbers():
    assert constant_loss(Drawn(), Y) is None


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "shift", "expected"), [(9e4, 3e5, ["unscaled_targets"]), (1.0, 0.0, [])])
def test_a_variance_that_grows_in_a_train_step_instead_of_the_mean_is_unscaled_targets(scale, shift, expected):
    """The loss falls by decades, and ends a million times above that of a constant prediction."""
    model = Likelihood()
    model(X[:2])
    model.compile(keras.optimizers.Adam(1e-3))
    found = gr.diagnose(model, X, scale * Y + shift)
    assert [one.code for one in found.findings] == expected
    assert found.verdict == ("unhealthy" if expected else "healthy")
