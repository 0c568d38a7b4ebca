"""An Optuna study in which trials diverge: what it is told, and what is left out of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import gradrecipes as gr

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.ERROR)
ROOT = Path(__file__).resolve().parents[2]
X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
PRUNED, COMPLETE = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.COMPLETE


def train(trial, rate, *callbacks, metric="val_loss", epochs=2, x=X):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
    pruning = gr.tuning.OptunaPruning(trial, metric)
    data = {"validation_data": (X, X[:, :1]), "batch_size": 8}
    return model.fit(x, X[:, :1], epochs=epochs, verbose=0, callbacks=[*callbacks, pruning], **data).history["val_loss"]


def test_each_epoch_of_a_healthy_trial_is_reported():
    study, histories = optuna.create_study(), []

    def objective(trial):
        histories.append(train(trial, 0.05))
        return histories[-1][-1]

    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert trial.state == COMPLETE and trial.user_attrs == {}
    assert trial.intermediate_values == dict(enumerate(histories[0]))


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_trial_that_diverges_is_pruned_with_the_reason_and_the_worst_value(guarded, direction):
    study = optuna.create_study(direction=direction)
    study.optimize(lambda trial: train(trial, 1e6, *([gr.GradientGuard()] * guarded))[-1], n_trials=1)
    (trial,) = study.trials
    assert trial.state == PRUNED
    assert trial.user_attrs["diverged"].startswith("diverged, because of ")
    assert trial.value == (np.inf if direction == "minimize" else -np.inf)


@pytest.mark.parametrize(
    ("bad_samples", "guarded", "state"), [(1, False, PRUNED), (1, True, COMPLETE), (40, True, PRUNED)]
)
def test_beside_a_guard_it_is_the_guard_that_decides(bad_samples, guarded, state):
    x = X.copy()
    x[24 : 24 + bad_samples] = np.nan
    study = optuna.create_study()
    study.optimize(lambda trial: train(trial, 0.05, *([gr.GradientGuard()] * guarded), x=x)[-1], n_trials=1)
    (trial,) = study.trials
    assert trial.state == state
    assert ("because of guard" in trial.user_attrs.get("diverged", "")) == (guarded and state == PRUNED)


def test_a_trial_that_the_pruner_ends_has_not_diverged():
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=1e-9))
    study.optimize(lambda trial: train(trial, 0.05)[-1], n_trials=1)
    (trial,) = study.trials
    assert trial.state == PRUNED and trial.user_attrs == {}
    assert list(trial.intermediate_values) == [0]


def test_a_metric_that_the_logs_lack_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'loss', 'val_loss'[.] Received: metric='val_accuracy'"):
        train(optuna.create_study().ask(), 0.05, metric="val_accuracy")


def test_the_best_settings_can_be_trained_again():
    assert len(train(optuna.trial.FixedTrial({}), 0.05)) == 2


@pytest.mark.slow
def test_processes_share_a_study_by_a_journal_file(tmp_path):
    page = (ROOT / "docs" / "how-to" / "tune-with-optuna.md").read_text(encoding="utf-8")
    script = tmp_path / "study.py"
    script.write_text(page.split("```python\n")[1].split("```")[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, script], cwd=tmp_path, env=environment) for _ in range(2)]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    )
    study = optuna.load_study(study_name="digits", storage=storage)
    states = [trial.state for trial in study.trials]
    assert len(states) >= 8 and set(states) <= {PRUNED, COMPLETE} and COMPLETE in states
    assert "diverged" not in study.best_trial.user_attrs
