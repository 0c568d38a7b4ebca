"""With the guard on, Keras' own callbacks see finite numbers; and a fit that ends badly ends cleanly."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.core.trace import Trace
from tests.training.nets import all_finite, digits, layers, seeded

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("resumable.py")
BATCH = 32


def tanh_net() -> keras.Model:  # a ReLU may swallow a NaN
    return keras.Sequential([keras.Input((64,)), layers.Dense(16, activation="tanh"), layers.Dense(10)])


def fit(model, *callbacks, bad=True, epochs=4, **how):
    x, y = digits(4 * BATCH)
    if bad:
        x[BATCH + 5, 7] = np.nan  # in the first epoch, and in each
    how = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **how}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **how).history


def valid():
    return tuple(part[128:] for part in digits(256))


# What Keras does alone is the second tier's: it shows that there is something to guard against.
GUARDS = pytest.mark.parametrize(
    "guarded", [pytest.param(False, id="alone", marks=pytest.mark.slow), pytest.param(True, id="guarded")]
)


def guard(guarded):
    return [gr.GradientGuard()] if guarded else []


@GUARDS
@pytest.mark.parametrize("monitor", ["loss", "val_loss"])
def test_early_stopping_restores_what_it_can(guarded, monitor):
    model = seeded(tanh_net)
    stopping = keras.callbacks.EarlyStopping(monitor, mode="min", patience=10, restore_best_weights=True)
    fit(model, *guard(guarded), stopping, validation_data=valid())
    assert np.isfinite(stopping.best) == guarded
    assert all_finite(model) == guarded
    assert (stopping.best_epoch == 3) == guarded  # it learns on; alone, NaN in the first epoch is the best for ever


@GUARDS
def test_a_checkpoint_holds_the_best_weights(guarded, tmp_path):
    path = tmp_path / "best.weights.h5"
    saved = keras.callbacks.ModelCheckpoint(
        str(path), monitor="val_loss", mode="min", save_best_only=True, save_weights_only=True
    )
    model = seeded(tanh_net)
    fit(model, *guard(guarded), saved, validation_data=valid())
    assert np.isfinite(saved.best) == guarded
    if guarded:
        twin = seeded(tanh_net)
        twin.optimizer.build(twin.trainable_variables)
        twin.load_weights(path)
        for mine, theirs in zip(twin.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@GUARDS
def test_the_rate_is_not_cut_for_a_nan(guarded):
    model = seeded(tanh_net)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", mode="min", factor=0.5, patience=1)
    fit(model, *guard(guarded), plateau)
    rate = float(model.optimizer.learning_rate.numpy())
    assert (rate == pytest.approx(0.01)) == guarded
    assert np.isfinite(plateau.best) == guarded


class Interrupt(keras.callbacks.Callback):
    def __init__(self, error, epoch=1):
        super().__init__()
        self.error, self.epoch = error, epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise self.error


@GUARDS
def test_a_backup_restores_finite_weights(guarded, tmp_path):
    def restore():
        return keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False)

    with pytest.raises(RuntimeError, match="power"):
        fit(seeded(tanh_net), *guard(guarded), restore(), Interrupt(RuntimeError("power")))
    model, seen = seeded(tanh_net), []
    look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append((epoch, all_finite(model))))
    fit(model, *guard(guarded), restore(), look)
    assert seen[0] == (2, guarded)
    assert all_finite(model) == guarded


@pytest.mark.parametrize(
    ("at", "raise_error"),
    [
        ("a step", False),
        ("an epoch's end", True),
        pytest.param("a step", True, marks=pytest.mark.slow),
        pytest.param("an epoch's end", False, marks=pytest.mark.slow),
    ],
)
def test_a_backup_outlives_a_stop_that_raises_an_error(raise_error, at, tmp_path):
    seen, steps = [], 12 if at == "a step" else 4
    x, y = digits(BATCH)

    def run(bad_from):
        def batches():
            for number in range(4 * steps):
                yield (np.full_like(x, np.nan) if number >= bad_from * steps else x), y

        model = seeded(tanh_net)
        guarding = gr.GradientGuard(max_consecutive_skips=3, max_rollbacks=0, raise_error=raise_error)
        backup = keras.callbacks.BackupAndRestore(str(tmp_path))
        seen.append([])
        epochs = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen[-1].append(epoch))
        try:
            how = {"epochs": 4, "steps_per_epoch": steps, "shuffle": False, "verbose": 0}
            model.fit(batches(), **how, callbacks=[guarding, backup, epochs])
        except gr.TrainingStoppedError as error:
            assert (error.reason, error.epoch) == (guarding.stop_reason, 2)
            assert f"({error.reason})" in str(error) and "epoch 3" in str(error)
            assert str(pickle.loads(pickle.dumps(error))) == str(error)
            assert raise_error
        return model, guarding

    model, guarding = run(bad_from=2)
    assert guarding.stop_reason == "too_many_skips"
    assert all_finite(model)
    _, guarding = run(bad_from=99)
    assert guarding.stop_reason is None
    assert seen == [[0, 1, 2], [2, 3] if raise_error else [0, 1, 2, 3]]


class Exploding(keras.layers.Layer):
    """Raise within a step that is run eagerly."""

    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def call(self, x):
        self.calls += 1
        if self.calls > 4:
            raise self.error
        return x


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_an_error_inside_a_step_detaches_and_leaves_the_record(error, tmp_path):
    exploding = Exploding(error)
    model = seeded(lambda: keras.Sequential([keras.Input((64,)), exploding, layers.Dense(10)]), run_eagerly=True)
    exploding.calls = 0
    monitor, guarding = gr.GradientMonitor(), gr.GradientGuard()
    with pytest.raises((type(error), RuntimeError)):
        fit(model, monitor, guarding, bad=False)
    assert 1 <= len(monitor.trace) <= 4
    assert monitor.trace.events[-1].kind == "interrupted"
    assert monitor.trace.events[-1].reason == type(error).__name__
    monitor.trace.save(tmp_path / "run.trace")
    assert len(Trace.load(tmp_path / "run.trace")) == len(monitor.trace)
    assert "compute_loss" not in model.__dict__
    assert "apply" not in model.optimizer.__dict__
    exploding.calls = -1000
    assert "gradient_norm" not in fit(model, bad=False, epochs=1)
    assert "gradient_norm" in fit(model, gr.GradientMonitor(), gr.GradientGuard(), bad=False, epochs=1)


@pytest.mark.parametrize("where", ["another callback", "the data"])
def test_an_interruption_elsewhere_detaches_and_leaves_the_record(where):
    model, monitor, guarding = seeded(tanh_net), gr.GradientMonitor(), gr.GradientGuard()
    x, y = digits(4 * BATCH)

    def batches():
        for start in range(0, 2 * BATCH, BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, tf.errors.UnknownError)):
        if where == "the data":
            model.fit(batches(), steps_per_epoch=4, verbose=0, shuffle=False, callbacks=[monitor, guarding])
        else:
            fit(model, monitor, guarding, Interrupt(KeyboardInterrupt(), epoch=0), bad=False)
    assert len(monitor.trace) >= 1
    assert np.isfinite(monitor.trace.gradient_norm).all()
    assert "gradient_norm" not in fit(model, bad=False, epochs=1)


def test_a_fit_whose_end_is_noticed_while_another_function_is_traced_detaches():
    model, monitor = seeded(tanh_net), gr.GradientMonitor()
    callbacks = keras.callbacks.CallbackList([monitor], model=model)
    callbacks.on_train_begin()
    attachment = monitor._session
    installed = model.train_function
    x, y = digits(BATCH)
    installed(iter([(x, y)]))

    @tf.function(autograph=False)
    def traced():
        attachment._finish_installed(installed)
        return tf.constant(1)

    traced()
    assert not attachment.active
    assert [event.kind for event in monitor.trace.events] == ["interrupted"]
    assert len(monitor.trace) == 1


@pytest.mark.slow
@pytest.mark.parametrize("order", [pytest.param("first", marks=pytest.mark.nightly), "last"])
def test_a_killed_run_goes_on_to_the_very_weights_of_one_that_was_not(order, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_DETERMINISTIC_OPS": "1"}

    def run(name, backup, *place):
        command = [sys.executable, str(SCRIPT), str(tmp_path / f"{name}.npz"), str(tmp_path / backup), order]
        return subprocess.run(
            [*command, *map(str, place)], env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    assert run("killed", "backup", 2, 7).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.npz").exists()
    for name, backup in (("resumed", "backup"), ("whole", "other")):
        done = run(name, backup)
        assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "resumed.npz") as resumed:
        assert set(whole.files) == set(resumed.files)
        assert {"guard_outliers_0/values", "guard_clipping_0/0", "guard_skipped_steps"} <= set(whole.files)
        assert {"guard_rate_cap_0/0", "weight_0"} <= set(whole.files)
        assert (len(whole["events"]), len(resumed["events"])) == (5, 3)  # one in each epoch
        for name in set(whole.files) - {"events"}:
            np.testing.assert_array_equal(resumed[name], whole[name], err_msg=name)


METHODS = [
    gr.clipping.by_global_norm(0.5),
    gr.clipping.by_norm(0.1),
    gr.clipping.by_value(0.01),
    gr.clipping.adaptive(0.02),
    gr.clipping.by_percentile(50.0, window=16),
    gr.clipping.by_z_score(2.0),
    gr.clipping.adaptive_by_tensor(),
]


def test_every_method_has_a_row():
    assert {type(method) for method in METHODS} == set(gr.clipping.METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_recipe_model_survives_a_file_with_any_clipping(method, tmp_path):
    inputs = keras.Input((64,))
    outputs = layers.Dense(10)(layers.Dense(8, activation="tanh")(inputs))
    model = seeded(lambda: gr.RecipeModel(inputs, outputs, clipping=method, skip_nonfinite=True))
    fit(model, bad=False, epochs=1)
    model.save(tmp_path / "model.keras")
    read = keras.saving.load_model(tmp_path / "model.keras")
    assert (type(read), read.clipping, read.skip_nonfinite) == (gr.RecipeModel, method, True)
    mine, theirs = fit(model, bad=False, epochs=1), fit(read, bad=False, epochs=1)
    assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
    for one, other in zip(model.get_weights(), read.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
