"""Whether answers depend on the inputs, and which term of a loss keeps them from it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.probes.answers import Answers
from gradrecipes.training.trial import Trial

layers = keras.layers
RNG = np.random.default_rng(0)
CODES = RNG.normal(size=(512, 3)).astype(np.float32)
X = (1.0 / (1.0 + np.exp(-2.0 * CODES @ RNG.normal(size=(3, 40))))).astype(np.float32)


class Autoencoder(keras.Model):
    """A variational autoencoder; `mean` takes the mean of the error over the entries, where a bound has their sum."""

    def __init__(self, *, weight=1.0, mean=False, whole=False):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.encoder = keras.Sequential([layers.Dense(32, activation="relu"), layers.Dense(8)])
        self.decoder = keras.Sequential([layers.Dense(32, activation="relu"), layers.Dense(40, activation="sigmoid")])
        self.noise = keras.random.SeedGenerator(0)
        self.weight, self.mean, self.whole = weight, mean, whole

    def call(self, x):
        return self.decoder(tf.split(self.encoder(x), 2, axis=1)[0])

    def train_step(self, x):
        with tf.GradientTape() as tape:
            mean, log_variance = tf.split(self.encoder(x, training=True), 2, axis=1)
            code = mean + tf.exp(0.5 * log_variance) * keras.random.normal(tf.shape(mean), seed=self.noise)
            error = tf.square(x - self.decoder(code, training=True))
            error = tf.reduce_mean(error, axis=1) if self.mean else 20.0 * tf.reduce_sum(error, axis=1)
            divergence = -0.5 * tf.reduce_sum(1.0 + log_variance - mean**2 - tf.exp(log_variance), axis=1)
            if self.whole:
                loss = tf.reduce_mean(error + self.weight * divergence)
            else:
                loss = tf.reduce_mean(error) + self.weight * tf.reduce_mean(divergence)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss, "error": tf.reduce_mean(error), "kl_loss": tf.reduce_mean(divergence)}


class Classifier(keras.Model):
    """Learns classes in a train step of its own, from inputs that may be wiped out."""

    def __init__(self, *, wiped=False):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.hidden, self.head, self.wiped = layers.Dense(32, activation="relu"), layers.Dense(3), wiped

    def call(self, x):
        return self.head(self.hidden(0.0 * x if self.wiped else x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, self(x, training=True)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def read(model, *data, steps=200):
    model(data[0][:2])
    model.compile(keras.optimizers.Adam(3e-3))
    parts = [[tf.constant(one[at : at + 64]) for one in data] for at in range(0, 512, 64)]
    batches = [tuple(part) if len(part) > 1 else part[0] for part in parts]
    with Trial(model, batches, steps=steps) as trial:
        run = trial.recorded(steps)
        weights = [np.array(one) for one in model.weights]
        answers = Answers(trial)
        found = answers.compared()
        assert all(np.array_equal(one, np.array(other)) for one, other in zip(weights, model.weights, strict=True))
        return found if found is None or found.depend else answers.held_back(found, run.logs, steps)


class Equation(keras.Model):
    """Solves u' = u by the slope of its answers, of which the loss reads one value only."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.net = keras.Sequential([keras.Input((1,)), layers.Dense(16, activation="tanh"), layers.Dense(1)])

    def call(self, x):
        return self.net(x)

    def train_step(self, x):
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = self.net(x)
            slope = inner.gradient(value, x)
            loss = tf.reduce_mean((slope - 1.0) ** 2) + tf.reduce_mean((self.net(tf.zeros((1, 1))) - 1.0) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def test_answers_that_a_loss_of_derivatives_does_not_read_are_not_compared():
    assert read(Equation(), CODES[:, :1]) is None


@pytest.mark.parametrize("wiped", [False, True])
def test_answers_that_depend_on_the_inputs_lower_the_loss(wiped):
    found = read(Classifier(wiped=wiped), X, np.digitize(CODES[:, 0], [-0.4, 0.4]))
    assert found.depend is not wiped and found.entries == 3
    assert found.held_by is None


@pytest.mark.parametrize(
    ("how", "held", "whole"), [({}, False, False), ({"weight": 300.0}, True, False), ({"mean": True}, True, True)]
)
def test_a_divergence_that_collapses_the_code_is_told(how, held, whole):
    found = read(Autoencoder(**how, whole=whole), X)
    assert found.depend is not held
    assert found.held_by == ("'kl_loss'" if held else None)
    assert not held or (found.gain > 0 and found.entries == 40)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "codes"), [({}, []), ({"mean": True}, ["unbalanced_loss_terms"])])
def test_a_collapsed_autoencoder_is_not_called_healthy(how, codes):
    model = Autoencoder(**how)
    model(X[:2])
    model.compile(keras.optimizers.Adam(3e-3))
    diagnosis = gr.diagnose(model, X, batch_size=64)
    assert [one.code for one in diagnosis.findings] == codes
    assert diagnosis.verdict == ("unhealthy" if codes else "healthy")
