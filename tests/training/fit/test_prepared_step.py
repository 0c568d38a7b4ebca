"""One function for a short fit, a leaner one for a long one, and the same numbers with both."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.training.fit import prepared_step
from tests.training.nets import assert_same_state, compiled, deterministic, digits, seeded, two_dense, with_state


class Counting(keras.Model):
    """Count how often the train step is traced."""

    traced = 0

    def train_step(self, data):
        self.traced += 1
        return super().train_step(data)


def counting() -> Counting:
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    return Counting(inputs, keras.layers.Dense(10)(hidden))


def fit(model, *callbacks, **how):
    x, y = digits(256)
    return model.fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=list(callbacks), **how)


@pytest.mark.parametrize(
    "callbacks", [lambda: [gr.GradientMonitor()], lambda: [gr.GradientMonitor(), gr.GradientGuard()]]
)
def test_a_short_fit_is_traced_once_samples_and_all(callbacks):
    model, (monitor, *others) = seeded(counting), callbacks()
    fit(model, monitor, *others, epochs=2)
    assert model.traced == 1
    assert monitor.trace.samples["step"].tolist() == [0, 1, 2]


def test_in_a_long_fit_the_leaner_function_takes_over_to_the_same_bits(monkeypatch):
    runs = {}
    for after in (0, 1e9):
        monkeypatch.setattr(prepared_step, "LEAN_AFTER", after)
        model, monitor = seeded(counting), gr.GradientMonitor(sample_every=10)
        with deterministic():
            fit(model, monitor, epochs=4)
        runs[after] = model, monitor.trace
    (lean, one), (whole, other) = runs.values()
    assert (lean.traced, whole.traced) == (2, 1)
    assert_same_state(lean, whole)
    for name in ("step", "loss", "gradient_norm", "layer_gradient_norm"):
        np.testing.assert_array_equal(one.steps[name], other.steps[name])
    assert one.samples["step"].tolist() == other.samples["step"].tolist() == [0, 1, 2, 10, 20, 30]
    np.testing.assert_array_equal(one.samples["update_ratio"], other.samples["update_ratio"])


def test_seeded_operations_stay_in_one_function(monkeypatch):
    class Noisy(keras.layers.Layer):
        def call(self, x):
            return x + tf.random.normal(tf.shape(x), seed=3)

    monkeypatch.setattr(prepared_step, "LEAN_AFTER", 0)

    def build():
        inputs = keras.Input((64,))
        return Counting(inputs, keras.layers.Dense(10)(Noisy()(inputs)))

    model = seeded(build)
    fit(model, gr.GradientMonitor(), epochs=2)
    assert model.traced == 1


def test_samples_come_at_the_steps_that_are_due_within_an_execution_too():
    monitor = gr.GradientMonitor(sample_every=5)
    fit(seeded(two_dense, steps_per_execution=8), monitor, epochs=2)
    assert monitor.trace.samples["step"].tolist() == [0, 1, 2, 5, 10, 15]


def test_nothing_of_a_fit_outlives_its_model_and_callbacks():
    graphs = []

    class Remembering(keras.Model):
        def train_step(self, data):
            graphs.append(weakref.ref(tf.compat.v1.get_default_graph()))
            return super().train_step(data)

    def one_fit():
        inputs = keras.Input((64,))
        model = compiled(Remembering(inputs, keras.layers.Dense(10)(inputs)))
        fit(model, gr.GradientMonitor(), gr.GradientGuard(clipping=gr.clipping.by_global_norm(1.0)))

    one_fit()
    keras.backend.clear_session()
    gc.collect()
    assert graphs
    assert [graph() for graph in graphs] == [None] * len(graphs)


@pytest.mark.parametrize(("units", "expected"), [(8, [0, 1, 2, 100]), (16_000, [0, 1, 2])])
def test_large_models_are_sampled_more_rarely(units, expected):
    model = compiled(keras.Sequential([keras.Input((64,)), keras.layers.Dense(units), keras.layers.Dense(10)]), "sgd")
    monitor = gr.GradientMonitor()
    x, y = digits(240)
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[monitor])
    assert monitor.trace.samples["step"].tolist() == expected


def test_the_monitor_beside_a_net_with_state_changes_no_bit_in_either_function(monkeypatch):
    monkeypatch.setattr(prepared_step, "LEAN_AFTER", 0)
    with deterministic():
        plain, monitored = seeded(with_state), seeded(with_state)
        keras.utils.set_random_seed(1)
        fit(plain, epochs=3)
        keras.utils.set_random_seed(1)
        fit(monitored, gr.GradientMonitor(), epochs=3)
    assert_same_state(plain, monitored)
