"""Whoever looks at the weights during a guarded fit finds weights that are good, and good weights are not given up."""

from __future__ import annotations

import contextlib
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr

BATCH, STEPS = 32, 20


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH * STEPS, 10)).astype("float32")
    return x, (x @ random.normal(size=(10, 1))).astype("float32")


def net(**how):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse", **how)
    return model


class Jump(keras.callbacks.Callback):
    """Set the learning rate to 1000 before a step, counted from 1."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.model.optimizer.learning_rate = 1e3


@pytest.mark.parametrize(
    ("at", "how"),
    [
        (33, {}),
        pytest.param(40, {}, marks=pytest.mark.slow),
        pytest.param(39, {"jit_compile": True}, marks=pytest.mark.slow),
        (10, {"steps_per_execution": 4}),
        pytest.param(33, {"run_eagerly": True}, marks=pytest.mark.slow),
    ],
)
def test_a_fit_that_ends_in_bad_steps_or_with_the_step_that_ruins_leaves_good_weights(at, how):
    x, y = data()
    model, guard = net(**how), gr.GradientGuard()
    at_first = model.evaluate(x, y, verbose=0)
    history = model.fit(
        x, y, batch_size=BATCH, epochs=2, verbose=0, validation_data=(x, y), callbacks=[guard, Jump(at)]
    ).history
    assert max(history["val_loss"]) <= 1.01 * at_first
    assert model.evaluate(x, y, verbose=0) <= 1.01 * at_first
    assert [event.kind for event in guard.events if event.kind != "skip"] == ["rollback", "back_off"]
    assert not {"save", "evaluate", "get_weights"} & set(vars(model))


def test_what_is_saved_between_two_steps_is_good(tmp_path):
    x, y = data()
    model = net()
    at_first = model.evaluate(x, y, verbose=0)
    saving = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "{epoch}_{batch}.weights.h5"), save_weights_only=True, save_freq=3
    )
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[gr.GradientGuard(), Jump(26), saving])
    saved = list(tmp_path.iterdir())
    assert len(saved) == 13
    for path in saved:
        model.load_weights(path)
        assert model.evaluate(x, y, verbose=0) < 2 * at_first


class Breaks(keras.optimizers.SGD):
    """Make every weight NaN with the last of 40 updates."""

    def update_step(self, gradient, variable, learning_rate):
        last = keras.ops.equal(self.iterations, 39)
        self.assign_sub(variable, learning_rate * gradient + keras.ops.where(last, np.nan, 0.0))


@pytest.mark.parametrize(
    ("optimizer", "jump_at", "how", "reason"),
    [
        (keras.optimizers.SGD, 40, {}, "training_lost"),
        pytest.param(keras.optimizers.SGD, 40, {"jit_compile": True}, "training_lost", marks=pytest.mark.slow),
        pytest.param(keras.optimizers.SGD, 40, {"run_eagerly": True}, "training_lost", marks=pytest.mark.slow),
        (Breaks, None, {}, "nonfinite_weights"),
    ],
)
@pytest.mark.parametrize("validated", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_without_snapshots_a_last_step_that_ruins_is_reported(optimizer, jump_at, how, reason, validated, caplog):
    x, y = data()
    model, guard = net(), gr.GradientGuard(snapshot_every=None)
    model.compile(optimizer(0.01), "mse", **how)
    callbacks = [guard] if jump_at is None else [guard, Jump(jump_at)]
    validation = {"validation_data": (x, y)} if validated else {}
    history = model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=callbacks, **validation).history
    assert guard.stop_reason == reason
    assert [(event.kind, event.reason) for event in guard.events] == [("stop", reason)]
    assert history["loss"][1] > 100 * history["loss"][0]
    assert not model.evaluate(x, y, verbose=0) < 100 * history["loss"][0]
    assert "The weights left are bad, and no snapshot was kept" in caplog.text


@pytest.mark.parametrize("raise_error", [False, True])
def test_without_snapshots_weights_that_are_ruined_after_the_last_step_are_reported(raise_error):
    class Ruin(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.layers[0].kernel.assign(1e12 * self.model.layers[0].kernel)

    x, y = data()
    guard = gr.GradientGuard(snapshot_every=None, raise_error=raise_error)
    with pytest.raises(gr.TrainingStoppedError) if raise_error else contextlib.nullcontext():
        net().fit(x, y, batch_size=BATCH, verbose=0, callbacks=[guard, Ruin()])
    assert guard.stop_reason == "training_lost"


def restarts(rate):
    return keras.optimizers.schedules.CosineDecayRestarts(rate, 5)


HEALTHY = {
    "weights that begin at zero": ([keras.layers.Dense(1, kernel_initializer="zeros")], lambda: 0.02),
    "a zero head": ([keras.layers.Dense(32, "relu"), keras.layers.Dense(1, kernel_initializer="zeros")], lambda: 0.05),
    "warm restarts": ([keras.layers.Dense(16, "relu"), keras.layers.Dense(1)], lambda: restarts(0.03)),
    "a large rate at first": (
        [keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)],
        lambda: keras.optimizers.schedules.ExponentialDecay(0.3, 5, 0.7),
    ),
    "batch normalization": (
        [keras.layers.Dense(16), keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.Dense(1)],
        lambda: 0.05,
    ),
    "an LSTM": ([keras.layers.Reshape((5, 2)), keras.layers.LSTM(8), keras.layers.Dense(1)], lambda: 0.3),
    "an embedding": (
        [
            keras.layers.Discretization(bin_boundaries=[-1.0, 0.0, 1.0]),
            keras.layers.Embedding(4, 8),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ],
        lambda: 0.03,
    ),
}
AT_ONCE = ("weights that begin at zero", "an embedding")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k not in AT_ONCE)) for k in HEALTHY])
@pytest.mark.parametrize("optimizer", ["SGD", pytest.param("Adam", marks=pytest.mark.slow)])
def test_without_snapshots_weights_that_grow_in_a_healthy_training_are_not_reported(kind, optimizer):
    x, y = data()
    layers, rate = HEALTHY[kind]
    how = {"batch_size": 4 * BATCH, "epochs": 6, "verbose": 0, "validation_data": (x, y), "shuffle": False}
    histories = []
    for guard in (None, gr.GradientGuard(snapshot_every=None)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((10,)), *(type(one).from_config(one.get_config()) for one in layers)])
        model.compile(getattr(keras.optimizers, optimizer)(rate()), "mse")
        histories.append(model.fit(x, y, callbacks=[guard] if guard else [], **how).history)
    plain, guarded = histories
    assert guard.events == [] and guard.stop_reason is None
    assert plain["val_loss"][-1] < plain["val_loss"][0]
    np.testing.assert_allclose(guarded["val_loss"], plain["val_loss"], rtol=1e-5)


def batches(x, y, bad, good):
    """Yield so many good batches, then bad ones for good."""
    for number in range(10_000):
        at = slice(number % STEPS * BATCH, (number % STEPS + 1) * BATCH)
        yield (x[at] if number < good else bad(x[at])), y[at]


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*:UserWarning")
@pytest.mark.parametrize("good", [8, 13])
def test_good_weights_are_kept_where_the_data_turn_bad_for_good(good):
    x, y = data()
    model, plain, guard = net(), net(), gr.GradientGuard(max_consecutive_skips=4, max_rollbacks=2)
    model.fit(batches(x, y, lambda x: x * np.nan, good), steps_per_epoch=40, epochs=2, verbose=0, callbacks=[guard])
    plain.fit(x[: good * BATCH], y[: good * BATCH], batch_size=BATCH, shuffle=False, verbose=0)
    for mine, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert guard.stop_reason == "too_many_skips"
    assert [event.kind for event in guard.events if event.kind != "skip"] == ["stop"]


@pytest.mark.parametrize("bad", [np.nan, 1e6])
def test_a_bad_last_batch_of_every_epoch_sends_nothing_back(bad):
    x, y = data()
    spoiled = x.copy()
    spoiled[-5] = bad
    model, guard = net(), gr.GradientGuard()
    at_first = model.evaluate(x, y, verbose=0)
    model.fit(spoiled, y, batch_size=BATCH, shuffle=False, epochs=3, verbose=0, callbacks=[guard])
    assert [event.kind for event in guard.events] == ["skip"] * 3
    assert model.evaluate(x, y, verbose=0) < at_first / 5


def test_a_second_look_leaves_no_trace():
    x, y = data()
    model = net(metrics=["mae"])
    guard = gr.GradientGuard(clipping=gr.clipping.by_percentile(90.0))
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 11:
                state = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
                state += guard._session.pipeline.variables.values()
                before = [np.array(variable) for variable in state]
                rows = len(guard.trace)
                retrial = guard._session.retry()
                seen.append(retrial)
                for variable, value in zip(state, before, strict=True):
                    np.testing.assert_array_equal(np.array(variable), value)
                assert len(guard.trace) == rows

    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[guard, Look()])
    assert seen[0].outcome == 0 and 0 < seen[0].loss < seen[0].first_loss
    assert len(guard.trace) == STEPS


def test_a_hard_batch_late_in_a_training_is_used_and_an_absurd_one_that_is_left_out_shows_in_the_loss():
    x, y = data()
    y_hard, x_absurd = y.copy(), x.copy()
    y_hard[12 * BATCH] += 20.0  # within what the gradients of the first epoch were
    x_absurd[12 * BATCH] *= 1e4
    for x_late, y_late, kinds in ((x, y_hard, set()), (x_absurd, y, {"skip"})):
        model, guard = net(), gr.GradientGuard()
        how = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "callbacks": [guard]}
        model.fit(x, y, epochs=8, **how)
        before = model.history.history["loss"][-1]
        model.fit(x_late, y_late, **how)
        assert {event.kind for event in guard.events} == kinds
        assert model.history.history["loss"][-1] > 2 * before


class Alternating(keras.Model):
    """Two nets with an optimizer each, and a train step that shows two losses."""

    def __init__(self):
        super().__init__()
        self.maker = keras.Sequential([keras.Input((10,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(10)])
        self.judge = keras.Sequential([keras.Input((10,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
        self.of_maker, self.of_judge = keras.optimizers.SGD(0.01), keras.optimizers.Adam(0.01)

    def train_step(self, batch):
        losses = {}
        for name, part, optimizer in (("j", self.judge, self.of_judge), ("m", self.maker, self.of_maker)):
            with tf.GradientTape() as tape:
                made = self.maker(batch[0]) if name == "m" else batch[0]
                losses[name] = tf.reduce_mean(tf.square(self.judge(made) - batch[1]))
            weights = part.trainable_weights
            optimizer.apply_gradients(zip(tape.gradient(losses[name], weights), weights, strict=True))
        return losses


def test_where_no_loss_is_seen_the_gradients_tell_bad_weights():
    x, y = data()
    keras.utils.set_random_seed(0)
    model, guard = Alternating(), gr.GradientGuard()
    model.compile()
    jump = Jump(35)
    jump.set_model = lambda model: setattr(jump, "_model", types.SimpleNamespace(optimizer=model.of_maker))
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[guard, jump])
    assert np.isnan(guard.trace.loss).all()
    assert "rollback" in [event.kind for event in guard.events]
    assert max(np.abs(weight).max() for weight in model.get_weights()) < 10
