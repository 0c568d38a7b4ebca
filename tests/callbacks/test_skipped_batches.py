"""The batches that a guard left out stand in a file, and only those that were bad themselves."""

from __future__ import annotations

import csv

import keras
import numpy as np
import pytest

import gradrecipes as gr
from tests.callbacks.test_guard_looks import Jump, data, net

BATCH = 32


def listed(path):
    with open(path, encoding="utf-8") as file:
        return [(int(row["epoch"]), int(row["batch"])) for row in csv.DictReader(file)]


def fit(path, x, y, *more, epochs=1, model=None, **how):
    guard = gr.GradientGuard(skipped_batches=path)
    how = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **how}
    (model or net()).fit(x, y, epochs=epochs, callbacks=[guard, *more], **how)
    return guard


def test_each_bad_batch_is_listed_once_and_a_later_run_goes_on_with_the_file(tmp_path):
    x, y = data()
    x[[40, 70, 639]] = np.nan  # the second, the third and the last batch
    path = tmp_path / "logs" / "skipped.csv"
    fit(path, x, y, epochs=2)
    bad = [1, 2, 19]
    assert listed(path) == [(epoch, batch) for epoch in range(2) for batch in bad]
    path.write_text(path.read_text() + "2,1")  # killed while it wrote
    fit(path, x, y)
    assert len(path.read_text().splitlines()) == 1 + 6 + 1 + 3
    kept = ~np.isin(np.arange(len(x)) // BATCH, bad)
    assert fit(path, x[kept], y[kept]).events == []


def test_batches_that_bad_weights_made_bad_are_not_listed(tmp_path):
    x, y = data()
    x[40] = np.nan
    guard = fit(tmp_path / "skipped.csv", x, y, Jump(10), epochs=2)
    assert {"rollback"} <= {event.kind for event in guard.events}
    assert sum(event.kind == "skip" for event in guard.events) > 2
    assert listed(tmp_path / "skipped.csv") == [(0, 1), (1, 1)]


def test_data_that_stay_bad_are_listed_though_no_good_step_follows(tmp_path):
    x, y = data()
    x[8 * BATCH :] = np.nan
    fit(tmp_path / "skipped.csv", x, y)
    assert listed(tmp_path / "skipped.csv") == [(0, batch) for batch in range(8, 20)]


def test_steps_for_which_a_loss_scale_was_too_high_are_not_listed(tmp_path):
    x, y = data()
    model = net()
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=2.0**127)
    model.compile(scaled, "mse")
    guard = fit(tmp_path / "skipped.csv", x, y, model=model)
    assert guard.events
    assert not (tmp_path / "skipped.csv").exists()


def test_a_path_that_cannot_be_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="which is a directory"):
        gr.GradientGuard(skipped_batches=tmp_path)
    with pytest.raises(TypeError, match=r"Received: skipped_batches=3"):
        gr.GradientGuard(skipped_batches=3)
