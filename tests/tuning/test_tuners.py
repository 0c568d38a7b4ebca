"""Searches with real trainings: what diverges costs a few steps, and every trial tells what became of it."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from keras_tuner import HyperParameters, Objective

from gradrecipes.callbacks.gradient_guard import GradientGuard
from gradrecipes.callbacks.gradient_monitor import GradientMonitor
from gradrecipes.tuning import TUNERS, RandomSearch, RecipeHyperModel, SearchError, SearchResults

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(128, 4)).astype("float32")
Y = X.sum(1, keepdims=True)
DATA = {"validation_data": (X[:32], Y[:32]), "batch_size": 8}
STEPS = 16  # of an epoch


def fixed(*rates):
    hp = HyperParameters()
    hp.Choice("rate", list(rates))
    return hp


def build(hp):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(hp.Choice("rate", [0.01, 50.0])), "mse")
    return model


def search(tmp_path, kind="grid", hypermodel=build, hyperparameters=None, fit=None, **settings):
    settings = {"directory": str(tmp_path), "project_name": "search", "hyperparameters": hyperparameters, **settings}
    tuner = TUNERS[kind](hypermodel, **settings)
    return tuner, tuner.search(X, Y, **{**DATA, "epochs": 3, **(fit or {})})


def test_what_diverges_is_stopped_scored_and_explained(tmp_path):
    tuner, results = search(tmp_path)
    good, bad = sorted(results.trials, key=lambda one: one.values["rate"])
    assert (good.status, good.steps, len(good.curve)) == ("completed", 3 * STEPS, 3)
    assert bad.failed and bad.score is None and 0 < bad.steps <= 24
    assert bad.failure.cause in ("nonfinite_loss", "nonfinite_gradient", "gradient_overflow")
    assert results.best is good or results.best == good
    scores = [tuner.oracle.trials[one.trial_id].score for one in (good, bad)]
    assert scores[0] == pytest.approx(good.score) and np.isfinite(scores[1]) and scores[1] > scores[0]
    assert tuner.get_best_hyperparameters()[0].values["rate"] == 0.01

    assert SearchResults.from_directory(tmp_path / "search").to_dict() == results.to_dict()
    text = str(results)
    assert "2 trials, 1 failed" in text and "at step" in text
    results.save_json(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["best"]["values"] == {"rate": 0.01}
    results.write_hparams(tmp_path / "logs")
    assert len(list((tmp_path / "logs").rglob("events*"))) == 3


@pytest.mark.nightly
def test_hyperband_does_not_train_on_what_has_diverged(tmp_path):
    def mostly_lost(hp):
        model = build(hp)
        model.optimizer.learning_rate = 0.01 if hp.Int("number", 0, 10**6) % 4 == 0 else 50.0
        return model

    _, results = search(tmp_path, "hyperband", mostly_lost, max_epochs=4, factor=2, seed=1)
    assert len({json.dumps(one.values, sort_keys=True) for one in results.trials}) >= 6
    inherited = [one for one in results.failures if one.cause == "parent_failed"]
    assert all(one.steps == 0 for one in inherited)
    assert results.best is not None


def test_other_errors_are_recorded_and_end_nothing(tmp_path):
    def sometimes(hp):
        if hp.Choice("rate", [0.01, 0.02, 0.03]) == 0.02:
            raise ValueError("no such layer")
        return build(fixed(0.01))

    def build_by(hp):
        return build(fixed(0.01)) if not hp.values.get("armed") else sometimes(hp)

    hp = fixed(0.01, 0.02, 0.03)
    hp.Fixed("armed", True)
    # The space is declared by the first build, at the default of each setting, which does not fail.
    _, results = search(tmp_path, "grid", build_by, hp)
    assert [one.failure.message for one in results.failures] == ["ValueError: no such layer"]
    assert len(results.successes) == 2


def test_one_error_in_all_trials_ends_the_search_in_words(tmp_path):
    def late(hp):
        model = build(hp)
        model.compile(model.optimizer, lambda y, output: keras.ops.matmul(y, output))  # shapes that do not fit
        return model

    with pytest.raises(SearchError, match="one and the same error"):
        search(tmp_path, "random", late, fixed(0.01, 0.02, 0.03, 0.04, 0.05), max_trials=5, seed=0)


@pytest.mark.parametrize("raise_error", [False, True])
def test_a_guard_of_the_user_decides_and_its_reason_is_kept(tmp_path, raise_error):
    bad = np.array(Y)
    bad[64:] = np.nan
    guard = {"max_consecutive_skips": 3, "snapshot_every": None, "raise_error": raise_error}
    hypermodel = RecipeHyperModel(build, callbacks=lambda hp: [GradientGuard(**guard)])
    tuner = RandomSearch(
        hypermodel, max_trials=1, directory=str(tmp_path), project_name="guarded", hyperparameters=fixed(0.01)
    )
    results = tuner.search(X, bad, shuffle=False, validation_data=(X[:32], Y[:32]), batch_size=8, epochs=2)
    assert results.trials[0].failure.cause == "guard_gave_up"
    assert results.trials[0].failure.message == "too_many_skips"


def test_callbacks_survive_the_copies_of_a_search(tmp_path):
    monitor, guard = GradientMonitor(), GradientGuard()
    _, results = search(
        tmp_path,
        "random",
        build,
        fixed(0.01),
        max_trials=1,
        executions_per_trial=2,
        fit={"callbacks": [monitor, guard]},
    )
    assert results.trials[0].status == "completed" and results.trials[0].steps == 2 * 3 * STEPS
    assert len(monitor.trace) == 0  # copies ran


@pytest.mark.slow
def test_hopeless_trials_are_stopped_unless_they_are_not_to_be(tmp_path):
    rates = fixed(0.05, 0.04, 0.03, 1e-5, 2e-5)
    _, results = search(tmp_path, "grid", build, rates)
    stopped = [one for one in results.trials if one.status == "hopeless"]
    assert [one.values["rate"] for one in stopped] == [1e-5, 2e-5]
    assert all(one.score is not None and one.steps == STEPS for one in stopped)
    _, results = search(tmp_path / "all", "grid", build, rates, stop_hopeless=False)
    assert all(one.steps == 3 * STEPS for one in results.trials)


def test_an_objective_that_is_never_finite_is_a_failure(tmp_path):
    _, results = search(tmp_path, "grid", build, fixed(0.01), fit={"validation_data": (X[:32], Y[:32] * np.nan)})
    assert results.failures[0].cause == "nonfinite_objective" and results.best is None


def test_more_can_be_better(tmp_path):
    _, results = search(tmp_path, objective=Objective("val_loss", "max"))
    assert results.maximize and results.best.values["rate"] == 0.01


def test_an_unknown_setting_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(TypeError, match=r"no setting 'trials'.*max_trials"):
        RandomSearch(build, trials=3, directory=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"search\.json"):
        SearchResults.from_directory(tmp_path / "nothing")
    _, results = search(tmp_path)
    with pytest.raises(ValueError, match="these settings: rate"):
        results.stability_map("rate", "batch_size")


def test_where_all_trials_failed_the_best_of_them_is_an_error_that_names_them(tmp_path, capsys):
    tuner, results = search(tmp_path, hyperparameters=fixed(50.0, 1e20))
    assert len(results.failures) == 2
    for trial in tuner.oracle.get_best_trials(2):
        assert (trial.status, trial.score) == ("FAILED", None)
        assert trial.message.startswith("Failed: ")
        assert tuner.oracle.get_trial(trial.trial_id).status == "FAILED"
    tuner.results_summary()
    said = capsys.readouterr().out
    assert said.count("Failed: ") == 2 and "Score" not in said
    for ask in (tuner.get_best_models, tuner.get_best_hyperparameters):
        with pytest.raises(SearchError, match=r"none worked.*2 trials. trial .*Failed: .*step"):
            ask()


def test_the_best_are_only_those_that_worked(tmp_path):
    tuner, _ = search(tmp_path)
    assert len(tuner.get_best_models(2)) == 1
    assert [one.values["rate"] for one in tuner.get_best_hyperparameters(2)] == [0.01]


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.SGD, pytest.param(keras.optimizers.Adam, marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("epochs", [pytest.param(1, marks=pytest.mark.nightly), 4])
def test_a_trial_whose_weights_a_guard_put_back_does_not_win(tmp_path, optimizer, epochs):
    def build_poorly(hp):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(optimizer(hp.Choice("rate", [1e20, 1e-6])), "mse")  # the second learns next to nothing
        return model

    guard = GradientGuard(max_consecutive_skips=3, snapshot_every=10)
    fit = {"callbacks": [guard], "epochs": epochs}
    tuner, results = search(tmp_path, hypermodel=build_poorly, hyperparameters=fixed(1e20, 1e-6), fit=fit)
    lost = next(one for one in results.trials if one.values["rate"] == 1e20)
    assert lost.failed
    assert lost.failure.cause in ("guard_rolled_back", "guard_skipped", "guard_gave_up", "diverging_loss")
    assert results.best.values == {"rate": 1e-6}
    assert tuner.get_best_hyperparameters()[0].values["rate"] == 1e-6
