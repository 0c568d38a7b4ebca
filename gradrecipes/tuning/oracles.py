"""The four search strategies of keras-tuner, made to live with failures: one mix-in, four thin classes."""

from __future__ import annotations

import copy
import functools
import logging
import time
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner import oracles

from gradrecipes.core.analysis.search_trial import CAUSES, DIGEST_MODULUS, Failure, penalized_score
from gradrecipes.tuning import records
from gradrecipes.tuning.acquisition import evenly_spread, rank_candidates
from gradrecipes.tuning.keras_tuner_private import Float, Trial, TrialStatus

_LOG = logging.getLogger(__name__)
CAUSE, SEVERITY, DIGEST = "failure_cause", "failure_severity", "error_digest"  # metrics by which a worker reports
HEARTBEAT = "heartbeat/"  # what a worker sends in the place of metrics, with its id, to say that it is alive
UNSCORED = 1e30  # stands for the objective of a failure until the oracle has scored it
SAME_ERRORS = 3  # trials, all there were, that failed with one and the same error: so would the others
BELOW_ONE = 1.0 - 1e-9  # the last place of a setting: at 1 itself keras-tuner has no value
MOST_LOSSES = 2  # workers that one trial may take with it, before it counts as the culprit


def failure_metrics(failure: Failure, objective: str, *, maximize: bool) -> dict[str, float]:
    """Return what a worker reports of a failed trial: plain numbers, the only thing that reaches the chief."""
    digest = 0
    for letter in failure.message.encode() if failure.cause == "error" else b"":
        digest = (digest * 31 + letter) % DIGEST_MODULUS
    return {
        objective: -UNSCORED if maximize else UNSCORED,
        CAUSE: float(CAUSES.index(failure.cause)),
        SEVERITY: failure.severity,
        DIGEST: float(digest),
    }


def failure_of(trial: Trial) -> str | None:
    """Return the cause for which a trial failed, or None."""
    return CAUSES[int(trial.metrics.get_last_value(CAUSE))] if trial.metrics.exists(CAUSE) else None


