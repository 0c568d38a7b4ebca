"""The terms that a train step adds up by itself, where it returns their sum alone."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.training.step.loss_terms import cut_off_terms, has_moving_target, loss_terms

WEIGHT, DATA = tf.Variable([3.0, 4.0]), tf.constant([[1.0, 2.0], [3.0, 1.0]])
X = np.random.default_rng(0).uniform(size=(640, 1)).astype(np.float32)


def terms(function):
    def traced():
        return loss_terms(function())

    return [float(term) for term in tf.function(traced, autograph=False)().values()]


def square():
    return tf.reduce_sum(tf.square(WEIGHT))


def mean():
    return tf.reduce_mean(DATA @ WEIGHT[:, None])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: square() + 1e7 * mean(), [25.0, 12.0]),
        (lambda: 0.5 * (square() + mean() * 2.0) + tf.add_n([mean(), square()]), [25.0, 12.0, 12.0, 25.0]),
        (lambda: square() + 0.5 + tf.reduce_mean(DATA), []),  # nothing but one term reads weights
        (lambda: tf.reduce_mean(tf.square(WEIGHT) + 3.0 * WEIGHT) + mean(), [12.5, 3.5, 12.0]),
        (lambda: tf.reduce_sum([square(), 2.0 * mean() / 4.0]), [25.0, 12.0]),
        (square, []),
        (lambda: tf.square(WEIGHT) + 1.0, []),  # not yet a scalar
        (lambda: square() - mean(), []),
    ],
)
def test_a_sum_falls_into_what_was_written(function, expected):
    assert terms(function) == expected


def test_nothing_is_read_outside_of_a_graph():
    assert loss_terms(square() + mean()) == {}


class Equation(keras.Model):
    """Solves u'' = -pi^2 cos(pi x) with u(0) = 1 and u(1) = -1, and returns the sum of both residuals alone."""

    def __init__(self, weight):
        super().__init__()
        keras.utils.set_random_seed(1)
        hidden = [keras.layers.Dense(32, activation="tanh") for _ in range(2)]
        self.net = keras.Sequential([keras.Input((1,)), *hidden, keras.layers.Dense(1)])
        self.weight = weight

    def call(self, x):
        return self.net(x)

    def train_step(self, data):
        x = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            with tf.GradientTape() as second:
                second.watch(x)
                with tf.GradientTape() as first:
                    first.watch(x)
                    u = self(x)
                slope = first.gradient(u, x)
            curvature = second.gradient(slope, x)
            inside = tf.reduce_mean(tf.square(curvature + np.pi**2 * tf.cos(np.pi * x)))
            ends = tf.reduce_mean(tf.square(self(tf.constant([[0.0], [1.0]])) - tf.constant([[1.0], [-1.0]])))
            loss = inside + self.weight * ends
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "expected"), [(1e7, ["unbalanced_loss_terms"]), (10.0, [])])
def test_an_equation_that_its_boundary_outweighs_is_told_though_the_step_returns_the_sum_alone(weight, expected):
    model = Equation(weight)
    model.compile(keras.optimizers.Adam(1e-3))
    assert [one.code for one in gr.diagnose(model, X).findings] == expected


@pytest.mark.parametrize(
    ("loss", "moving"),
    [
        (lambda w, x: tf.reduce_mean(tf.square(w * x - tf.stop_gradient(0.9 * w * x + 1.0))), True),
        (lambda w, x: tf.reduce_mean(tf.square(w * x - tf.stop_gradient(2.0 * x))), False),
        (lambda w, x: tf.reduce_logsumexp(w * x), False),
        (lambda w, x: tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits([0.5, 0.5], w * x)), False),
    ],
)
def test_a_target_that_weights_make_is_told(loss, moving):
    weight, told = tf.Variable([3.0, 1.0]), []

    @tf.function
    def traced(x):
        told.append(has_moving_target(loss(weight, x)))

    traced(tf.constant([1.0, 2.0]))
    assert told == [moving]


@pytest.mark.parametrize(
    ("flat", "told"),
    [(tf.stop_gradient, ["term 2 of the sum"]), (tf.round, ["term 2 of the sum"]), (tf.identity, [])],
)
def test_a_term_that_no_slope_leads_from_is_cut_off(flat, told):
    net, judge = keras.layers.Dense(2), keras.layers.Dense(1)
    x = tf.random.stateless_normal((8, 3), seed=(0, 0))
    judge(net(x))

    @tf.function(autograph=False)
    def step():
        made = net(x)
        judged = tf.reduce_mean(judge(flat(made)))
        return list(cut_off_terms(tf.reduce_mean(made**2) + judged, net.trainable_variables).cut_off.values())

    assert [bytes(name.numpy()).decode() for name in step()] == told
