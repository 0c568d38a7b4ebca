"""Readings of each layer in the logs, and in the trackers that read them."""

from __future__ import annotations

import copy
import csv
import json

import keras
import numpy as np
import pytest

import gradrecipes as gr
from tests.training.nets import digits, layers, seeded

BATCH = 32
READINGS = ("layer_gradient_norm", "weight_norm", "update_ratio")


def net() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(16, activation="relu", name="dense_a"),
            layers.Dropout(0.1),
            layers.Dense(8, activation="relu", name="dense_b"),
            layers.Dense(10, name="out"),
        ]
    )


class Kept(keras.callbacks.Callback):
    """Keep the logs of batches and epochs."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(dict(logs))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


def fit(*callbacks, epochs=2, samples=6 * BATCH, **how):
    x, y = digits(samples)
    model = seeded(net)
    how = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **how}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **how).history


def keys(*names):
    return {f"{reading}/{name}" for reading in READINGS for name in names}


def test_each_layer_with_gradients_is_in_the_logs_of_an_epoch():
    monitor, kept = gr.GradientMonitor(log_layers="*", sample_every=6), Kept()
    history = fit(monitor, kept)
    trace = monitor.trace
    assert {key for key in history if "/" in key} == keys("dense_a", "dense_b", "out")
    assert all("/" not in key for logs in kept.batches for key in logs)
    for epoch in range(2):
        rows = trace.steps["epoch"] == epoch
        for name in ("dense_a", "out"):
            column = trace.layers.index(name)
            mean = trace.layer_gradient_norm[rows, column].mean()
            np.testing.assert_allclose(history[f"layer_gradient_norm/{name}"][epoch], mean, rtol=1e-6)
            sample = np.flatnonzero(trace.samples["step"] < 6 * (epoch + 1))[-1]
            for reading in ("weight_norm", "update_ratio"):
                assert history[f"{reading}/{name}"][epoch] == trace.samples[reading][sample, column] > 0


def test_within_an_epoch_they_are_renewed_every_few_batches():
    monitor, kept = gr.GradientMonitor(log_layers=["out"], log_layers_every=3, sample_every=1), Kept()
    fit(monitor, kept, epochs=1, samples=7 * BATCH)
    norms = monitor.trace.layer_gradient_norm[:, monitor.trace.layers.index("out")]
    means = [norms[:1].mean()] * 3 + [norms[:4].mean()] * 3 + [norms[:7].mean()]
    assert keys("out") <= set(kept.batches[0])
    np.testing.assert_allclose([logs["layer_gradient_norm/out"] for logs in kept.batches], means, rtol=1e-6)
    assert len({logs["weight_norm/out"] for logs in kept.batches}) == 3
    np.testing.assert_allclose(kept.epochs[0]["layer_gradient_norm/out"], norms.mean(), rtol=1e-6)


@pytest.mark.parametrize(("pattern", "found"), [("dense_*", ("dense_a", "dense_b")), (["out", "nothing"], ("out",))])
def test_a_pattern_chooses_layers(pattern, found):
    history = fit(gr.GradientMonitor(log_layers=pattern, logs=False), epochs=1)
    assert {key for key in history if "/" in key} == keys(*found)
    assert "gradient_norm" not in history


@pytest.mark.slow
def test_a_step_left_out_does_not_count():
    x, y = digits(4 * BATCH)
    x[BATCH] = np.nan
    how = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    monitors = [gr.GradientMonitor(log_layers="dense_a") for _ in range(2)]
    guarded = seeded(net).fit(x, y, callbacks=[gr.GradientGuard(), monitors[0]], **how).history
    assert guarded["skipped_steps"] == [1]
    assert all(np.isfinite(guarded[key]).all() for key in keys("dense_a"))
    alone = seeded(net).fit(x, y, callbacks=[monitors[1]], **how).history
    assert np.isnan(alone["layer_gradient_norm/dense_a"]).all()


def test_a_monitor_of_two_fits_and_its_copy_go_on():
    monitor = gr.GradientMonitor(log_layers="out", log_layers_every=2)
    model, (x, y) = seeded(net), digits(4 * BATCH)
    first, second = (model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[monitor]).history for _ in range(2))
    norms = monitor.trace.layer_gradient_norm[:, monitor.trace.layers.index("out")]
    np.testing.assert_allclose(first["layer_gradient_norm/out"], norms[:4].mean(), rtol=1e-6)
    np.testing.assert_allclose(second["layer_gradient_norm/out"], norms[4:].mean(), rtol=1e-6)
    assert "layer_gradient_norm/out" in fit(copy.deepcopy(monitor), epochs=1)


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({"log_layers": 3}, TypeError, "`log_layers` must be a pattern of layer names.*Received: 3"),
        ({"log_layers": []}, TypeError, "`log_layers` must be a pattern of layer names"),
        ({"log_layers": "*", "log_layers_every": 0}, ValueError, "`log_layers_every` must be a whole number"),
        ({"log_layers_every": 5}, ValueError, "`log_layers_every` belongs to `log_layers`.*'\\*' stands for all"),
    ],
)
def test_wrong_arguments_are_refused(wrong, kind, said):
    with pytest.raises(kind, match=said):
        gr.GradientMonitor(**wrong)


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"Received: log_layers='conv_\*'; the layers of .* are dense_a, dense_b, out"):
        fit(gr.GradientMonitor(log_layers="conv_*"))


def test_csv_logger(tmp_path):
    path = tmp_path / "log.csv"
    history = fit(gr.GradientMonitor(log_layers="dense_*"), keras.callbacks.CSVLogger(str(path)))
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["update_ratio/dense_b"]) for row in rows] == history["update_ratio/dense_b"]


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = keras.callbacks.TensorBoard(str(tmp_path), update_freq=2)
    history = fit(gr.GradientMonitor(log_layers="dense_*", log_layers_every=2), board)
    found = EventAccumulator(str(tmp_path / "train"), size_guidance={"tensors": 0}).Reload()
    tags = found.Tags()["tensors"]
    assert {f"epoch_{key}" for key in keys("dense_a", "dense_b")} <= set(tags)
    assert {f"batch_{key}" for key in keys("dense_a", "dense_b")} <= set(tags)
    assert len(found.Tensors("epoch_weight_norm/dense_a")) == len(history["weight_norm/dense_a"])


@pytest.mark.slow
def test_mlflow(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow 3 has put behind a switch
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        history = fit(gr.GradientMonitor(log_layers="dense_*"), mlflow.keras.MlflowCallback())
        mlflow.flush_async_logging()
    logged = mlflow.MlflowClient().get_metric_history(run.info.run_id, "layer_gradient_norm/dense_a")
    np.testing.assert_allclose([metric.value for metric in logged], history["layer_gradient_norm/dense_a"])


@pytest.mark.slow
def test_weights_and_biases(tmp_path, monkeypatch):
    import wandb
    from wandb.integration.keras import WandbMetricsLogger

    monkeypatch.chdir(tmp_path)
    with wandb.init(mode="offline", dir=str(tmp_path)) as run:
        fit(
            gr.GradientMonitor(log_layers="dense_*", log_layers_every=2),
            WandbMetricsLogger(log_freq=2),
        )
        summary = json.loads(json.dumps(dict(run.summary), default=str))
    assert {f"epoch/{key}" for key in keys("dense_a")} | {f"batch/{key}" for key in keys("dense_b")} <= set(summary)
