"""Callbacks that a loop of the user's own drives around `train_on_batch`."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import gradrecipes as gr
from tests.training.nets import all_finite, digits, seeded, two_dense

BATCH = 32


def loop(model, x, y, callbacks, *, epochs=1, end=True):
    callbacks = keras.callbacks.CallbackList(callbacks, model=model)
    callbacks.on_train_begin()
    losses = []
    for epoch in range(epochs):
        callbacks.on_epoch_begin(epoch)
        for batch, start in enumerate(range(0, len(x), BATCH)):
            callbacks.on_train_batch_begin(batch)
            model.reset_metrics()  # as Keras does by itself, but for 3.7
            logs = model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH], return_dict=True)
            callbacks.on_train_batch_end(batch, logs)
            losses.append(float(logs["loss"]))
        callbacks.on_epoch_end(epoch, logs)
    if end:
        callbacks.on_train_end(logs)
    return losses


@pytest.mark.parametrize("how", [{}, {"run_eagerly": True}], ids=str)
def test_a_guard_and_a_monitor_see_every_step_and_a_bad_one_is_left_out(how):
    x, y = digits(128)
    x[40] = np.nan
    guarded, plain = seeded(two_dense, **how), seeded(two_dense)
    guard, monitor = gr.GradientGuard(), gr.GradientMonitor()
    losses = loop(guarded, x, y, [guard, monitor], epochs=2)
    keep = np.r_[0:BATCH, 2 * BATCH : 128]
    loop(plain, x[keep], y[keep], [], epochs=2)
    assert len(monitor.trace) == 8
    assert [(event.kind, event.epoch, event.batch) for event in guard.events] == [("skip", 0, 1), ("skip", 1, 1)]
    assert np.isnan(losses).tolist() == [False, True, False, False] * 2
    for mine, theirs in zip(guarded.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    guarded.train_on_batch(x[:BATCH], y[:BATCH])
    assert len(monitor.trace) == 8


def test_a_loop_that_does_not_end_leaves_the_callbacks_usable():
    x, y = digits(64)
    model, monitor = seeded(two_dense), gr.GradientMonitor()
    loop(model, x, y, [monitor], end=False)
    assert len(monitor.trace) == 2
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[monitor])
    assert len(monitor.trace) == 4


def test_a_guard_in_a_loop_goes_back_from_weights_that_one_step_ruined():
    x, y = digits(256)
    model, guard = seeded(two_dense), gr.GradientGuard()

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                self.model.trainable_variables[0].assign(np.full((64, 16), np.nan, np.float32))

    loop(model, x, y, [guard, Spoil()])
    assert all_finite(model)
    assert "rollback" in {event.kind for event in guard.events}


@pytest.mark.parametrize("first", [True, False])
def test_train_on_batch_gives_nan_for_the_loss_of_a_skipped_batch(first):
    x, y = digits(BATCH)
    inputs = keras.Input((64,))
    model = gr.RecipeModel(inputs, keras.layers.Dense(10)(inputs), skip_nonfinite=True)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if not first:
        assert np.isfinite(model.train_on_batch(x, y, return_dict=True)["loss"])
    model.reset_metrics()
    logs = model.train_on_batch(x * np.nan, y, return_dict=True)
    assert np.isnan(logs["loss"]) and logs["skipped_steps"] == 1
    assert np.isfinite(model.train_on_batch(x, y, return_dict=True)["loss"])
