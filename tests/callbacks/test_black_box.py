"""The black box keeps the very batch and weights of the first bad step, in every mode, and names the sample."""

from __future__ import annotations

import copy
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.core.trace import Trace
from tests.training.nets import compiled, digits, layers, two_dense

BATCH, BAD = 32, 70  # the seventh sample of the third batch
MODES = ({"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 4})


def fit(model, *callbacks, sample=BAD, epochs=1, value=np.nan, **how):
    x, y = digits(256)
    x[sample, 5] = value
    model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **how)
    return x, y


@pytest.mark.parametrize("how", [{}, *(pytest.param(how, marks=pytest.mark.slow) for how in MODES)], ids=str)
def test_the_batch_is_kept_and_the_sample_named_in_every_mode(how):
    model, box = compiled(two_dense(), **how), gr.BlackBox()
    x, y = fit(model, gr.GradientGuard(), box)
    (recording,) = box.recordings
    assert (recording.step, recording.epoch, recording.batch) == (2, 0, 2)
    np.testing.assert_array_equal(recording.data[0], x[64:96])
    np.testing.assert_array_equal(recording.data[1], y[64:96])
    assert recording.autopsy.first.kind == "input"
    assert recording.autopsy.first.samples == (BAD - 64,)
    assert [event.kind for event in box.trace.events if event.kind == "black_box"] == ["black_box"]
    assert recording.readings.steps["step"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("together", [False, True], ids=["alone", "with a guard"])
@pytest.mark.parametrize("steps", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_weights_are_those_before_the_step(steps, together):
    keras.utils.set_random_seed(0)
    model, box = compiled(two_dense(), steps_per_execution=steps), gr.BlackBox()
    x, y = fit(model, *([gr.GradientGuard()] if together else []), box)
    keras.utils.set_random_seed(0)
    twin = compiled(two_dense())
    twin.fit(x[:64], y[:64], batch_size=BATCH, shuffle=False, verbose=0)
    for kept, expected in zip(box.recordings[0].weights, twin.get_weights(), strict=True):
        np.testing.assert_allclose(kept, expected, rtol=1e-6, atol=1e-7)


def test_alone_it_stops_the_training():
    alone, box = compiled(two_dense()), gr.BlackBox()
    fit(alone, box, epochs=3)
    assert alone.stop_training
    assert len(box.trace) == 3


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 3])
def test_within_an_execution_it_stops_at_once_and_no_batch_is_lost_beside_a_guard(steps):
    alone, box, guard = compiled(two_dense(), steps_per_execution=steps), gr.BlackBox(), gr.GradientGuard()
    fit(alone, box, epochs=3)
    assert len(box.trace) == 3
    guarded = compiled(two_dense(), steps_per_execution=steps)
    fit(guarded, guard, gr.BlackBox(), epochs=3)
    assert len(guard.trace) == 24
    np.testing.assert_array_equal(guard.trace.steps["batch"], np.tile(np.arange(8), 3))


def test_beside_a_guard_it_does_not_stop_the_training():
    guarded = compiled(two_dense())
    guard = gr.GradientGuard()
    fit(guarded, guard, gr.BlackBox(), epochs=3)
    assert not guarded.stop_training
    assert len(guard.trace) == 24


def test_a_step_that_is_only_absurd_is_recorded_and_the_training_goes_on():
    model, box = compiled(two_dense()), gr.BlackBox()
    x, y = digits(256)
    x[255] *= 1e9
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=[box])
    assert box.recordings[0].reason in ("loss_outlier", "gradient_outlier")
    assert box.recordings[0].autopsy.first.samples == (15,)
    assert not model.stop_training


@pytest.mark.slow
def test_a_full_box_keeps_no_more():
    box = gr.BlackBox(recordings=2)
    fit(compiled(two_dense()), gr.GradientGuard(), box, epochs=4)
    assert [recording.epoch for recording in box.recordings] == [0, 1]


