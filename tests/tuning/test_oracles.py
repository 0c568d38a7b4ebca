"""The four strategies with failures, without training anything: what they propose, how they score, when they end."""

from __future__ import annotations

import math

import keras_tuner
import numpy as np
import pytest

from gradrecipes.core.analysis.search_trial import Failure
from gradrecipes.tuning import oracles
from gradrecipes.tuning.keras_tuner_private import TrialStatus

STRATEGIES = {
    "random": (oracles.RandomSearchOracle, {"max_trials": 30}),
    "bayesian": (oracles.BayesianOptimizationOracle, {"max_trials": 24, "num_initial_points": 8}),
    "hyperband": (oracles.HyperbandOracle, {"max_epochs": 9}),
    "grid": (oracles.GridSearchOracle, {"max_trials": 30}),
}


def space():
    hp = keras_tuner.HyperParameters()
    hp.Float("rate", 1e-4, 1e2, sampling="log")
    hp.Choice("kind", ["a", "b"])
    return hp


def diverges(values):
    return math.log10(values["rate"]) > -1.5 if values["kind"] == "a" else math.log10(values["rate"]) > -1.0


def outcome(values, direction="min"):
    """Return metrics: a bowl about a rate of 0.02, and 60% of the space lost, the sooner the higher the rate."""
    exponent = math.log10(values["rate"])
    if diverges(values):
        step = max(1, int(100 / 10 ** (exponent + 1.5)))
        return oracles.failure_metrics(Failure("nonfinite_loss", step, 100), "score", maximize=direction == "max")
    score = 0.1 + (exponent + 1.7) ** 2
    return {"score": -score if direction == "max" else score}


def run(oracle, metrics_of, most=200):
    proposals = []
    for _ in range(most):
        trial = oracle.create_trial("tuner0")
        if trial.status == TrialStatus.STOPPED:
            return proposals
        assert trial.status == TrialStatus.RUNNING
        proposals.append(dict(trial.hyperparameters.values))
        oracle.update_trial(trial.trial_id, metrics_of(trial.hyperparameters.values))
        trial.status = TrialStatus.COMPLETED
        oracle.end_trial(trial)
    raise AssertionError("the search does not end")


def made(strategy, tmp_path, *, direction="min", **settings):
    kind, arguments = STRATEGIES[strategy]
    objective = keras_tuner.Objective("score", direction)
    oracle = kind(objective, **{"hyperparameters": space(), "seed": 3, **arguments, **settings})
    oracle._set_project_dir(str(tmp_path), "search")
    oracle.verbose = 0
    return oracle


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_ends_repeats_nothing_and_orders_failures_below_every_success(strategy, direction, tmp_path):
    oracle = made(strategy, tmp_path, direction=direction)
    proposals = run(oracle, lambda values: outcome(values, direction))
    own = [tuple(sorted((k, v) for k, v in one.items() if k not in ("tuner/bracket",))) for one in proposals]
    assert len(set(own)) == len(own)
    trials = list(oracle.trials.values())
    assert all(trial.status == TrialStatus.COMPLETED and math.isfinite(trial.score) for trial in trials)
    sign = -1 if direction == "max" else 1
    failed = sorted(
        (one for one in trials if oracles.failure_of(one)),
        key=lambda one: one.metrics.get_last_value("failure_severity"),
    )
    worst = max(sign * one.score for one in trials if not oracles.failure_of(one))
    penalties = [sign * one.score for one in failed]
    assert len(failed) > 3 and min(penalties) > worst and penalties == sorted(penalties)
    best = oracle.get_best_trials(len(trials))
    assert not oracles.failure_of(best[0]) and oracles.failure_of(best[-1])


def test_the_bayesian_strategy_learns_to_stay_away_and_finds_the_optimum_beside_the_cliff(tmp_path):
    lost, best = [], []
    for seed in range(1, 4):
        oracle = made("bayesian", tmp_path / str(seed), seed=seed, max_trials=20, num_initial_points=None)
        proposals = run(oracle, outcome)
        lost += [diverges(values) for values in proposals[4:]]  # the first four fill the space
        best.append(min(outcome(values)["score"] for values in proposals if not diverges(values)))
    assert np.mean(lost) < 0.45  # of the space it is 60%, and the optimum lies beside the edge
    assert max(best) < 0.101  # the optimum is 0.1, a fifth of a decade from the edge


