"""Searches that survive divergence: keras-tuner's four, with failures stopped early, scored and explained."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np

from gradrecipes.core.analysis.search_trial import Failure
from gradrecipes.training.recovery.policy import TrainingStoppedError
from gradrecipes.tuning import oracles, records
from gradrecipes.tuning.jobs import WorkerManners, serve
from gradrecipes.tuning.keras_tuner_private import (
    DefaultObjective,
    Trial,
    TrialStatus,
    has_chief_oracle,
    is_chief_oracle,
)
from gradrecipes.tuning.results import SearchResults
from gradrecipes.tuning.watch import TrialWatch

_LOG = logging.getLogger(__name__)
FAILURES_NAMED = 5  # in an error
LONGEST_MESSAGE = 2000  # characters of an error that are kept


class SearchError(RuntimeError):
    """Say that a search ended without a single trial that worked."""


class _TrialFailedError(Exception):
    def __init__(self, failure: Failure):
        super().__init__(failure.cause)
        self.failure = failure


class SurvivingTuner(WorkerManners):
    """Run the trials of a search so that those that diverge cost a few steps, and teach it something.

    A trial is watched step by step. One that diverges is stopped, its reason written to `outcome.json` in its folder,
    and it gets a finite score: worse than every success, and the worse the earlier and harder it failed. Any other
    error of a trial is written down and scored as the worst of all; only if every trial fails with the same one does
    the search stop. After 1, 2, 4, 8, ... epochs a trial is stopped if its best value is not among the best two in five
    that earlier trials had by then; one that Hyperband promoted is judged by all the epochs that its weights have seen.

    Args:
        hypermodel: A `keras_tuner.HyperModel`, such as `gr.tuning.RecipeHyperModel`, or a function of `hp` that
            returns a compiled model.
        objective: Name of what is optimized, or a `keras_tuner.Objective`.
        stop_hopeless: Whether trials that are not among the best two in five of the earlier ones are stopped. With a
            schedule that makes slow starters good in the end, leave it out.
        settings: All that keras-tuner's class of the same name takes: `max_trials`, `seed`, `directory`,
            `project_name`, `overwrite`, `executions_per_trial` and others.

    Attributes:
        on_outcome: Called with what came of each trial of this process, for showing progress; None at first.

    Raises:
        SearchError: In `search`: the first trials all failed with the same error.
        TypeError: An unknown setting.
    """

    oracle_class: type[keras_tuner.Oracle]

    def __init__(
        self, hypermodel: Any = None, objective: Any = "val_loss", *, stop_hopeless: bool = True, **settings: Any
    ):
        own, inherited = _settings_of(self.oracle_class), _settings_of(keras_tuner.Tuner)
        unknown = sorted(set(settings) - own - inherited)
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no setting {unknown[0]!r}. It has: {', '.join(sorted(own | inherited))}."
            )
        of_oracle = {name: settings.pop(name) for name in list(settings) if name in own}
        if has_chief_oracle() and not is_chief_oracle():
            settings["overwrite"] = False  # each worker would remove what the chief has just written
        self.stop_hopeless = stop_hopeless
        self.on_outcome: Callable[[records.Outcome], None] | None = None
        self._outcome = records.Outcome()
        self._curves: list[list[float]] = []
        keras_tuner.Tuner.__init__(self, self.oracle_class(objective, **of_oracle), hypermodel, **settings)

    # -- the search --------------------------------------------------------------------------------
    def search(self, *fit_args: Any, **fit_kwargs: Any) -> SearchResults:
        """Run the search: what is passed reaches `fit`, callbacks as a copy for each trial.

        With the environment variables of keras-tuner's distributed mode this process is the chief, who answers the
        workers until they are done, or one of the workers.

        Returns:
            The results so far.

        Raises:
            SearchError: The first trials all failed with the same error.
        """
        fit_kwargs.setdefault("verbose", 0)
        if not self._is_worker():
            self.oracle.verbose = fit_kwargs["verbose"]
            records.write_json(Path(self.project_dir) / records.SEARCH, self._description())
        if is_chief_oracle():
            self.save()
            serve(self.oracle)
        else:
            super().search(*fit_args, **fit_kwargs)
        if not self._is_worker() and self.oracle.halted is not None:
            raise SearchError(self._why_halted())
        return self.results()

    def get_best_models(self, num_models: int = 1) -> list[keras.Model]:
        """Return the models of the best trials that did not fail.

        Raises:
            SearchError: There is no such trial.
        """
        return super().get_best_models(min(num_models, self._count_successes()))

    def get_best_hyperparameters(self, num_trials: int = 1) -> list[Any]:
        """Return the settings of the best trials that did not fail.

        Raises:
            SearchError: There is no such trial.
        """
        return super().get_best_hyperparameters(min(num_trials, self._count_successes()))

    def _count_successes(self) -> int:
        trials = self.oracle.get_best_trials(len(self.oracle.trials))
        count = sum(trial.status == TrialStatus.COMPLETED for trial in trials)
        if not count:
            messages = [f"trial {trial.trial_id}: {trial.message}" for trial in trials if trial.message]
            raise SearchError(
                "There is no best trial, since none worked. Expected at least one that did not fail. Received: "
                f"{len(trials)} trials. {'; '.join(messages[:FAILURES_NAMED])}. "
                "Search again with settings that train, such as lower learning rates, or with `clipping`."
            )
        return count

    def results(self) -> SearchResults:
        """Return what is known of all trials that have ended."""
        return SearchResults.from_directory(self.project_dir)

    def _description(self) -> dict[str, Any]:
        objective = self.oracle.objective
        return {"tuner": type(self).__name__, "objective": objective.name, "direction": objective.direction}

    def _why_halted(self) -> str:
        failures = [trial.failure.message for trial in self.results().trials if trial.failure is not None]
        last = failures[-1] if failures else ""
        return f"{self.oracle.halted} Mend it and search again. It is: {last}"

    # -- one trial ---------------------------------------------------------------------------------
    def run_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        """Train what the trial asks for, and return its metrics; those of a failure if it fails."""
        begun = time.monotonic()
        self._outcome = records.Outcome(worker=self.tuner_id, before=self._curve_before(trial))
        self._curves = records.read_curves(self.project_dir) if self.stop_hopeless else []
        failure = None
        try:
            self._require_sound_parent(trial)
            results = super().run_trial(trial, *args, **kwargs)
            results = [_finite_part(one, self.oracle.objective) for one in _as_list(results)]
        except _TrialFailedError as lost:
            failure = lost.failure
        except Exception as error:
            _LOG.warning("Trial %s failed with %s: %s", trial.trial_id, type(error).__name__, error)
            failure = Failure(
                "error", self._outcome.steps, message=f"{type(error).__name__}: {error}"[:LONGEST_MESSAGE]
            )
        if failure is not None:
            self._outcome.fail(failure)
            objective = self.oracle.objective
            results = oracles.failure_metrics(failure, objective.name, maximize=objective.direction == "max")
        self._outcome.seconds = time.monotonic() - begun
        records.write_outcome(self.get_trial_dir(trial.trial_id), self._outcome)
        if self.on_outcome is not None:
            self.on_outcome(self._outcome)
        return results

    def _build_and_fit_model(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        objective = self.oracle.objective
        maximize = objective.direction == "max"
        earlier = (lambda: self._curves) if self.stop_hopeless else None
        watch = TrialWatch(objective.name, maximize=maximize, earlier=earlier, before=self._outcome.before)
        try:
            return_value = super()._build_and_fit_model(
                trial, *args, **{**kwargs, "callbacks": [*kwargs.get("callbacks", []), watch]}
            )
        except TrainingStoppedError as stopped:
            watch.fail("guard_gave_up", stopped.reason)
        finally:
            self._outcome.steps += watch.steps
            self._outcome.values = list(watch.values)
            self._outcome.first_epoch = watch.first_epoch or 0
        if watch.failure is not None:
            raise _TrialFailedError(watch.failure)
        if watch.hopeless:
            self._outcome.status = records.HOPELESS
        return return_value

    def _curve_before(self, trial: Trial) -> list[float]:
        """Return the objective after each epoch that the weights of a promoted trial have seen."""
        parent = trial.hyperparameters.values.get("tuner/trial_id")
        outcome = None if parent is None else records.read_outcome(self.get_trial_dir(parent))
        return [] if outcome is None else [np.nan if value is None else value for value in outcome.curve]

    def _require_sound_parent(self, trial: Trial) -> None:
        """Refuse to train on what has diverged: Hyperband promotes the best, even if only failures are left."""
        parent = trial.hyperparameters.values.get("tuner/trial_id")
        if parent is not None and oracles.failure_of(self.oracle.get_trial(parent)) is not None:
            raise _TrialFailedError(Failure("parent_failed", message=f"trial {parent} failed in the round before"))


class RandomSearch(SurvivingTuner, keras_tuner.RandomSearch):
    """Draw settings at random, and survive those that diverge; see `gr.tuning.SurvivingTuner` for the arguments.

    Example:
        >>> hypermodel = gr.tuning.RecipeHyperModel(model, seed=0)
        >>> tuner = gr.tuning.RandomSearch(hypermodel, max_trials=1, seed=0, directory="out")
        >>> results = tuner.search(x, y, validation_split=0.25, epochs=1)
        >>> results.best.status
        'completed'
    """

    oracle_class = oracles.RandomSearchOracle


class GridSearch(SurvivingTuner, keras_tuner.GridSearch):
    """Try all combinations, and survive those that diverge; see `gr.tuning.SurvivingTuner` for the arguments."""

    oracle_class = oracles.GridSearchOracle


class BayesianOptimization(SurvivingTuner, keras_tuner.BayesianOptimization):
    """Propose settings by a Gaussian process that learns from divergence where not to look.

    For the arguments see `gr.tuning.SurvivingTuner`. Needs scikit-learn: `gradrecipes[tuning]`.
    """

    oracle_class = oracles.BayesianOptimizationOracle


class Hyperband(SurvivingTuner, keras_tuner.Hyperband):
    """Give many settings few epochs and the best of them more; what diverges is never promoted.

    For the arguments see `gr.tuning.SurvivingTuner`; the budget is `max_epochs`, `factor`, `hyperband_iterations`.

    References:
        Li et al. 2018, arXiv 1603.06560.
    """

    oracle_class = oracles.HyperbandOracle


TUNERS = {"random": RandomSearch, "bayesian": BayesianOptimization, "hyperband": Hyperband, "grid": GridSearch}


def _settings_of(kind: type) -> set[str]:
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("keras_tuner") and "__init__" in vars(base):
            names |= set(inspect.signature(base.__init__).parameters)
    return names - {"self", "oracle", "hypermodel", "objective", "kwargs", "args", "logger"}


def _as_list(results: Any) -> list[Any]:
    return results if isinstance(results, list) else [results]


def _finite_part(result: Any, objective: Any) -> Any:
    """Return a result of which keras-tuner can find the best epoch, which it takes for the first if that is NaN.

    Raises:
        _TrialFailedError: The objective was never finite.
    """
    if isinstance(result, keras.callbacks.History):
        epochs = [dict(zip(result.history, row, strict=True)) for row in zip(*result.history.values(), strict=False)]
        finite = [logs for logs in epochs if objective.has_value(logs) and np.isfinite(objective.get_value(logs))]
        if len(finite) == len(epochs) and epochs:
            return result
        if finite:
            best = (max if objective.direction == "max" else min)(finite, key=objective.get_value)
            return {**best, objective.name: objective.get_value(best)}
        if epochs and not any(objective.has_value(logs) for logs in epochs):
            return result  # keras-tuner says what is missing
    elif result is None or (isinstance(result, dict) and objective.name not in result):
        return result
    else:
        value = result[objective.name] if isinstance(result, dict) else result
        if np.isfinite(value):
            return result
    name = "the result" if isinstance(objective, DefaultObjective) else objective.name
    raise _TrialFailedError(Failure("nonfinite_objective", message=f"{name} was not finite"))
