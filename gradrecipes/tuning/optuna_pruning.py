"""Prune the trials of an Optuna study that diverge or fall behind, and say why."""

from __future__ import annotations

import math
from typing import Any

import keras

from gradrecipes.tuning.watch import TrialWatch


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
