"""What remains of a monitored fit: its record, its logs, and nothing on the model."""

from __future__ import annotations

import copy
import csv
import pickle
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import digits, seeded, two_dense, with_state


def fit(model, *callbacks, samples=96, epochs=1, **how):
    x, y = digits(samples)
    return model.fit(x, y, batch_size=32, epochs=epochs, verbose=0, callbacks=list(callbacks), **how).history


class Broken(keras.callbacks.Callback):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_after_an_error_in_a_callback_the_record_is_readable_and_the_next_fit_is_plain(error):
    model, monitor = seeded(two_dense), gr.GradientMonitor()
    with pytest.raises(type(error)):
        fit(model, monitor, Broken(error))
    assert len(monitor.trace) == 2
    assert "gradient_norm" not in fit(model)
    assert len(monitor.trace) == 2
    assert "gradient_norm" in fit(model, gr.GradientMonitor())
    assert "gradient_norm" not in fit(model)


def test_after_an_error_in_the_data_the_record_is_readable_and_the_next_fit_is_plain():
    x, y = digits(96)

    def batches():
        yield x[:32], y[:32]
        yield x[32:64], y[32:64]
        raise ValueError("the disk is gone")

    model, monitor = seeded(two_dense), gr.GradientMonitor()
    with pytest.raises(Exception, match="the disk is gone"):
        model.fit(batches(), steps_per_epoch=3, shuffle=False, verbose=0, callbacks=[monitor])
    assert len(monitor.trace) >= 1
    assert "gradient_norm" not in fit(model)


@pytest.mark.slow
def test_a_model_saved_in_the_middle_opens_where_this_package_is_not(tmp_path):
    path = tmp_path / "mid.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(str(path), save_freq=2)
    fit(seeded(with_state), gr.GradientMonitor(), gr.GradientGuard(), checkpoint)
    code = f"""
        import sys
        sys.modules["gradrecipes"] = None
        import keras, numpy as np
        model = keras.saving.load_model({str(path)!r})
        x = np.zeros((8, 64), "float32")
        model.fit(x, np.zeros(8), verbose=0)
        assert not [name for name in sys.modules if name.startswith("gradrecipes.")]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_keys_reach_history_csv_and_tensorboard_and_have_no_false_twin(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    x, y = digits(32)
    callbacks = [
        gr.GradientMonitor(histogram_dir=str(tmp_path / "histograms")),
        gr.GradientGuard(clipping=gr.clipping.by_global_norm(1.0)),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
        keras.callbacks.TensorBoard(str(tmp_path / "board"), write_graph=False),
    ]
    model = seeded(two_dense)
    history = fit(model, *callbacks, epochs=2, validation_data=(x, y))
    keys = {"gradient_norm", "gradient_norm_max", "skipped_steps", "clipped_steps"}
    assert keys <= set(history)
    assert not {f"val_{key}" for key in keys} & set(history)
    with open(tmp_path / "log.csv", newline="") as file:
        assert keys <= set(next(csv.reader(file)))

    def events(path, **size):
        accumulator = EventAccumulator(str(path), size_guidance=size)
        accumulator.Reload()
        return accumulator

    assert "epoch_gradient_norm" in events(tmp_path / "board" / "train").Tags()["tensors"]

    trace = callbacks[0].trace
    written = events(tmp_path / "histograms", tensors=0)
    tags = written.Tags()["tensors"]
    assert tags == [f"gradients_log2/{layer}" for layer in trace.layers]
    for column, tag in enumerate(tags):
        tensors = written.Tensors(tag)
        assert [event.step for event in tensors] == trace.samples["step"].tolist()
        for row, event in enumerate(tensors):
            counts = tf.make_ndarray(event.tensor_proto)[:, 2]
            np.testing.assert_array_equal(counts, trace.samples["histogram"][row, column])


def test_before_the_first_fit_the_record_is_empty():
    assert len(gr.GradientMonitor().trace) == 0
    assert gr.GradientGuard().events == []


WAYS = {"pickle": lambda one: pickle.loads(pickle.dumps(one)), "deepcopy": copy.deepcopy}  # joblib pickles
CALLBACKS = [gr.GradientGuard, gr.GradientMonitor, gr.BlackBox, gr.Doctor]


@pytest.mark.parametrize(("make", "way"), [*((make, "pickle") for make in CALLBACKS), (gr.GradientGuard, "deepcopy")])
def test_trace_and_events_survive_and_the_next_fit_begins_a_record(make, way):
    x, y = digits(96)
    x[40] = np.nan
    callback = WAYS[way](make())
    seeded(two_dense).fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=[callback])
    again = WAYS[way](callback)
    assert len(again.trace) == len(callback.trace) > 0
    np.testing.assert_array_equal(again.trace.gradient_norm, callback.trace.gradient_norm)
    assert [str(event) for event in again.trace.events] == [str(event) for event in callback.trace.events]
    if make is gr.GradientGuard:
        assert [event.kind for event in again.events] == ["skip"]
    seeded(two_dense, keras.optimizers.SGD(0.1)).fit(x[:32], y[:32], batch_size=32, verbose=0, callbacks=[again])
    assert len(again.trace) == 1