class SurvivingOracle:
    """Score failures with finite numbers that are worse than any success, and take up the trials of lost workers.

    A failed trial ends as `COMPLETED`, since for keras-tuner's strategies every other status is a trial that never
    was: the Bayesian one proposes it again, Hyperband waits for it. Its score is set anew whenever a trial ends, so
    that it is always worse than every success.

    Attributes:
        halted: Why the search was stopped before its end, or None.
        lost_workers: Ids of the workers that fell silent.
        serving: Whether it answers workers in other processes.
        told_to_stop: Whether a worker has been told that there is nothing more to do.
    """

    def __init__(self, objective: Any = None, **settings: Any):
        settings.setdefault("max_consecutive_failed_trials", None)  # failures are scored, not counted
        super().__init__(objective=objective, **settings)
        self.halted: str | None = None
        self.lost_workers: list[str] = []
        self.serving = False
        self.told_to_stop = False
        self._last_heard: dict[str, float] = {}
        self._losses: dict[str, int] = {}

    @property
    def maximize(self) -> bool:
        """Whether more of the objective is better."""
        return self.objective.direction == "max"

    # -- scores ------------------------------------------------------------------------------------
    def score_trial(self, trial: Trial) -> None:
        """Score a trial, and all failures anew."""
        super().score_trial(trial)
        ended = [one for one in self.trials.values() if one.status == TrialStatus.COMPLETED and one.score is not None]
        successes = [one.score for one in ended if failure_of(one) is None]
        for one in ended:
            if failure_of(one) is not None:
                severity = one.metrics.get_last_value(SEVERITY)
                score = penalized_score(severity, successes, maximize=self.maximize)
                if score != one.score:
                    one.score = score
                    self._save_trial(one)
        self.judge_errors()

    def judge_errors(self) -> None:
        """Halt the search if all of its trials failed with one and the same error: so would the others."""
        ended = [one for one in self.trials.values() if one.status == TrialStatus.COMPLETED and one.score is not None]
        digests = {one.metrics.get_last_value(DIGEST) for one in ended if failure_of(one) == "error"}
        if len(ended) >= SAME_ERRORS and len(digests) == 1 and all(failure_of(one) == "error" for one in ended):
            self.halted = f"All {len(ended)} trials so far failed with one and the same error."

    def get_best_trials(self, num_trials: int = 1) -> list[Trial]:
        """Return the best trials; those that failed come last, as `get_trial` returns them."""
        best = super().get_best_trials(len(self.trials))
        best.sort(key=lambda trial: failure_of(trial) is not None)
        return [self._reported(trial) for trial in best[:num_trials]]

    def get_trial(self, trial_id: str) -> Trial:
        """Return a trial. Of one that failed, a copy without a score, whose status and message say so."""
        return self._reported(super().get_trial(trial_id))

    def _reported(self, trial: Trial) -> Trial:
        if (cause := failure_of(trial)) is None:
            return trial
        outcome = records.read_outcome(self._get_trial_dir(trial.trial_id))
        known = outcome.failure.message if outcome is not None and outcome.failure is not None else ""
        reported = copy.copy(trial)
        reported.status, reported.score = TrialStatus.FAILED, None
        reported.message = f"Failed: {cause.replace('_', ' ')}" + (f", {known}" if known else "")
        return reported

    # -- what the trainers of trials ask ---------------------------------------------------------------
    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """Return the next trial for a worker, or that there is none (yet)."""
        self._last_heard[tuner_id] = time.monotonic()
        own = self.ongoing_trials.get(tuner_id)
        if own is not None and self._is_too_deadly(own):  # the worker was started again in the middle of it
            self._end_deadly(own)
        if self.halted is None:
            trial = super().create_trial(tuner_id)
            if trial.status != TrialStatus.STOPPED:
                return trial
            if self.serving and self.ongoing_trials:  # should one of those be lost, somebody must be there to take it
                self.tuner_ids.add(tuner_id)
                trial.status = TrialStatus.IDLE
                return trial
        self.tuner_ids.discard(tuner_id)
        self.told_to_stop = True
        return Trial(self.hyperparameters.copy(), trial_id="", status=TrialStatus.STOPPED)

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        """Take the metrics of a trial, or a sign of life of its worker."""
        beats = [name.removeprefix(HEARTBEAT) for name in metrics if name.startswith(HEARTBEAT)]
        if beats:
            self._last_heard[beats[0]] = time.monotonic()
            return self.trials[trial_id]
        if trial_id in self.end_order:  # of a worker that was given up, and whose trial another has ended
            return self.trials[trial_id]
        return super().update_trial(trial_id, metrics, step)

    @keras_tuner.synchronized
    def end_trial(self, trial: Trial) -> None:
        """End a trial, once."""
        if trial.trial_id not in self.end_order:
            super().end_trial(trial)
        for tuner_id in [one for one, ongoing in self.ongoing_trials.items() if ongoing.trial_id == trial.trial_id]:
            del self.ongoing_trials[tuner_id]
        if trial.trial_id in self._retry_queue:
            self._retry_queue.remove(trial.trial_id)

    # -- lost workers ------------------------------------------------------------------------------
    @keras_tuner.synchronized
    def release_lost(self, patience: float) -> list[str]:
        """Give the trials of workers that have been silent for so many seconds to others; return the workers' ids."""
        now = time.monotonic()
        lost = [one for one in self.tuner_ids if now - self._last_heard.get(one, now) > patience]
        for tuner_id in lost:
            self.tuner_ids.discard(tuner_id)
            self.lost_workers.append(tuner_id)
            trial = self.ongoing_trials.pop(tuner_id, None)
            if trial is None:
                continue
            if self._is_too_deadly(trial):
                self._end_deadly(trial)
            else:
                trial.status = TrialStatus.INVALID
                self._retry_queue.append(trial.trial_id)
                _LOG.warning("Worker %s fell silent; its trial %s goes to another.", tuner_id, trial.trial_id)
        return lost

    def _is_too_deadly(self, trial: Trial) -> bool:
        self._losses[trial.trial_id] = self._losses.get(trial.trial_id, 0) + 1
        return self._losses[trial.trial_id] >= MOST_LOSSES

    def _end_deadly(self, trial: Trial) -> None:
        failure = Failure("error", message=f"{MOST_LOSSES} workers were lost with it")
        self.update_trial(trial.trial_id, failure_metrics(failure, self.objective.name, maximize=self.maximize))
        trial.status = TrialStatus.COMPLETED
        self.end_trial(trial)

    def reload(self) -> None:
        """Take up a search: trials that were running are run again."""
        super().reload()
        for trial_id in self._retry_queue:
            self.trials[trial_id].status = TrialStatus.INVALID


