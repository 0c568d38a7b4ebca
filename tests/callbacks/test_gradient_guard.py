"""The guard: a bad batch is as if it had never come, and nothing else is touched."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import (
    all_finite,
    assert_same_state,
    deterministic,
    digits,
    seeded,
    two_dense,
    with_state,
)

BATCH = 32  # a skip costs its whole batch
KERAS_CLIPS = {"none": {}, "clipvalue": {"clipvalue": 0.5}, "global_clipnorm": {"global_clipnorm": 1.0}}
# Each optimizer by itself stands in tests/training/step/test_optimizers.py, each mode in test_modes.py beside it.
OPTIMIZERS = {
    "averaged": {"use_ema": True, "ema_overwrite_frequency": 3, "weight_decay": 0.1},
    "accumulating": {"gradient_accumulation_steps": 2},
    "clipped": {"learning_rate": keras.optimizers.schedules.CosineDecay(0.01, 20), "global_clipnorm": 0.5},
}


def fit(model, x, y, *callbacks, epochs=2, **how):
    return model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **how)


def without(x, batch):
    return np.concatenate([x[: batch * BATCH], x[(batch + 1) * BATCH :]])


@pytest.mark.parametrize(
    "clip", [pytest.param(clip, marks=[pytest.mark.slow] * (clip != "none")) for clip in KERAS_CLIPS], ids=str
)
def test_one_inf_in_one_sample_ruins_keras_alone_and_nothing_under_the_guard(clip):
    x, y = digits()
    bad = x.copy()
    bad[37, 5] = np.inf

    def make():
        return seeded(two_dense, keras.optimizers.Adam(0.001, **KERAS_CLIPS[clip]))

    alone, guarded, clean = make(), make(), make()
    fit(alone, bad, y, epochs=1)
    assert [np.isnan(w).any() for w in alone.get_weights()] == [True] * 4

    guard = gr.GradientGuard()
    history = fit(guarded, bad, y, guard, epochs=4).history
    assert all_finite(guarded)
    assert history["skipped_steps"] == [1, 2, 3, 4]
    assert [(event.kind, event.epoch, event.batch, event.reason) for event in guard.events] == [
        ("skip", epoch, 1, "nonfinite_loss") for epoch in range(4)
    ]
    assert "epoch 1, batch 2" in str(guard.events[0])

    keep = np.arange(256) != 37
    fit(clean, x[keep], y[keep], epochs=4)
    mine, theirs = (model.evaluate(x[keep], y[keep], batch_size=255, verbose=0)[0] for model in (guarded, clean))
    assert mine == pytest.approx(theirs, rel=0.05)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_skipped_batch_is_to_the_bit_as_if_it_had_never_come(optimizer):
    x, y = digits(192)
    x[2 * BATCH + 3, 7] = np.nan
    guarded, plain = (
        seeded(with_state, keras.optimizers.Adam(**{"learning_rate": 0.01, **OPTIMIZERS[optimizer]})) for _ in range(2)
    )
    with deterministic(rewrites=False):
        keras.utils.set_random_seed(2)
        mine = fit(guarded, x, y, gr.GradientGuard()).history
        keras.utils.set_random_seed(2)
        theirs = fit(plain, without(x, 2), without(y, 2)).history
    assert_same_state(guarded, plain)
    assert {name: mine[name] for name in theirs} == theirs
    assert mine["skipped_steps"] == [1, 2]


def root_loss(y_true, y_pred):
    """sqrt, whose slope at 0 is infinite while its value is finite."""
    del y_true
    return tf.sqrt(tf.reduce_sum(tf.square(y_pred), axis=-1))


def linear():
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(4, use_bias=False)])


def test_a_gradient_that_is_not_finite_behind_a_finite_loss_is_left_out():
    x, y = digits(128)
    x[BATCH : 2 * BATCH] = 0
    model, guard = seeded(linear, loss=root_loss, metrics=[]), gr.GradientGuard()
    history = fit(model, x, y, guard, epochs=1).history
    assert [event.reason for event in guard.events] == ["nonfinite_gradient"]
    assert np.isfinite(guard.events[0].details["loss"])
    assert all_finite(model)
    assert np.isfinite(history["loss"]).all()


def huge_slope(y_true, y_pred):
    del y_true
    return 1e20 * tf.reduce_sum(y_pred, axis=-1)


def test_a_finite_gradient_that_adam_cannot_square_is_left_out_and_with_a_clip_it_is_used():
    x, y = digits(96)
    alone, guarded, clipped = (seeded(linear, loss=huge_slope, metrics=[]) for _ in range(3))
    fit(alone, x, y)
    assert not all_finite(alone)

    before, guard = guarded.get_weights(), gr.GradientGuard()
    fit(guarded, x, y, guard, epochs=1)
    assert {event.reason for event in guard.events} == {"gradient_overflow"}
    np.testing.assert_array_equal(guarded.get_weights(), before)

    guard = gr.GradientGuard(clipping=gr.clipping.by_global_norm(1.0))
    history = fit(clipped, x, y, guard, epochs=1).history
    assert guard.events == []
    assert history["clipped_steps"] == [3]
    assert all_finite(clipped)
    assert np.abs(np.array(clipped.get_weights()) - np.array(before)).max() > 0.01


def test_it_stops_with_a_reason_when_every_step_is_skipped(caplog):
    x, y = digits()
    x[3 * BATCH :] = np.nan
    model, guard = seeded(with_state), gr.GradientGuard(max_consecutive_skips=3, max_rollbacks=0)
    with caplog.at_level(logging.WARNING):
        fit(model, x, y, guard, epochs=9)
    assert model.stop_training
    assert guard.stop_reason == "too_many_skips"
    # The device is asked every eight steps.
    assert [event.kind for event in guard.events] == ["skip"] * 5 + ["stop"]
    assert guard.events[-1].batch == 7
    assert all_finite(model)
    assert "epoch 1, batch 8" in caplog.text
    assert "The weights are those before the first of them" in caplog.text
    assert len(model.history.history["loss"]) == 1

    good = digits()
    fit(model, *good, guard, epochs=1)
    assert guard.stop_reason is None
    assert not np.isfinite(list(guard._session.pipeline.rate_caps.values())).any()


def test_good_steps_between_begin_the_count_anew():
    x, y = digits()
    x[[0, 33, 97, 161]] = np.nan  # batches 0, 1, 3, 5
    model, guard = seeded(two_dense), gr.GradientGuard(max_consecutive_skips=3)
    fit(model, x, y, guard, epochs=2)
    assert guard.stop_reason is None
    assert len(guard.events) == 8


def test_a_loss_scale_that_is_too_high_comes_down_as_without_the_guard():
    x, y = digits(192)

    def half():
        policy = keras.mixed_precision.dtype_policy()
        keras.mixed_precision.set_dtype_policy("mixed_float16")
        try:
            keras.utils.set_random_seed(1)
            model = two_dense()
        finally:
            keras.mixed_precision.set_dtype_policy(policy)
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=2.0**60)
        model.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    guarded, plain, guard = half(), half(), gr.GradientGuard()
    of_guarded = fit(guarded, x, y, guard, epochs=12).history
    assert of_guarded["loss"] == fit(plain, x, y, epochs=12).history["loss"]  # finite, and counted as without the guard
    mine, theirs = guarded.optimizer, plain.optimizer
    assert float(mine.dynamic_scale.numpy()) == float(theirs.dynamic_scale.numpy()) < 2.0**60
    assert int(mine.inner_optimizer.iterations.numpy()) == int(theirs.inner_optimizer.iterations.numpy())
    assert {event.kind for event in guard.events} == {"skip"}
    assert guard.stop_reason is None
    assert all_finite(guarded)


@pytest.mark.parametrize("scale", [1e25, 1e50])
def test_float64_is_judged_by_its_own_range(scale):
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # which keeps the floatx of the process' first layer
    try:
        x = np.random.default_rng(0).normal(size=(2 * BATCH, 64))
        y = scale * x[:, :1]
        plain, guarded = (seeded(linear, keras.optimizers.SGD(0.01), loss="mse", metrics=[]) for _ in range(2))
        fit(plain, x, y)
        guard = gr.GradientGuard()
        history = fit(guarded, x, y, guard).history
        assert history["skipped_steps"] == [0, 0]
        assert np.isfinite(guard.trace.loss).all()
        for mine, theirs in zip(guarded.get_weights(), plain.get_weights(), strict=True):
            assert mine.dtype == np.float64
            np.testing.assert_allclose(mine, theirs)
        x[0, 0] = 1e200  # its square is beyond float64
        history = fit(guarded, x, y, gr.GradientGuard(), epochs=1).history
        assert history["skipped_steps"] == [1]
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(policy)


def test_the_bound_of_the_guard_takes_the_place_of_the_models():
    x, y = digits(BATCH)
    inputs = keras.Input((64,))

    def make():
        outputs = keras.layers.Dense(10)(inputs)
        return gr.RecipeModel(inputs, outputs, clipping=gr.clipping.by_global_norm(0.01))

    model = seeded(make, keras.optimizers.SGD(1.0))
    before = model.get_weights()
    guard = gr.GradientGuard(clipping=gr.clipping.by_global_norm(0.25))
    monitor = gr.GradientMonitor()
    fit(model, x, y, monitor, guard, epochs=1)
    moved = np.sqrt(sum(np.sum(np.square(a - b)) for a, b in zip(model.get_weights(), before, strict=True)))
    assert moved == pytest.approx(0.25, rel=1e-5)
    assert monitor.trace.gradient_norm[0] > 0.25
    assert monitor.trace.steps["clip_factor"][0] == pytest.approx(0.25 / monitor.trace.gradient_norm[0], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"clipping": 1.0}, TypeError, r"must be a clipping method or None\. Received: 1\.0\. .*by_global_norm"),
        ({"clipping": gr.clipping.by_global_norm}, TypeError, r"Received: <class .*by_global_norm'>\. Choose one of"),
        ({"max_consecutive_skips": 0}, ValueError, r"at least 1\. Received: max_consecutive_skips=0\. 10 suits"),
        ({"max_consecutive_skips": 2.5}, ValueError, r"Received: max_consecutive_skips=2\.5"),
        ({"sigmas": 0}, ValueError, r"or None\. Received: sigmas=0\. 6 suits"),
        ({"snapshot_every": 0}, ValueError, r"Received: snapshot_every=0\. 100 suits"),
        ({"max_rollbacks": -1}, ValueError, r"Received: max_rollbacks=-1\. 5 suits"),
        ({"max_consecutive_skips": True}, ValueError, r"Received: max_consecutive_skips=True"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        gr.GradientGuard(**arguments)


def test_two_guards_are_refused_and_the_model_still_trains_afterwards():
    x, y = digits(64)
    model = seeded(two_dense)
    with pytest.raises(ValueError, match=r"may hold one GradientGuard\. Received: two\. .* keep one"):
        fit(model, x, y, gr.GradientGuard(), gr.GradientGuard())
    assert "gradient_norm" not in fit(model, x, y).history
    assert "gradient_norm" in fit(model, x, y, gr.GradientGuard()).history


def test_a_model_that_is_not_compiled_is_refused():
    model = two_dense()
    with pytest.raises(ValueError, match=r"GradientGuard needs a compiled model .*Call model\.compile"):
        keras.callbacks.CallbackList([gr.GradientGuard()], model=model)


def large():
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(2100, "relu"), keras.layers.Dense(10)])


@pytest.mark.parametrize(
    "how", [{}, {"fused": True}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)], ids=str
)
def test_a_large_kernel_is_bounded_as_by_keras_in_some_steps_and_left_alone_in_others(how):
    """A kernel of 134,400 entries is not multiplied by a factor of 1; norms go from .4 to 1.3 here."""
    x, y = digits(320)
    clipped, ours = (seeded(large, keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=c)) for c in (0.9, None))
    for model in (clipped, ours):
        model.compile(model.optimizer, model.loss, jit_compile=how.get("jit_compile", False))
    guard = gr.GradientGuard(clipping=gr.clipping.by_global_norm(0.9), fused=how.get("fused", False))
    history = fit(ours, x, y, guard).history
    fit(clipped, x, y)
    factors = guard.trace.steps["clip_factor"]
    assert 0 < history["clipped_steps"][-1] == np.sum(factors < 1) < len(factors) - 3
    for mine, theirs in zip(ours.get_weights(), clipped.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
