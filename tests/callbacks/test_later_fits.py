"""One guard in several fits: what it remembers is of use where the training goes on, and does no harm elsewhere."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import gradrecipes as gr
from tests.training.nets import digits, seeded, two_dense

BATCH, EPOCHS = 32, 12
X, Y = digits(1024)


def in_the_second_tier(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def fit(model, x, y, *callbacks, epochs=EPOCHS):
    how = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **how).history["loss"]


def made(optimizer=None):
    return seeded(two_dense, keras.optimizers.Adam(0.01) if optimizer is None else optimizer)


def begin_again(model, weights):
    model.set_weights(weights)
    for variable in model.optimizer.variables:
        if variable is not model.optimizer.learning_rate:
            variable.assign(np.zeros(variable.shape))


@pytest.mark.parametrize(
    "clipping", [gr.clipping.by_percentile(90), *in_the_second_tier(None, gr.clipping.by_z_score())], ids=repr
)
def test_a_training_that_begins_again_from_its_first_weights_repeats_itself(clipping):
    model, guard = made(), gr.GradientGuard(clipping=clipping)
    first = model.get_weights()
    losses = []
    for _ in range(2):
        begin_again(model, first)
        losses.append(fit(model, X, Y, guard))
    assert losses[0][-1] < 0.2
    assert losses[1] == losses[0]
    assert not guard.events


def test_a_second_fit_goes_back_at_the_same_step_as_the_first():
    rises = keras.optimizers.schedules.PiecewiseConstantDecay([28], [0.5, 30.0])
    model, guard = made(keras.optimizers.SGD(rises)), gr.GradientGuard()
    first, few, losses, lost = model.get_weights(), 20 * BATCH + 12, [], []  # 21 steps: no multiple of the checks' 8
    for _ in range(2):
        begin_again(model, first)
        before = len(guard.events)
        losses.append(fit(model, X[:few], Y[:few], guard, epochs=5))
        lost.append([event.details["steps_lost"] for event in guard.events[before:] if event.kind == "rollback"])
    assert lost[0] and lost[1] == lost[0]
    assert losses[1] == losses[0]


def test_a_bound_of_the_rate_is_of_its_training():
    model, guard = made(keras.optimizers.SGD(0.1)), gr.GradientGuard()
    first = model.get_weights()
    fit(model, X, Y, guard, epochs=1)
    for cap in guard._session.pipeline.rate_caps.values():
        cap.assign(1e-6)
    begin_again(model, first)
    assert fit(model, X, Y, guard)[-1] < 1.0


@pytest.mark.parametrize("snapshot_every", [100, *in_the_second_tier(None)])
def test_other_data_are_learned_as_without_the_guard(snapshot_every):
    plain, guarded, guard = made(), made(), gr.GradientGuard(snapshot_every=snapshot_every)
    for model, callbacks in ((plain, []), (guarded, [guard])):
        fit(model, X, Y, *callbacks)
    one = fit(plain, X[:, ::-1], (Y * 7 + 3) % 10)
    other = fit(guarded, X[:, ::-1], (Y * 7 + 3) % 10, guard)
    assert np.sum(other) < 1.1 * np.sum(one)
    assert {event.kind for event in guard.events} <= {"skip"}


@pytest.mark.parametrize("snapshot_every", [100, *in_the_second_tier(None)])
def test_a_fit_that_begins_with_skips_alone_has_begun_at_another_level(snapshot_every):
    inputs, targets = X, 5 * X.mean(axis=1, keepdims=True)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    guard = gr.GradientGuard(snapshot_every=snapshot_every)
    fit(model, inputs, targets, guard)
    fit(model, inputs, targets + 100.0, guard, epochs=2)
    assert [event.kind for event in guard.events] == ["skip"] * 8 + ["gave_way"]
    assert guard.stop_reason is None


def test_where_the_training_goes_on_an_absurd_batch_is_known_at_once():
    model, guard = made(), gr.GradientGuard()
    fit(model, X, Y, guard)
    absurd = X.copy()
    absurd[:BATCH] *= 1e6
    fit(model, absurd, Y, guard, epochs=1)
    assert [(event.kind, event.batch) for event in guard.events] == [("skip", 0)]


def test_a_black_box_keeps_its_room_where_the_data_of_a_later_fit_are_others():
    model, box = made(), gr.BlackBox()
    fit(model, X, Y, box)
    others = (Y * 7 + 3) % 10
    fit(model, X[:, ::-1], others, box, epochs=4)
    assert box.recordings == []
    broken = X[:, ::-1].copy()
    broken[40, 5] = np.nan
    fit(model, broken, others, box, epochs=1)
    assert [one.batch for one in box.recordings] == [1] and box.recordings[0].reason.startswith("nonfinite")
