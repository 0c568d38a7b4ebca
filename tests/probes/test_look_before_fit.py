"""The look before a fit leaves nothing behind: no weight, no seed, no random number moves."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.core.trace.probes import Probes
from gradrecipes.probes.examine import look_before_fit
from gradrecipes.training.recovery.model_state import variables_of
from tests.seeds import begin_anew

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X[:, :1].copy()


class Drawing(keras.layers.Layer):
    """Draws from everybody's random numbers, as layers of one's own do."""

    def call(self, x):
        random.random(), np.random.random()
        return x + 0.1 * tf.random.normal(tf.shape(x)) + 0.1 * keras.random.normal(tf.shape(x))


def net():
    layers = [Drawing(), keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def drawn():
    numbers = random.random(), np.random.random(), float(tf.random.normal(())), float(keras.random.normal(()))
    return *numbers, random.random()


def test_nothing_moves():
    model = net()
    before = [np.array(one) for one in variables_of(model)]
    begin_anew()
    expected = drawn()
    begin_anew()
    found = look_before_fit(model, X, Y, batch_size=16)
    assert drawn() == expected
    assert None not in (found.data, found.signal, found.loss)
    assert found.data.samples == 64 and found.signal.error is None
    after = variables_of(model)
    assert all(np.array_equal(one, np.array(other)) for one, other in zip(before, after, strict=False))


def test_class_weights_weigh_the_samples():
    found = look_before_fit(net(), X, (Y > 0).astype("float32"), class_weight={0: 1.0, 1: 3.0})
    assert found.data.sample_weight[0].max == 3.0 and found.data.sample_weight[0].min == 1.0


class Counting(keras.layers.Layer):
    """Counts the samples that pass."""

    passed = 0

    def call(self, x):
        Counting.passed += x.shape[0] or 0
        return x


@pytest.mark.slow  # a function is traced for each output
@pytest.mark.parametrize(("steps", "most"), [(20, 10), (1000, 50)])
def test_a_look_costs_at_most_ten_steps_or_a_twentieth_of_the_fit(steps, most):
    inputs = keras.Input((4,))
    seen = Counting()(inputs)
    outputs = [keras.layers.Dense(1, activation="sigmoid", name=f"head_{place}")(seen) for place in range(40)]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", ["categorical_crossentropy"] * 40)
    Counting.passed = 0
    found = look_before_fit(model, X, [(Y > 0).astype("float32")] * 40, batch_size=30, steps=steps)
    assert found.loss is not None and found.loss.error is None
    forward = Counting.passed + 2 * Counting.passed / 42  # one of them went backward as well
    assert forward / 3 <= most * 30
    if steps == 1000:
        assert Counting.passed > 42 * 8  # and makes use of it


def test_no_more_data_are_read_than_the_fit_draws():
    assert look_before_fit(net(), X, Y, batch_size=8, steps=3).data.samples == 24


def test_what_is_used_up_by_being_read_is_not_read():
    source = ((X[:8], Y[:8]) for _ in range(3))
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    for x in (source, dataset):
        assert look_before_fit(net(), x) == Probes(nonfinite_slots=())
    assert len(list(source)) == 3


def test_whatever_is_given_it_does_not_raise():
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    unbuilt.compile("sgd", "mse")
    found = look_before_fit(unbuilt, X, Y)
    assert found.data is not None and found.signal is None and found.loss is None and not unbuilt.built
    for x, y in ((None, None), (X, Y[:3]), (X[:0], Y[:0]), (np.full((4, 4), "a"), Y[:4]), (3, "y"), (X[:, :2], Y)):
        assert look_before_fit(net(), x, y).nonfinite_slots == ()