class RandomSearchOracle(SurvivingOracle, oracles.RandomSearchOracle):
    """Draw every trial at random."""


class GridSearchOracle(SurvivingOracle, oracles.GridSearchOracle):
    """Try all combinations."""

    def reload(self) -> None:
        """Take up a search where it was left; keras-tuner's own grid forgets its place and ends there."""
        super().reload()
        compare = functools.cmp_to_key(
            lambda one, other: self._compare(
                self.trials[one].hyperparameters.values, self.trials[other].hyperparameters.values
            )
        )
        for trial_id in sorted(self.start_order, key=compare):
            self._ordered_ids.insert(trial_id)
        self._populate_next = list(self.start_order)


class BayesianOptimizationOracle(SurvivingOracle, oracles.BayesianOptimizationOracle):
    """Propose where much is expected of a success, and a success is to be expected; see `gr.tuning.acquisition`.

    The first trials, two for each setting and at least four, fill the space evenly (Sobol's sequence, scrambled by the
    seed), failures among them: drawn at random they leave holes, in which a small region that trains is overlooked.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Propose the best candidate that has not been tried."""
        space = self._nonfixed_space()
        ended = [one for one in self.trials.values() if one.status == TrialStatus.COMPLETED]
        if not space:
            return self._random_populate_space()
        if len(ended) < (self.num_initial_points or max(2 * len(space), 4)):
            proposals = [evenly_spread(len(self.trials), len(space), seed=self.seed)]
        else:
            proposals = self._ranked(ended)
        for vector in proposals:
            values = self._vector_to_values(np.minimum(vector, BELOW_ONE))
            if not self._duplicate(values):
                return {"status": TrialStatus.RUNNING, "values": values}
        return self._random_populate_space()

    def _ranked(self, ended: list[Trial]) -> np.ndarray:
        space = self._nonfixed_space()
        failed = np.array([failure_of(one) is not None for one in ended])
        scores = np.array([one.score for one in ended], np.float64)
        severities = [one.metrics.get_last_value(SEVERITY) if failure_of(one) else np.nan for one in ended]
        running = [self._vector(one) for one in self.ongoing_trials.values()]
        return rank_candidates(
            np.array([self._vector(one) for one in ended]),
            np.where(failed, np.nan, -scores if self.maximize else scores),
            np.array(severities, np.float64),
            random=np.random.default_rng((self.seed, len(self.trials))),
            pending=np.array(running).reshape(-1, len(space)),
            unordered=np.array([getattr(hp, "ordered", True) is False for hp in space]),
            snap=self._snapped,
        )

    def _snapped(self, vectors: np.ndarray) -> np.ndarray:
        """Return the vectors of the values that stand for given ones: a choice among three has three places."""
        columns = [
            column
            if isinstance(hp, Float) and hp.step is None
            else [hp.value_to_prob(hp.prob_to_value(min(place, BELOW_ONE))) for place in column]
            for hp, column in zip(self._nonfixed_space(), vectors.T, strict=True)
        ]
        return np.stack(columns, axis=1)

    def _vector(self, trial: Trial) -> list[float]:
        """Return where a trial stands in the unit cube; a setting that was not active stands at its default."""
        given = trial.hyperparameters
        return [
            hp.value_to_prob(given.values[hp.name] if hp.name in given.values and given.is_active(hp) else hp.default)
            for hp in self._nonfixed_space()
        ]


class HyperbandOracle(SurvivingOracle, oracles.HyperbandOracle):
    """Give many trials few epochs, and the best of them more."""
