"""The guard whole: weights that are hit, rates that jump, batches that are absurd, and levels that merely change."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import all_finite, assert_same_state, deterministic, digits, seeded, two_dense, with_state

BATCH, SAMPLES, EPOCHS = 32, 1024, 8
STEPS = SAMPLES // BATCH  # of an epoch


def fit(model, x, y, *callbacks, epochs=EPOCHS, **how):
    how = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **how}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **how).history


def accuracy(model) -> float:
    x, y = (part[SAMPLES:] for part in digits(1797))
    return float(np.mean(np.argmax(model.predict(x, verbose=0), axis=1) == y))


class After(keras.callbacks.Callback):
    """Do something to the model after so many batches."""

    def __init__(self, batches, act):
        super().__init__()
        self.left, self.act = batches, act

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.act(self.model)


def flip_exponent_bit(model):
    """Flip the highest bit of the exponent of one float32: 0.1 becomes 3e37."""
    kernel = model.trainable_variables[2]
    values = np.array(kernel)
    values.view(np.uint32)[3, 3] ^= np.uint32(1 << 30)
    kernel.assign(values)


def spoil(model):
    model.trainable_variables[0].assign(np.full((64, 16), np.nan, np.float32))


class Jump(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that is a thousand times too high from some step on."""

    def __init__(self, rate, at):
        self.rate, self.at = rate, at

    def __call__(self, step):
        return tf.where(tf.cast(step, tf.int32) < self.at, self.rate, 1000 * self.rate)

    def get_config(self):
        return {"rate": self.rate, "at": self.at}


@pytest.fixture(scope="module")
def clean() -> float:
    model = seeded(two_dense)
    fit(model, *digits(SAMPLES))
    return accuracy(model)


def outlier(x):
    x = x.copy()
    x[50 * BATCH % SAMPLES + 7] *= 1e6
    return x


FAULTS = {
    "bit flipped in a weight": ({}, flip_exponent_bit, lambda x: x),
    "NaN in a weight": ({}, spoil, lambda x: x),
    "rate x 1000": ({"learning_rate": Jump(0.01, 2 * STEPS)}, lambda model: None, lambda x: x),
    "sample x 1e6": ({}, lambda model: None, outlier),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(one, marks=[pytest.mark.slow] * (one == "bit flipped in a weight")) for one in FAULTS]
)
def test_after_a_fault_the_model_is_as_good_as_without(fault, clean):
    arguments, act, change = FAULTS[fault]
    x, y = digits(SAMPLES)
    model = seeded(two_dense, keras.optimizers.Adam(**{"learning_rate": 0.01, **arguments}))
    guard = gr.GradientGuard(snapshot_every=20)
    history = fit(model, change(x), y, guard, After(2 * STEPS, act))
    assert all_finite(model)
    assert np.isfinite([history[name] for name in ("loss", "accuracy")]).all()
    assert accuracy(model) >= 0.95 * clean
    assert guard.events
    assert all(event.reason for event in guard.events)
    assert guard.stop_reason is None


@pytest.mark.parametrize("fault", [pytest.param("NaN in a weight", marks=pytest.mark.slow), "rate x 1000"])
def test_without_the_guard_these_faults_are_no_small_thing(fault, clean):
    arguments, act, change = FAULTS[fault]
    x, y = digits(SAMPLES)
    alone = seeded(two_dense, keras.optimizers.Adam(**{"learning_rate": 0.01, **arguments}))
    fit(alone, change(x), y, After(2 * STEPS, act))
    assert accuracy(alone) < 0.95 * clean


def test_a_rollback_says_where_it_went_back_to_and_what_the_rate_is_bounded_by():
    x, y = digits(SAMPLES)
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 200)
    model = seeded(with_state, keras.optimizers.Adam(schedule))
    guard = gr.GradientGuard(snapshot_every=8, max_consecutive_skips=4)
    flip_at = 40
    history = fit(model, x, y, guard, After(flip_at, spoil), epochs=3)
    back = [event for event in guard.events if event.kind != "skip"]
    assert [event.kind for event in back[:2]] == ["rollback", "back_off"]
    assert back[0].reason in ("too_many_skips", "nonfinite_weights")
    assert back[0].details["back_to_step"] <= flip_at
    assert back[0].details["rollbacks"] == 1
    at_most = back[1].details["at_most"]["0/0"]
    assert at_most == pytest.approx(0.5 * float(schedule(back[0].details["back_to_step"])), rel=0.1)
    assert np.isfinite(history["loss"]).all()
    applied = np.flatnonzero(~guard.trace.skipped)
    assert int(model.optimizer.iterations.numpy()) == len(applied) - back[0].details["steps_lost"] + sum(
        guard.trace.skipped[back[0].details["back_to_step"] : back[0].step + 1]
    )