def test_the_bayesian_strategy_gets_out_of_a_space_nearly_all_of_which_diverges(tmp_path):
    def nearly_all(values):
        exponent = math.log10(values["rate"])
        if exponent > -3.4:  # nine tenths
            step = max(1, int(100 / 10 ** (exponent + 3.4)))
            return oracles.failure_metrics(Failure("nonfinite_loss", step, 100), "score", maximize=False)
        return {"score": 0.1 + abs(exponent + 3.6)}

    successes = []
    for seed in range(1, 4):
        oracle = made("bayesian", tmp_path / str(seed), seed=seed, max_trials=12, num_initial_points=None)
        successes.append(sum("failure_cause" not in nearly_all(values) for values in run(oracle, nearly_all)))
    assert min(successes) >= 4  # drawn at random it would be one of the twelve


@pytest.mark.nightly
def test_plain_keras_tuner_is_drawn_to_an_infinite_score(tmp_path):
    oracle = keras_tuner.oracles.BayesianOptimizationOracle(
        keras_tuner.Objective("score", "min"), max_trials=16, num_initial_points=8, hyperparameters=space(), seed=1
    )
    oracle._set_project_dir(str(tmp_path), "search")
    oracle.verbose = 0
    proposals = run(oracle, lambda values: {"score": math.inf} if diverges(values) else outcome(values))
    assert np.mean([diverges(values) for values in proposals[8:]]) > 0.6


def test_hyperband_promotes_in_spite_of_failures(tmp_path):
    oracle = made("hyperband", tmp_path)
    proposals = run(oracle, outcome)
    promoted = [one for one in proposals if one.get("tuner/trial_id")]
    assert len(proposals) == 23 and len(promoted) == 6
    assert not any(diverges(one) for one in promoted if one["tuner/bracket"] == 2)


def test_one_and_the_same_error_in_all_trials_halts_the_search(tmp_path):
    def broken(values):
        return oracles.failure_metrics(Failure("error", message="ValueError: no"), "score", maximize=False)

    oracle = made("random", tmp_path)
    assert len(run(oracle, broken)) == oracles.SAME_ERRORS
    assert "one and the same error" in oracle.halted

    def differently_broken(values):
        failure = Failure("error", message=f"ValueError: {values['rate']}")
        return oracles.failure_metrics(failure, "score", maximize=False)

    oracle = made("random", tmp_path / "other")
    assert len(run(oracle, differently_broken)) == 30 and oracle.halted is None


def test_a_silent_worker_loses_its_trial_to_another(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(oracles.time, "monotonic", lambda: now[0])
    oracle = made("random", tmp_path, max_trials=2)
    oracle.serving = True
    first = oracle.create_trial("one")
    second = oracle.create_trial("two")
    assert oracle.create_trial("three").status == TrialStatus.IDLE  # it may be needed yet
    now[0] = 50.0
    oracle.update_trial(second.trial_id, {oracles.HEARTBEAT + "two": 1.0})
    oracle.create_trial("three")
    now[0] = 70.0
    assert oracle.release_lost(60.0) == ["one"]
    assert oracle.lost_workers == ["one"]
    taken = oracle.create_trial("three")
    assert taken.trial_id == first.trial_id and taken.status == TrialStatus.RUNNING
    assert taken.hyperparameters.values == first.hyperparameters.values
    for trial, score in ((taken, 0.5), (second, 0.7), (first, 9.0)):  # the one that was given up comes back, too late
        oracle.update_trial(trial.trial_id, {"score": score})
        trial.status = TrialStatus.COMPLETED
        oracle.end_trial(trial)
    assert [oracle.trials[one.trial_id].score for one in (first, second)] == [0.5, 0.7]
    assert len(oracle.end_order) == 2 and not oracle.ongoing_trials
    assert oracle.create_trial("two").status == TrialStatus.STOPPED


def test_a_trial_that_takes_its_workers_with_it_is_not_tried_for_ever(tmp_path):
    oracle = made("random", tmp_path, max_trials=1)
    first = oracle.create_trial("one")
    again = oracle.create_trial("one")  # started anew under its old name
    assert again.trial_id == first.trial_id
    assert oracle.create_trial("one").status == TrialStatus.STOPPED
    assert oracles.failure_of(oracle.trials[first.trial_id]) == "error"


@pytest.mark.parametrize("strategy", ["random", "grid"])
def test_a_search_is_taken_up_where_it_was_left(strategy, tmp_path):
    oracle = made(strategy, tmp_path, max_trials=6)
    before = []
    for _ in range(3):
        trial = oracle.create_trial("tuner0")
        before.append(dict(trial.hyperparameters.values))
        oracle.update_trial(trial.trial_id, outcome(trial.hyperparameters.values))
        trial.status = TrialStatus.COMPLETED
        oracle.end_trial(trial)
    running = dict(oracle.create_trial("tuner0").hyperparameters.values)
    oracle.save()
    later = made(strategy, tmp_path, max_trials=6)
    later.reload()
    after = run(later, outcome)
    assert after[0] == running
    assert len(after) == 3 and not any(one in before for one in after)
