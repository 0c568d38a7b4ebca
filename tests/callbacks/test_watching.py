from __future__ import annotations

import random

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes.callbacks.fit_recorder import FitRecorder, WatchedFits
from gradrecipes.compat import keras_private
from gradrecipes.probes.examine import look_before_fit

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = X[:, :1]


def net():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.fixture
def traced(monkeypatch):
    """Return a list that grows by one whenever a train step is compiled."""
    made, original = [], keras_private.compile_train_step
    monkeypatch.setattr(keras_private, "compile_train_step", lambda *a: made.append(1) or original(*a))
    return made


def test_models_that_are_fitted_in_turn_are_prepared_once_each(traced):
    one, other = net(), net()
    watched = WatchedFits(FitRecorder)
    with watched.watching():
        for _ in range(3):
            one.fit(X, Y, verbose=0)
            other.fit(X, Y, verbose=0)
    assert len(traced) == 2
    assert [len(trace) for _, trace in watched.traces] == [6, 6]


def test_callbacks_that_go_from_model_to_model_and_back_prepare_each_once(traced):
    one, other = net(), net()
    monitor, guard = gr.GradientMonitor(), gr.GradientGuard()
    for _ in range(3):
        one.fit(X, Y, verbose=0, callbacks=[monitor, guard])
        other.fit(X, Y, verbose=0, callbacks=[monitor, guard])
    assert len(traced) == 2
    assert len(monitor.trace) == len(guard.trace) == 6


class OwnWeights(keras.Model):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1], 1), initializer="random_normal")

    def call(self, x):
        return keras.ops.matmul(x, self.scale)


def look(model, arguments, steps):
    return look_before_fit(model, arguments["x"], arguments["y"], steps=steps)


def first_weights(watched):
    random.seed(7)
    found = []
    with watched.watching() if watched else keras.name_scope("plain"):
        for _ in range(3):
            model = OwnWeights()
            model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
            model.fit(X, Y, verbose=0)
            found.append(model.scale.numpy().tolist())
    return found


def test_weights_that_fit_creates_are_those_of_a_plain_run():
    plain = first_weights(None)
    assert plain[0] != plain[1]
    assert first_weights(WatchedFits(FitRecorder, look=look)) == plain


def test_a_look_is_told_how_many_steps_the_fit_takes():
    seen = []
    watched = WatchedFits(FitRecorder, look=lambda model, arguments, steps: seen.append(steps))
    model = OwnWeights()
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    with watched.watching():
        model.fit(X, Y, verbose=0, batch_size=len(X) // 2, epochs=3)
    assert seen == [6]
