"""A forward pass that draws with TensorFlow's own operations draws the same numbers under a monitor."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.compat.random_state import draws_by_itself
from tests.training.nets import assert_same_state, compiled, deterministic, digits, layers

BATCH, STEPS = 16, 8


class Noise(keras.layers.Layer):
    def call(self, x, training=False):
        return tf.nn.dropout(x + tf.random.normal(tf.shape(x), stddev=0.1), 0.2) if training else x


class NoiseInFunction(keras.layers.Layer):
    @tf.function
    def noise(self, x):
        return x + tf.random.uniform(tf.shape(x))

    def call(self, x, training=False):
        return self.noise(x) if training else x


def trained(layer, *callbacks, bad=None) -> keras.Model:
    keras.utils.set_random_seed(1)
    x, y = digits(BATCH * STEPS)
    if bad is not None:
        x[BATCH * bad] = np.nan
    model = compiled(keras.Sequential([keras.Input((64,)), layers.Dense(8), layer(), layers.Dense(10)]))
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


@pytest.mark.parametrize("layer", [Noise, NoiseInFunction])
def test_it_trains_as_alone_and_is_sampled_when_it_is_due(layer):
    monitor = gr.GradientMonitor(sample_every=5)
    with deterministic(rewrites=False):
        assert_same_state(trained(layer), trained(layer, monitor))
    assert monitor.trace.samples["step"].tolist() == [0, 1, 2, 5]
    assert np.isfinite(monitor.trace.samples["output_rms"]).all()


def test_a_step_that_is_not_finite_is_sampled_when_none_is_due():
    monitor = gr.GradientMonitor(sample_every=5)
    trained(Noise, monitor, gr.GradientGuard(), bad=3)
    assert monitor.trace.samples["step"].tolist() == [0, 1, 2, 3, 5]
    assert (monitor.trace.samples["nonfinite_share"][3] > 0).any()


def test_only_seeded_operations_with_a_state_of_their_own_are_meant():
    tf.random.set_seed(1)
    numbers = keras.random.SeedGenerator(1)
    cases = {
        lambda: tf.random.normal([2]): True,
        lambda: tf.cond(tf.constant(1.0) > 0, lambda: tf.random.normal([2]), lambda: tf.zeros([2])): True,
        lambda: keras.random.normal([2], seed=numbers): False,
        lambda: tf.zeros([2]): False,
    }
    for draw, expected in cases.items():
        assert draws_by_itself(tf.function(draw).get_concrete_function().graph) == expected
    assert not draws_by_itself("eager")
