"""One function for a short fit, a leaner one for a long one, and the same numbers with both."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

import gradrecipes as gr
from gradrecipes.training.fit import prepared_step
from gradrecipes.training.step.instrumented_step import InstrumentedStep
from tests.training.nets import assert_same_state, compiled, deterministic, digits, seeded, two_dense, with_state


@pytest.fixture
def traces(monkeypatch):
    """Return the list that grows by one with each trace of an instrumented step."""
    seen, call = [], InstrumentedStep.__call__

    def counted(step, data):
        seen.append(step)
        return call(step, data)

    monkeypatch.setattr(InstrumentedStep, "__call__", counted)
    return seen


def fit(model, *callbacks, **how):
    x, y = digits(256)
    return model.fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=list(callbacks), **how)


@pytest.mark.parametrize("others", [(), (gr.GradientGuard,)], ids=["monitor", "monitor and guard"])
def test_a_short_fit_is_traced_once_samples_and_all(traces, others):
    model, monitor = seeded(two_dense), gr.GradientMonitor()
    fit(model, monitor, *[make() for make in others], epochs=2)
    assert len(traces) == 1
    assert monitor.trace.samples["step"].tolist() == [0, 1, 2]


def test_in_a_long_fit_the_leaner_function_takes_over_to_the_same_bits(monkeypatch, traces):
    runs = {}
    for after in (0, 1e9):
        monkeypatch.setattr(prepared_step, "LEAN_AFTER", after)
        model, monitor = seeded(two_dense), gr.GradientMonitor(sample_every=10)
        del traces[:]
        with deterministic():
            fit(model, monitor, epochs=4)
        runs[after] = model, monitor.trace, len(traces)
    (lean, one, traced), (whole, other, once) = runs.values()
    assert (traced, once) == (2, 1)
    assert_same_state(lean, whole)
    for name in ("step", "loss", "gradient_norm", "layer_gradient_norm"):
        np.testing.assert_array_equal(one.steps[name], other.steps[name])
    assert one.samples["step"].tolist() == other.samples["step"].tolist() == [0, 1, 2, 10, 20, 30]
    np.testing.assert_array_equal(one.samples["update_ratio"], other.samples["update_ratio"])


def test_seeded_operations_stay_in_one_function(monkeypatch, traces):
    class Noisy(keras.layers.Layer):
        def call(self, x):
            return x + tf.random.normal(tf.shape(x), seed=3)

    monkeypatch.setattr(prepared_step, "LEAN_AFTER", 0)
    model = compiled(keras.Sequential([keras.Input((64,)), Noisy(), keras.layers.Dense(10)]))
    fit(model, gr.GradientMonitor(), epochs=2)
    assert len(traces) == 1


def test_samples_come_at_the_steps_that_are_due_within_an_execution_too():
    monitor = gr.GradientMonitor(sample_every=5)
    fit(seeded(two_dense, steps_per_execution=8), monitor, epochs=2)
    assert monitor.trace.samples["step"].tolist() == [0, 1, 2, 5, 10, 15]


@pytest.mark.slow
def test_a_fit_leaves_no_more_graphs_behind_than_a_plain_one():
    """`tf.custom_gradient` left its functions, and with them the graph, in a table of the process for ever."""

    def graphs_after(callbacks) -> int:
        fits = []
        for _ in range(3):
            model = compiled(two_dense())
            fit(model, *callbacks())
            fits.append(weakref.ref(model))
            del model
        keras.backend.clear_session()
        gc.collect()
        return sum(isinstance(one, FuncGraph) for one in gc.get_objects())

    before = graphs_after(list)
    plain = graphs_after(list) - before
    ours = graphs_after(lambda: [gr.GradientMonitor(), gr.GradientGuard()]) - before - plain
    assert ours <= plain


@pytest.mark.slow
def test_a_model_trains_on_when_the_callbacks_of_its_last_fit_are_gone():
    model = seeded(two_dense)
    for callbacks in ([gr.GradientMonitor()], [], [gr.GradientGuard(), gr.GradientMonitor()], []):
        fit(model, *callbacks)
        callbacks.clear()
        gc.collect()
    assert int(model.optimizer.iterations) == 32
    assert model.evaluate(*digits(64), verbose=0, return_dict=True)["loss"] < 2.0


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
