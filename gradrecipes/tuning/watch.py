"""The callbacks that end a trial which is lost, or hopeless beside earlier ones: of a tuner, and of Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.callbacks.gradient_guard import GradientGuard
from gradrecipes.core.analysis.search_trial import STEPS_AT_REST, Failure, find_divergence
from gradrecipes.core.trace import APPLIED
from gradrecipes.training.fit.prepared_step import Request

FEWEST_TRIALS = 3  # earlier trials that a verdict must rest on
KEPT = 0.4  # share of the earlier trials among which a trial has to be
CHECK_EVERY = 4  # steps
SKIPS_KEPT = 64  # rows beside the last sixteen that may have been left out by a guard
MOST_SKIPPED = 0.5  # share of the steps; above it, most of the training did not take place
NONFINITE_EPOCHS = 2  # in a row without a finite objective: moving statistics that are lost do not come back


def is_hopeless(values: Sequence[float], earlier: Sequence[Sequence[float]], *, maximize: bool) -> bool:
    """Say whether a trial's best value so far is not among the best two in five of those that got so far.

    That is asked after 1, 2, 4, 8, ... epochs, and never in between: so each doubling of what a trial costs has to be
    earned. This is successive halving, without waiting for the others.

    Args:
        values: The objective after each epoch of the trial.
        earlier: The same of trials that did not fail, of any length.
        maximize: Whether more is better.

    Example:
        >>> is_hopeless([2.3, 2.3], [[1.0, 0.5], [1.2, 0.4], [2.0, 1.8]], maximize=False)
        True

    References:
        Li et al. 2020, "A system for massively parallel hyperparameter tuning", arXiv 1810.05934; the median rule of
        Golovin et al. 2017, "Google Vizier: a service for black-box optimization", section 3.2.1.
    """
    length = len(values)
    if not length or length & (length - 1):
        return False
    reached = [_best(curve[:length], maximize) for curve in earlier if len(curve) >= length]
    return len(reached) >= FEWEST_TRIALS and bool(_best(values, maximize) > np.quantile(reached, KEPT))


def _best(values: Sequence[float], maximize: bool) -> float:
    finite = [-value if maximize else value for value in values if np.isfinite(value)]
    return min(finite, default=np.inf)


class TrialWatch(AttachedCallback):
    """Stop a training of a search within a few steps of its divergence, and keep the reason.

    Without a guard in the same `fit` a loss or gradient that is not finite is the end. With one it is the guard that
    decides, by stopping; the level of the losses is watched all the same. At its end a guarded training has failed too
    if the guard went back and bounded the learning rate for good, or left out most of the steps: the score would be
    that of other settings, or of the initial weights.

    Args:
        objective: Name of the objective in the logs.
        maximize: Whether more of it is better.
        earlier: Returns the objective of earlier trials, epoch by epoch, to judge by; None never to give up.
        before: The objective after each epoch of the training that is taken up; in Hyperband a trial may go on with
            the weights of another.

    Attributes:
        failure: Why the training was stopped or lost, or None.
        hopeless: Whether it was stopped since earlier trials were better by then.
        values: The objective after each epoch.
        first_epoch: The epoch at which the training was taken up; None before it began.
        steps: Training steps that ran.
    """

    def __init__(
        self,
        objective: str,
        *,
        maximize: bool,
        earlier: Callable[[], Sequence[Sequence[float]]] | None,
        before: Sequence[float] = (),
    ):
        super().__init__(Request(check=self._check, check_every=CHECK_EVERY))
        self.objective = objective
        self.maximize = maximize
        self.failure: Failure | None = None
        self.hopeless = False
        self.values: list[float] = []
        self._earlier = earlier
        self._before = list(before)
        self._guard: GradientGuard | None = None
        self._known = 0
        self._steps_before = 0
        self._peak = -math.inf
        self.first_epoch: int | None = None

    @property
    def steps(self) -> int:
        """Training steps that ran, over all fits of the trial."""
        return self._steps_before + (0 if self._session is None else self._session.steps_run)

    @property
    def gradient_norms(self) -> np.ndarray:
        """float32 `[steps]`, global norm before clipping."""
        return self.trace.gradient_norm

    def set_model(self, model: Any) -> None:
        """Join the fit that begins."""
        before, steps = self._session, self.steps
        super().set_model(model)
        if self._session is not before:
            self._steps_before, self._known = steps, 0
            self._peak = -math.inf

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Look for a guard in the same fit: the hypermodel may have brought one."""
        super().on_train_begin(logs)
        self._guard = next((one for one in self._session.requests if isinstance(one, GradientGuard)), None)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note where the training is taken up: in Hyperband not at the first epoch."""
        super().on_epoch_begin(epoch, logs)
        if self.first_epoch is None:
            self.first_epoch = epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the steps since the last check, and at the objective."""
        super().on_epoch_end(epoch, logs)
        self._check()
        if self.objective not in (logs or {}) or self.failure is not None:
            return
        self.values.append(float(logs[self.objective]))
        last = self.values[-NONFINITE_EPOCHS:]
        if len(last) == NONFINITE_EPOCHS and not np.isfinite(last).any():
            self.fail("nonfinite_objective", f"{self.objective} was not finite in {NONFINITE_EPOCHS} epochs in a row")
        elif (
            self._earlier is not None
            and (self._before or not self.first_epoch)
            and is_hopeless([*self._before, *self.values], self._earlier(), maximize=self.maximize)
        ):
            self.hopeless = self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Look a last time: at the last steps, at the guard, and at the weights."""
        super().on_train_end(logs)
        self._check(ended=True)
        if self.failure is None and self._guard is not None:
            self._judge_guarded(self._guard)
        if self.failure is None and not all(np.isfinite(weight).all() for weight in _floating_weights(self.model)):
            self.fail("nonfinite_weights", "a weight is not finite, though the loss is")

    def _judge_guarded(self, guard: GradientGuard) -> None:
        going_back = [event for event in guard.events if event.kind in ("rollback", "gave_way")]
        rollbacks = [event for event in going_back if event.kind == "rollback"]
        skipped = self.trace.skipped
        if rollbacks and going_back[-1].kind == "rollback":
            reason = f"{rollbacks[0].reason}, weights put back {len(rollbacks)} times and the learning rate bounded"
            self.fail("guard_rolled_back", reason, step=rollbacks[0].step)
        elif len(skipped) and skipped.mean() > MOST_SKIPPED:
            self.fail("guard_skipped", f"{int(skipped.sum())} of {len(skipped)} steps were skipped")

    def _check(self, *, ended: bool = False) -> None:
        if self.failure is not None:
            return
        if self._guard is not None and self._guard.stop_reason is not None:
            self.fail("guard_gave_up", self._guard.stop_reason)
            return
        steps = self._session.collect().steps
        count = len(steps)
        rows = np.unique(np.r_[:1, max(0, min(self._known, count - STEPS_AT_REST - SKIPS_KEPT)) : count])
        if not count:
            return
        columns = (steps[name][rows] for name in ("loss", "gradient_norm", "outcome"))
        known = int(np.searchsorted(rows, self._known))
        found = find_divergence(*columns, guarded=self._guard is not None, known=known, peak=self._peak, ended=ended)
        fresh = steps["loss"][self._known :][steps["outcome"][self._known :] == APPLIED]
        self._peak = float(np.fmax(self._peak, np.fmax.reduce(fresh, initial=-np.inf)))
        self._known = count
        if found is not None:
            step = int(rows[found.step])
            self.fail(found.cause, f"at step {step}", step=step, loss_ratio=found.loss_ratio)

    def fail(self, cause: str, message: str, *, step: int | None = None, loss_ratio: float = math.nan) -> None:
        """Note why the training failed, and stop it."""
        in_epoch = self.params.get("steps") or 0
        lived = (self.steps if step is None else step) + (self.first_epoch or 0) * in_epoch
        self.failure = Failure(cause, lived, (self.params.get("epochs") or 0) * in_epoch, loss_ratio, message)
        self.model.stop_training = True


def _floating_weights(model: Any) -> list[np.ndarray]:
    return [weight for weight in model.get_weights() if np.issubdtype(weight.dtype, np.floating)]


class OptunaPruning(keras.callbacks.Callback):
    """Report a metric of each epoch to an Optuna trial; prune the trial when it diverges or its pruner says so.

    A divergence is found within a few steps, as in the tuners of `gr.tuning`; with a `GradientGuard` in the same `fit`
    the guard decides, by stopping, going back for good, or leaving out most steps. The trial then reports the worst
    value there is, so that no sampler takes its last good epoch for its score. `fit` ends as usual, and then raises
    `optuna.TrialPruned`: list this callback last. Needs Optuna: `pip install 'gradrecipes[optuna]'`.

    Args:
        trial: The trial, of a study with one objective.
        metric: Name of what is reported: a key of the logs of an epoch.

    Attributes:
        reason: Why the trial was pruned, or None. Of one that diverged it is the user attribute "diverged" too.

    Raises:
        ValueError: In `fit`: the logs of an epoch lack the metric.
        optuna.TrialPruned: At the end of `fit`.

    Example:
        >>> import optuna
        >>> pruning = gr.tuning.OptunaPruning(optuna.trial.FixedTrial({}), "val_loss")
        >>> history = model.fit(x, y, validation_split=0.2, verbose=0, callbacks=[gr.GradientGuard(), pruning])
    """

    def __init__(self, trial: Any, metric: str = "val_loss"):
        super().__init__()
        self.reason: str | None = None
        self._trial, self._metric, self._step = trial, metric, 0
        study = getattr(trial, "study", None)  # a FixedTrial has none
        self._maximize = study is not None and study.direction.name == "MAXIMIZE"
        self._watch = TrialWatch(metric, maximize=self._maximize, earlier=None)
        self.set_params = self._watch.set_params
        self.on_train_begin, self.on_epoch_begin = self._watch.on_train_begin, self._watch.on_epoch_begin

    def set_model(self, model: keras.Model) -> None:
        """Join the fit that begins."""
        super().set_model(model)
        self._watch.set_model(model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Report the metric, and ask the pruner, unless the training has diverged."""
        if self._metric not in (logs or {}):
            names = ", ".join(map(repr, logs or {}))
            raise ValueError(f"`metric` must be in the logs of an epoch: {names}. Received: metric={self._metric!r}.")
        self._watch.on_epoch_end(epoch, logs)
        value, step, self._step = float(logs[self._metric]), self._step, self._step + 1
        if self._watch.failure is not None or not math.isfinite(value):
            return
        self._trial.report(value, step)
        if self._trial.should_prune():
            self.reason = f"the pruner ended it after {self._step} epochs, at {self._metric} = {value:.4g}"
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Look a last time, and end the trial if it is to be pruned."""
        import optuna

        self._watch.on_train_end(logs)
        if (failure := self._watch.failure) is not None:
            self.reason = f"diverged, because of {failure.cause.replace('_', ' ')}: {failure.message}"
            self._trial.set_user_attr("diverged", self.reason)
            self._trial.report(-math.inf if self._maximize else math.inf, self._step)
        if self.reason is not None:
            raise optuna.TrialPruned(f"Trial {self._trial.number}: {self.reason}.")