def test_under_a_bound_the_rate_that_is_applied_is_the_bound_and_idle_not_a_bit_changes():
    x, y = digits(4 * BATCH)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.05])

    def make():
        return seeded(two_dense, keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=0.01))

    plain, idle, bounded, reference = make(), make(), make(), seeded(two_dense, keras.optimizers.SGD(0.1))
    guard = gr.GradientGuard()
    with deterministic(rewrites=False):
        fit(plain, x, y, epochs=1)
        fit(idle, x, y, guard, epochs=1)
    assert_same_state(idle, plain)

    class Bound(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            for cap in guard._session.pipeline.rate_caps.values():
                cap.assign(0.1)

    eager = {"run_eagerly": True}  # so that the bounds exist before the second step
    bounded.compile(keras.optimizers.SGD(schedule), loss=bounded.loss, metrics=["accuracy"], **eager)
    before = bounded.get_weights()
    fit(bounded, x[:BATCH], y[:BATCH], guard, epochs=1)
    bounded.set_weights(before)
    fit(bounded, x[:BATCH], y[:BATCH], guard, Bound(), epochs=1)
    fit(reference, x[:BATCH], y[:BATCH], epochs=1)
    for mine, theirs in zip(bounded.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_a_training_that_cannot_be_saved_stops_and_says_why(caplog):
    x, y = digits(SAMPLES)
    x[STEPS * BATCH // 2 :] = np.nan
    model = seeded(two_dense)
    guard = gr.GradientGuard(snapshot_every=4, max_consecutive_skips=4, max_rollbacks=2)
    fit(model, x, y, guard)
    assert guard.stop_reason in ("too_many_skips", "too_many_rollbacks")
    stop = guard.events[-1]
    assert (stop.kind, stop.reason) == ("stop", guard.stop_reason)
    assert all_finite(model)
    assert "GradientGuard stopped" in caplog.text
    kinds = [event.kind for event in guard.events]
    assert kinds.count("rollback") == kinds.count("back_off") <= 2


def test_without_snapshots_too_many_skips_stop_it():
    x, y = digits(SAMPLES)
    x[BATCH:] = np.nan
    guard = gr.GradientGuard(snapshot_every=None, max_consecutive_skips=5)
    fit(seeded(two_dense), x, y, guard, epochs=1)
    assert guard.stop_reason == "too_many_skips"
    assert not [event for event in guard.events if event.kind == "rollback"]


@pytest.mark.parametrize(
    ("rate", "reason"),
    [(1e3, "too_many_skips"), pytest.param(np.inf, "nonfinite_weights", marks=pytest.mark.slow)],
)
def test_without_snapshots_bad_weights_at_the_end_are_told(rate, reason, caplog):
    x, y = digits(SAMPLES)
    model, guard = seeded(two_dense), gr.GradientGuard(snapshot_every=None)
    ruin = After(2 * STEPS - 3, lambda model: model.optimizer.learning_rate.assign(rate))
    logs = fit(model, x, y, guard, ruin, epochs=2)
    left = model.evaluate(x[:BATCH], y[:BATCH], verbose=0)
    left = left[0] if isinstance(left, list) else left
    assert not left < 10 * logs["loss"][0]
    assert guard.stop_reason == reason
    assert logs["loss"][-1] > 10 * logs["loss"][0]
    assert "no snapshot was kept" in caplog.text


def test_without_snapshots_bad_data_at_the_end_are_no_fault_of_the_weights():
    x, y = digits(SAMPLES)
    x[-3 * BATCH :] = np.nan
    guard = gr.GradientGuard(snapshot_every=None)
    logs = fit(seeded(two_dense), x, y, guard, epochs=2)
    assert guard.stop_reason is None and logs["loss"][-1] < logs["loss"][0]


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_data_sorted_by_class_are_trained_to_the_end(optimizer):
    x, y = digits(1536)
    order = np.argsort(y, kind="stable")
    make = {"adam": lambda: keras.optimizers.Adam(0.01), "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9)}
    guard = gr.GradientGuard()
    history = fit(seeded(two_dense, make[optimizer]()), x[order], y[order], guard, epochs=3)
    assert guard.stop_reason is None
    assert len(history["loss"]) == 3
    assert guard.trace.skipped.mean() < 0.2


def test_targets_that_change_their_scale_for_good_are_given_way_to():
    x, _ = digits(SAMPLES)
    y = x[:, :1].copy()
    y[SAMPLES // 2 :] += 1000.0
    inputs = keras.Input((64,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    guard = gr.GradientGuard(max_consecutive_skips=6)
    history = fit(model, np.tile(x, (4, 1)), np.repeat(y.reshape(2, -1), 4, axis=0).reshape(-1, 1), guard, epochs=1)
    assert guard.stop_reason is None
    assert not guard.trace.skipped[-20:].any()  # the new level is the level
    assert np.isfinite(history["loss"]).all()


def regression(rate):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def test_a_training_that_explodes_in_its_first_steps_goes_back_to_its_beginning_until_the_rate_is_low_enough():
    x, y = digits(SAMPLES)
    x, y = 255 * x, y.reshape(-1, 1).astype("float32")  # nobody scaled the pixels
    model = regression(0.01)
    before = model.evaluate(x, y, verbose=0)
    guard = gr.GradientGuard()
    fit(model, x, y, guard, epochs=6)
    back = [event for event in guard.events if event.kind == "rollback"]
    assert back and all(event.details["back_to_step"] == 0 for event in back)
    assert guard.stop_reason is None
    assert model.evaluate(x, y, verbose=0) < before / 10


def test_weights_that_the_first_update_breaks_go_back_though_no_loss_shows_it():
    class Breaks(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            broken = keras.ops.where(keras.ops.cast(learning_rate, "float32") > 0.02, np.nan, 0.0)
            self.assign_sub(variable, learning_rate * gradient + broken)

    x, y = digits(4 * BATCH)
    model, guard = seeded(two_dense, Breaks(0.03)), gr.GradientGuard()
    history = fit(model, x, y, guard, epochs=2)
    assert [event.reason for event in guard.events if event.kind == "rollback"] == ["nonfinite_weights"]
    assert all_finite(model)
    assert np.isfinite(history["loss"]).all()


def test_where_it_stops_the_last_sound_weights_are_left(caplog):
    x, y = digits(4 * BATCH)
    model, guard = seeded(two_dense, keras.optimizers.SGD(1e30)), gr.GradientGuard(max_rollbacks=1)
    before = model.get_weights()
    fit(model, x, y, guard, epochs=20)
    assert guard.stop_reason == "too_many_rollbacks"
    for mine, first in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, first)
    assert "The weights are those after step 0" in caplog.text


def test_data_in_other_units_do_not_stop_the_next_fit():
    x, y = digits(SAMPLES)
    y = y.reshape(-1, 1).astype("float32")
    model, guard = regression(1e-3), gr.GradientGuard()
    fit(model, x, y, guard, epochs=4)
    history = fit(model, x, 1000 * y, guard, epochs=3)
    assert guard.stop_reason is None
    assert len(history["loss"]) == 3 and np.isfinite(history["loss"]).all()


def test_skips_in_a_row_are_counted_from_fit_to_fit():
    x, y = digits(BATCH)
    x[3] = np.nan
    model, guard = seeded(two_dense), gr.GradientGuard(max_consecutive_skips=3)
    reasons = []
    for _ in range(4):
        fit(model, x, y, guard, epochs=1)
        reasons.append(guard.stop_reason)
    assert reasons == [None, None, "too_many_skips", None]


def test_a_loss_that_rises_because_the_data_grow_is_left_to_rise():
    random = np.random.default_rng(0)
    x = random.normal(size=(6000, 64)).astype("float32")
    y = (x[:, :1] + random.normal(size=(6000, 1))) * (1 + np.arange(6000)[:, None] / 500)
    plain, guarded, guard = regression(1e-4), regression(1e-4), gr.GradientGuard()
    fit(plain, x, y, epochs=1)
    fit(guarded, x, y, guard, epochs=1)
    late = x[-500:], y[-500:]
    assert guarded.evaluate(*late, verbose=0) < 1.1 * plain.evaluate(*late, verbose=0)
    assert guard.stop_reason is None


@pytest.mark.slow
def test_a_fit_that_goes_on_with_easy_samples_first_is_left_alone():
    x, y = digits(1536)
    model = seeded(two_dense)
    fit(model, x, y, epochs=30)
    logits = model.predict(x, verbose=0)
    order = np.argsort(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
    guard = gr.GradientGuard()
    fit(model, x[order], y[order], guard, epochs=2)
    losses = guard.trace.steps["loss"]
    assert np.median(losses[16:48]) > 3 * np.median(losses[:16])  # what would count as lost in a fresh net
    assert not [event for event in guard.trace.events if event.kind in ("rollback", "skip")]


def test_snapshots_are_as_many_batches_apart_where_gradients_accumulate():
    model = seeded(two_dense, keras.optimizers.Adam(0.01, gradient_accumulation_steps=4))
    guard = gr.GradientGuard(snapshot_every=STEPS)
    fit(model, *digits(SAMPLES), guard, After(3 * STEPS - 1, flip_exponent_bit))  # of 8 updates an epoch, the 24th
    first = next(event for event in guard.events if event.kind == "rollback")
    assert first.details["back_to_step"] >= 8  # not to the beginning: an epoch's batches lie between two snapshots
    assert accuracy(model) > 0.8
