"""What the nets of one train step give each other: logits for probabilities, data that answers cannot be like."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import CrossEntropyCall, LossReading, Probes, UnreachedData
from gradrecipes.diagnosis.engine import find
from gradrecipes.probes.own_step import misread_cross_entropies
from gradrecipes.probes.reach import StillWeights, unreached_data
from gradrecipes.training.trial import Trial

layers = keras.layers
X = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)


def of_keras(*, from_logits):
    return keras.losses.BinaryCrossentropy(from_logits=from_logits)


def of_tensorflow(y, p):
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=p))


class Gan(keras.Model):
    """Two nets and two optimizers, as in the tutorials."""

    def __init__(self, loss, *, activation=None, ends_in=None):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.loss_function = loss
        self.generator = keras.Sequential([keras.Input((4,)), layers.Dense(16, "relu"), layers.Dense(8, ends_in)])
        last = layers.Dense(1, activation=activation)
        self.discriminator = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu"), last])

    def compile(self):
        super().compile()
        self.of_generator, self.of_discriminator = keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3)

    def call(self, noise):
        return self.generator(noise)

    def train_step(self, real):
        noise = tf.random.normal((tf.shape(real)[0], 4))
        ones = tf.ones((tf.shape(real)[0], 1))
        with tf.GradientTape() as tape:
            given, made = self.discriminator(real), self.discriminator(self.generator(noise))
            d_loss = self.loss_function(ones, given) + self.loss_function(0 * ones, made)
        weights = self.discriminator.trainable_variables
        self.of_discriminator.apply(tape.gradient(d_loss, weights), weights)
        with tf.GradientTape() as tape:
            g_loss = self.loss_function(ones, self.discriminator(self.generator(noise)))
        weights = self.generator.trainable_variables
        self.of_generator.apply(tape.gradient(g_loss, weights), weights)
        return {"d_loss": d_loss, "g_loss": g_loss}


CASES = [
    (of_keras(from_logits=False), None, [(False, 3)]),
    (of_keras(from_logits=True), None, []),
    (of_keras(from_logits=False), "sigmoid", []),
    (of_keras(from_logits=True), "sigmoid", []),  # Keras takes the logits from before the sigmoid
    (of_tensorflow, "sigmoid", [(True, 3)]),
    (of_tensorflow, None, []),
]


@pytest.mark.parametrize(("loss", "activation", "expected"), CASES)
def test_a_cross_entropy_is_judged_by_what_it_gets(loss, activation, expected):
    model = Gan(loss, activation=activation)
    model.compile()
    before = [np.array(weight) for weight in model.weights]
    with Trial(model, [tf.constant(X[:32])], steps=1) as trial:
        found = misread_cross_entropies(trial)
    assert [(one.from_logits, one.calls) for one in found] == expected
    assert all(np.array_equal(one, np.array(other)) for one, other in zip(before, model.weights, strict=True))


def test_each_mistake_is_told_with_the_way_out():
    trace = Trace(layers=["dense"])
    for taken, fits in ((False, "from_logits=True"), (True, "from_logits=False")):
        trace.probes = Probes(loss=LossReading(misread=(CrossEntropyCall(taken, 0.1, 0.7 if taken else 1.9, 3),)))
        (finding,) = find(trace)
        assert finding.code == "loss_output_mismatch"
        assert fits in finding.prescriptions[0].code


@pytest.mark.slow
@pytest.mark.parametrize("from_logits, verdict", [(False, "unhealthy"), (True, "healthy")])
def test_a_gan_whose_discriminator_gives_logits_to_a_loss_of_probabilities_is_told(from_logits, verdict):
    model = Gan(of_keras(from_logits=from_logits))
    model.compile()
    found = gr.diagnose(model, 0.3 * X + 1.0)
    assert found.verdict == verdict
    assert [one.code for one in found.findings] == ([] if from_logits else ["loss_output_mismatch"])


@pytest.mark.parametrize(
    ("ends_in", "data", "share"),
    [
        ("tanh", 255 * np.abs(X), 1.0),
        ("tanh", X, None),  # standardized: a third of it lies outside
        ("tanh", np.tanh(X), None),
        ("sigmoid", np.tanh(X) - 1.0, 1.0),
        (None, 255 * np.abs(X), None),
    ],
)
def test_data_that_no_answer_can_be_like_are_told_by_the_last_activation(ends_in, data, share):
    model = Gan(of_keras(from_logits=True), ends_in=ends_in)
    model.compile()
    before = [np.array(weight) for weight in model.weights]
    with Trial(model, [tf.constant(data[:32], tf.float32)], steps=1) as trial:
        found = unreached_data(trial)
    assert [round(one.share, 1) for one in found] == ([] if share is None else [share])
    assert all(np.array_equal(one, np.array(other)) for one, other in zip(before, model.weights, strict=True))


def test_data_out_of_reach_are_told_with_the_range_to_scale_them_to():
    trace = Trace(layers=["dense"])
    read = UnreachedData("discriminator", "generator", "tanh", -1.0, 1.0, 0.0, 255.0, 0.9)
    trace.probes = Probes(loss=LossReading(unreached=(read,)))
    (finding,) = find(trace)
    assert finding.code == "loss_output_mismatch"
    names = {"x": np.array([0.0, 51.0, 255.0])}
    exec(finding.prescriptions[0].code, names)
    np.testing.assert_allclose(names["x"], [-1.0, -0.6, 1.0])


class Book(layers.Layer):
    """Put the nearest of some learned vectors in the place of each code; a term of the loss draws the codes to them."""

    def __init__(self, *, straight):
        super().__init__()
        self.straight = straight

    def build(self, shape):
        self.vectors = self.add_weight(shape=(8, shape[-1]), initializer="random_normal")

    def call(self, codes):
        distances = keras.ops.sum(keras.ops.square(codes[:, None] - self.vectors), axis=-1)
        nearest = keras.ops.take(self.vectors, keras.ops.argmin(distances, axis=-1), axis=0)
        self.add_loss(keras.ops.mean(keras.ops.square(codes - keras.ops.stop_gradient(nearest))))
        self.add_loss(keras.ops.mean(keras.ops.square(nearest - keras.ops.stop_gradient(codes))))
        return codes + keras.ops.stop_gradient(nearest - codes) if self.straight else nearest


@pytest.mark.parametrize("straight", [True, False])
def test_layers_that_only_another_term_moves_are_cut_off_from_the_answers(straight):
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(4, name="encoder"), Book(straight=straight), layers.Dense(8, name="decoder")]
    model = keras.Sequential([keras.Input((8,)), *hidden])
    model.compile("adam", "mse")
    batches = [(tf.constant(X[:32]), tf.constant(X[:32]))]
    still = StillWeights(model, batches[0])
    with Trial(model, batches, steps=4) as trial:
        trial.recorded(4)
        found = [(one.name, one.why) for one in still.after(trial)]
    assert found == ([] if straight else [("encoder", "cut_off")])