def test_a_recording_is_written_whole(tmp_path):
    box = gr.BlackBox(directory=tmp_path)
    x, _ = fit(compiled(two_dense()), box)
    folder = tmp_path / "step_000002"
    with np.load(folder / "arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["batch/0"], x[64:96])
        assert sum(name.startswith("weights/") for name in arrays) == 4
    assert len(Trace.load(folder / "readings.trace")) == 3
    assert json.loads((folder / "autopsy.json").read_text())["reason"].startswith("nonfinite")
    assert "sample 6" in (folder / "autopsy.txt").read_text()


def test_a_loss_that_makes_nan_is_told_from_data_that_hold_it():
    def log_of_share(y_true, y_pred):
        digit = tf.reshape(y_true, [-1])
        share = tf.reduce_sum(tf.nn.softmax(y_pred) * tf.one_hot(tf.cast(digit, tf.int32), 10), axis=-1)
        return -tf.math.log(share * tf.cast(digit < 9, tf.float32))  # the log of 0 where the digit is a 9

    x, y = digits(256)
    model, box = two_dense(), gr.BlackBox()
    model.compile("sgd", log_of_share)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[box])
    first = box.recordings[0].autopsy.first
    assert first.kind == "loss"
    assert first.samples == tuple(np.flatnonzero(y[:32] == 9))


@pytest.mark.slow
def test_a_healthy_training_is_not_touched():
    trained = []
    for callbacks in ([], [gr.BlackBox()]):
        keras.utils.set_random_seed(0)
        model = compiled(two_dense())
        x, y = digits(256)
        model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=callbacks)
        trained.append(model.get_weights())
    assert callbacks[0].recordings == []
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_it_is_copied_as_tuners_copy_callbacks():
    box = gr.BlackBox(recordings=2)
    fit(compiled(two_dense()), box)
    twin = copy.deepcopy(box)
    fit(compiled(two_dense()), twin)
    assert len(twin.recordings) == 2
    assert len(box.recordings) == 1


def test_a_wrong_number_of_recordings_is_refused():
    with pytest.raises(ValueError, match=r"Received: recordings=0\. Each keeps"):
        gr.BlackBox(recordings=0)


@pytest.mark.slow
def test_layers_after_the_first_offender_are_not_blamed():
    inputs = keras.Input((64,))
    broken = layers.Lambda(lambda t: tf.math.log(t - 2.0), name="broken")(inputs)  # of negative numbers
    model = compiled(keras.Model(inputs, layers.Dense(10)(broken)))
    box = gr.BlackBox()
    x, y = digits(64)
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[box])
    assert box.recordings[0].autopsy.first.layer == "broken"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sparse", "ragged"])
def test_a_sparse_or_ragged_batch_is_kept_and_the_sample_named(kind, tmp_path):
    x, y = digits(96)
    y = y.astype("float32")
    y[BAD] = np.nan
    if kind == "sparse":
        rows, first = tf.sparse.from_dense(x), keras.Input((64,), sparse=True)
        model = keras.Sequential([first, layers.Dense(1)])
    else:
        rows = tf.RaggedTensor.from_row_lengths(tf.reshape(x, [-1]), [64] * 96)
        model = Summed()
    data = tf.data.Dataset.from_tensor_slices((rows, y)).batch(BATCH)
    model.compile("sgd", "mse")
    box = gr.BlackBox(directory=tmp_path)
    model.fit(data, shuffle=False, verbose=0, callbacks=[gr.GradientGuard(), box])
    (recording,) = box.recordings
    assert recording.autopsy.first.kind == "target"
    assert recording.autopsy.first.samples == (BAD - 64,)
    assert np.flatnonzero(np.isnan(recording.autopsy.sample_losses)).tolist() == [BAD - 64]
    dense = tf.sparse.to_dense(recording.data[0]) if kind == "sparse" else recording.data[0].to_tensor()
    np.testing.assert_array_equal(dense, x[64:])
    assert (tmp_path / "step_000002" / "arrays.npz").exists()


class Summed(keras.Model):
    def __init__(self):
        super().__init__()
        self.out = layers.Dense(1)

    def call(self, x):
        return self.out(tf.reduce_sum(x, axis=1, keepdims=True))


def test_an_autopsy_that_fails_ends_no_fit(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of order")

    monkeypatch.setattr("gradrecipes.callbacks.black_box.autopsy", fail)
    model, box, guard = compiled(two_dense()), gr.BlackBox(), gr.GradientGuard()
    fit(model, guard, box)
    assert len(box.trace) == 8
    assert box.recordings[0].autopsy.notes == ("No autopsy: RuntimeError: out of order",)


def test_a_loss_of_each_sample_is_examined_too():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    model, box = compiled(two_dense(), loss=loss, metrics=None), gr.BlackBox()
    fit(model, gr.GradientGuard(), box)
    assert box.recordings[0].autopsy.complete
    assert box.recordings[0].autopsy.first.samples == (BAD - 64,)


def ruins_the_weights(model):
    class Ruin(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                weight = model.trainable_weights[-1]  # a ReLU may swallow a NaN before it
                weight.assign(weight * np.nan)

    return Ruin()


class FlakyLoss(keras.losses.SparseCategoricalCrossentropy):
    """Be NaN the third time, as a fault of the hardware may be, whatever batch and weights are."""

    calls = 0

    def call(self, y_true, y_pred):
        self.calls += tf.executing_eagerly()
        return super().call(y_true, y_pred) * (np.nan if self.calls == 3 else 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "together"), [(1, False), (4, True)])
def test_a_bad_step_is_run_again_to_tell_batch_weights_and_chance_apart(steps, together, tmp_path):
    origins = {}
    for name in ("batch", "weights", "chance"):
        model = compiled(two_dense(), steps_per_execution=steps)
        if name == "chance":
            model.compile("sgd", FlakyLoss(from_logits=True), run_eagerly=True, steps_per_execution=steps)
        box, guard = gr.BlackBox(directory=tmp_path / name), [gr.GradientGuard()] if together else []
        x, y = digits(256)
        if name == "batch":
            x[BAD, 5] = np.nan
        more = [ruins_the_weights(model)] if name == "weights" else []
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[*guard, box, *more])
        recording = box.recordings[0]
        origins[name] = recording.origin.value
        (event,) = (event for event in box.trace.events if event.kind == "black_box")
        assert event.details["origin"] == recording.origin
        assert event.details["origin_sentence"] in gr.diagnose(box.trace).full().replace("\n      ", " ")
        assert recording.origin_sentence in str(recording)
        assert recording.origin_sentence in next((tmp_path / name).rglob("autopsy.txt")).read_text()
        assert len(box.trace) == (8 if together else recording.step + 1)
    assert origins == {"batch": "this_batch", "weights": "these_weights", "chance": "transient"}


@pytest.mark.slow
@pytest.mark.parametrize("feed", ["last", "generator", "for good"])
def test_the_last_good_batch_tells_where_the_next_one_cannot(feed):
    x, y = digits(256)
    bad = 255 if feed == "last" else slice(64, None) if feed == "for good" else BAD
    x[bad, 5] = np.nan

    def batches():
        for start in range(0, 256, BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]

    model, box = compiled(two_dense()), gr.BlackBox()
    how = {"x": batches(), "steps_per_epoch": 8} if feed == "generator" else {"x": x, "y": y, "batch_size": BATCH}
    model.fit(**how, shuffle=False, verbose=0, callbacks=[gr.GradientGuard(), box])
    assert box.recordings[0].origin == "this_batch"
    assert [run.batch for run in box.recordings[0].reruns] == {
        "last": ["same", "previous"],
        "generator": ["same", "next"],
        "for good": ["same", "next", "previous"],
    }[feed]
    assert len(box.trace) == 8  # what was taken to look ahead has run in its turn


def test_running_a_step_again_changes_nothing():
    trained = []
    for callbacks in ([], [gr.BlackBox()]):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((64,)), layers.Dropout(0.5), layers.BatchNormalization()])
        model.add(layers.Dense(10))
        fit(compiled(model), gr.GradientGuard(), *callbacks)
        trained.append([np.array(one) for one in (*model.variables, *model.optimizer.variables)])
    for one, other in zip(*trained, strict=True):
        np.testing.assert_array_equal(one, other)
