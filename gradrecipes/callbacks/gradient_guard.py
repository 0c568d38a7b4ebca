"""Keep a training alive: skip, back off, roll back, and stop with a reason when nothing else helps."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.compat.keras_optimizers import learning_rates, lower_scale
from gradrecipes.compat.keras_private import batches_of_an_update, calling_list, optimizers_of
from gradrecipes.compat.tensorflow_private import host_value
from gradrecipes.core.arguments import require_choice, require_directory, require_file, require_flag
from gradrecipes.core.trace import OUTCOMES, SKIPPED_LOSS_OUTLIER
from gradrecipes.core.trace.trace import Event
from gradrecipes.gradients.clipping import Clipping
from gradrecipes.training.fit.prepared_step import Request
from gradrecipes.training.recovery.guard_state import SkippedBatches, load_guard_state, save_guard_state, seeds_of
from gradrecipes.training.recovery.model_state import SNAPSHOT_PLACES, SnapshotRing
from gradrecipes.training.recovery.policy import (
    FASTER,
    FIRST_FACTOR,
    Action,
    Readings,
    Recovery,
    TrainingStoppedError,
    are_other_weights,
    check_guard_arguments,
    weight_norms,
)

_LOG = logging.getLogger(__name__)
KEEP_BEST = (keras.callbacks.EarlyStopping, keras.callbacks.ModelCheckpoint, keras.callbacks.ReduceLROnPlateau)


class GradientGuard(AttachedCallback):
    """Skip every step that would ruin the weights; if that is not enough, go back to finite ones and slow down.

    **Skip.** A step is left out when its loss or gradient is not finite, when its gradient is above 1.8e19, whose
    square no optimizer can hold (above 1e30 if it is clipped first), or when its loss or norm is an outlier among
    those of the last 128 steps: above μ + 6σ and above twice the largest. A skipped step leaves every weight,
    optimizer slot, moving average, seed, metric and counter as it was: as if the batch had never come. Zeroing the
    gradient, as is often done, is no skip, since moments still decay and weight decay still acts.

    **Tell weights from data.** Before the weights are saved, evaluated or read, at an epoch's end and at that of the
    fit, and after `max_consecutive_skips` in a row, the batch with which the fit began is tried again, where there is
    something to doubt: steps that were skipped just before, or weights that have moved far. If it is as good as ever,
    the weights are kept, and skipping goes on; else they go back, so that whoever looks at them finds good ones.

    **Roll back and back off.** When the weights are bad after `max_consecutive_skips` in a row or at such a look, when
    the loss returns to its start after it had fallen by half, or is twice that (in a fit that continues a training:
    when it is half the way back to that of a constant prediction), or when a weight is not finite at an epoch's end or
    at a snapshot, weights, optimizer, moving averages, seeds and metrics go back to the newest finite snapshot, at
    first that of the fit's beginning, and the training goes on with the *next* data. Its learning rate is then bounded
    by half of what it was when all was well, by a tenth where nothing is known of it yet, and by a tenth of that each
    time the training fails again before it has recovered. That works under a schedule too: the rate is bounded inside
    the step. After the next snapshot the bound doubles, up to the rate of the time when all was well; with each further
    rollback of the fit this takes twice as many snapshots.

    **Give way.** A *finite* loss never stops a training. Where earlier weights do no better, or `max_rollbacks` have
    not helped, it is the data or the loss itself that has changed: the guard accepts the new level and takes the
    bounds of that time off the learning rate.

    **Stop.** When a loss that is not finite stays so though going back would change nothing, or has not helped
    `max_rollbacks` times, the training stops with the last finite weights, and `stop_reason` says why. Keras then ends
    `fit` as after its last epoch, and `keras.callbacks.BackupAndRestore` deletes its backup. With `raise_error=True`
    `fit` raises `TrainingStoppedError` instead: the backup of the last good epoch stays, and the next `fit` begins
    there.

    `skipped_steps` (and `clipped_steps`) reach the logs. Until a step of an epoch is applied, they hold the loss of the
    epoch before, in the first epoch the largest float32: finite, and no improvement. The device is asked every eight
    steps.

    Keras' callbacks that keep a best value (`EarlyStopping`, `ModelCheckpoint`, `ReduceLROnPlateau`) take a NaN of the
    first epoch for the best forever. Beside the guard they begin anew with the next epoch.

    Args:
        clipping: A method of `gradrecipes.clipping` that bounds every gradient before it is applied, a mapping of
            patterns of layer names, or of optimizers, to methods (see `by_layer` there), or None.
            It acts before what the optimizer's own `clipnorm`, `global_clipnorm` or `clipvalue` do.
        sigmas: Standard deviations from which on a finite loss or norm is an outlier; None to skip only what is not
            finite, and to watch no level of the loss.
        max_consecutive_skips: Consecutive skipped steps allowed before rolling back, at least 1: skipping forever
            would hide a bug.
        snapshot_every: Batches from one snapshot to the next; the last three are held, each of the size of weights and
            slots. None to keep none: then too many skips stop the training, and so do weights that are found bad; they
            are left, and the epoch's `loss` in the logs is that of the first batch with them.
        snapshot_on: Where they are held. "host": in the host's memory; on an accelerator each is copied there. None:
            on the device of the variables, without that copy, at the cost of its memory.
        max_rollbacks: Rollbacks without recovery between them that are tried.
        skipped_batches: A CSV file to which the batches that were left out are appended, by epoch and place, or None.
            Not among them are those that were left out while the weights were bad, or the loss scale too high.
        backup_dir: Where the guard writes its own state, and the seeds that Keras leaves out of its backups, at the
            end of each epoch, or None. With `keras.callbacks.BackupAndRestore` beside it, perhaps with the same
            directory, a run that is killed goes on as if it had not been.
        fused: Whether Adam, AdamW and SGD update the weights through TensorFlow's fused kernels, in one pass over each
            variable: faster than plain Keras, and not bit-identical to it, as the kernels round in another order.
        raise_error: Whether a stop raises `TrainingStoppedError`, as `keras.callbacks.TerminateOnNaN(raise_error=True)`
            raises an error, instead of ending `fit` in the usual way.

    List the guard first: before `BackupAndRestore`, so that what is backed up is finite, and before
    `keras.callbacks.SwapEMAWeights`, so that what the guard keeps and puts back is what is trained.

    Attributes:
        events: What the guard did: a list of `gradrecipes.Event`, of the kinds `"skip"`, `"rollback"`,
            `"back_off"`, `"speed_up"`, `"gave_way"` and `"stop"`.
        stop_reason: None, or the code for which the training was stopped: `"too_many_skips"`,
            `"training_lost"`, `"nonfinite_weights"` or `"too_many_rollbacks"`.
        trace: The record of the fit.

    Raises:
        TypeError: `clipping` is no clipping method, or `backup_dir` no path.
        ValueError: A bound is not positive or not whole; in `fit`: the model is not compiled, or two guards
            were passed.
        TrainingStoppedError: In `fit`, with `raise_error=True`, when the training stops.

    Example:
        >>> import gradrecipes as gr
        >>> guard = gr.GradientGuard(clipping=gr.clipping.by_global_norm(1.0))
        >>> model.fit(x, y, callbacks=[guard])  # doctest: +SKIP

    References:
        The rule that a skip must leave the optimizer untouched: `keras.optimizers.LossScaleOptimizer`, which
        does it for float16 only. Outliers: OLMo-core's `SkipStepOptimizer`. Rolling back and going on with
        later data: PaLM, arXiv 2204.02311, section 5.1; asked of Keras in its issue 8332.
    """

    def __init__(
        self,
        *,
        clipping: Clipping | Mapping[Any, Clipping] | None = None,
        sigmas: float | None = 6.0,
        max_consecutive_skips: int = 10,
        snapshot_every: int | None = 100,
        max_rollbacks: int = 5,
        snapshot_on: str | None = "host",
        skipped_batches: str | os.PathLike[str] | None = None,
        backup_dir: str | os.PathLike[str] | None = None,
        fused: bool = False,
        raise_error: bool = False,
    ):
        clipping = check_guard_arguments(clipping, sigmas, max_consecutive_skips, snapshot_every, max_rollbacks)
        require_choice("snapshot_on", snapshot_on, SNAPSHOT_PLACES)
        require_directory("backup_dir", backup_dir)
        require_file("skipped_batches", skipped_batches)
        require_flag("fused", fused, remedy="True updates the weights through TensorFlow's fused kernels.")
        require_flag("raise_error", raise_error, remedy="True has a stop raise an error, so that a backup is kept.")
        super().__init__(
            Request(
                skip=True,
                sigmas=sigmas,
                clipping=clipping,
                fused=fused,
                check=self._check,
                renewed=self._begin_recovery,
                before_look=self._check_thoroughly,
                keep_reference=True,
            )
        )
        self.clipping = clipping
        self.sigmas = sigmas
        self.max_consecutive_skips = max_consecutive_skips
        self.snapshot_every = snapshot_every
        self.max_rollbacks = max_rollbacks
        self.snapshot_on = snapshot_on
        self.skipped_batches = skipped_batches
        self.backup_dir = backup_dir
        self.fused = fused
        self.raise_error = raise_error
        self.stop_reason: str | None = None
        self._recovery: Recovery | None = None
        self._caps_before: dict[str, float] = {}  # the bounds of the rates when all was well
        self._rates_before: dict[str, float] = {}  # up to which the bounds are raised again
        self._resumed = False
        self._skips: SkippedBatches | None = None
        self._retrial: Any = None  # the last step that was run again on the fit's first batch
        self._looked_after = 0  # steps that had run at the last look before weights were saved, evaluated or read
        self._since = 0  # losses that were remembered when the fit began
        self._left_bad = False  # whether bad weights are left, since there was nothing to go back to

    @property
    def events(self) -> list[Event]:
        """What the guard did, in order, each with step, epoch, batch and reason."""
        kinds = ("skip", "rollback", "back_off", "speed_up", "gave_way", "stop")
        return [event for event in self.trace.events if event.kind in kinds]

    # -- Keras calls -------------------------------------------------------------------------------
    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the pipeline in place."""
        super().on_train_begin(logs)
        self.stop_reason = None
        self._resumed, self._left_bad, self._looked_after = False, False, 0
        if self.skipped_batches is not None:
            skipped = self._session.pipeline.skipped_steps
            self._skips = SkippedBatches(self.skipped_batches, self.trace, int(skipped.numpy()))
        if are_other_weights(self.model, self._session.weights_left):
            self._session.pipeline.forget()
        self._begin_recovery()

    def _begin_recovery(self) -> None:
        pipeline = self._session.pipeline
        earlier = None if self._recovery is None else self._recovery.ring
        self._since = next((int(host_value(one.count)) for one in pipeline.detectors.values()), 0)
        kept = {"also": pipeline.course, "place": self.snapshot_on, "earlier": earlier}
        ring = None if self.snapshot_every is None else SnapshotRing(self.model, **kept)
        self._recovery = Recovery(
            ring,
            every=-(-(self.snapshot_every or 0) // batches_of_an_update(self.model)),
            max_consecutive_skips=self.max_consecutive_skips,
            max_rollbacks=self.max_rollbacks,
            model=self.model,
        )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Assign the steps from here on to an epoch; resume from a saved state, once the weights are restored."""
        super().on_epoch_begin(epoch, logs)
        for callback in getattr(calling_list("on_epoch_begin"), "callbacks", ()):
            if isinstance(callback, KEEP_BEST) and callback.best is not None and np.isnan(callback.best):
                callback.best = None  # of an epoch that could not be evaluated: nothing would ever compare as better
        if not self._resumed and self.backup_dir is not None:
            values = load_guard_state(self.backup_dir, iterations=self._iterations())
            if values is not None:
                for name, seed in seeds_of(self.model).items():
                    seed.assign(values.pop(name, seed))
                self._session.pipeline.restore(values)
        if not self._resumed and all(optimizer.built for optimizer in optimizers_of(self.model)):
            self._recovery.begin(self._session.steps_run)
        self._resumed = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the weights, bring the record up to date, and save the guard's own state."""
        if self._looked_after != self._session.steps_run:  # else the epoch's validation had them checked
            self._check(thoroughly=True)
        if self._left_bad and logs is not None and "loss" in logs:
            loss = np.nan if self._retrial is None else self._retrial.loss
            logs["loss"] = loss if np.isfinite(loss) else float(np.finfo(np.float32).max)
        super().on_epoch_end(epoch, logs)
        if self.backup_dir is not None:
            state = self._session.pipeline.variables | seeds_of(self.model)
            values = {name: keras.ops.convert_to_numpy(variable) for name, variable in state.items()}
            save_guard_state(self.backup_dir, values, iterations=self._iterations())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Check the weights that are left, and give the model its own train function back."""
        try:
            self._check(thoroughly=True)
            self._session.weights_left = weight_norms(self.model)
        finally:
            self._list_skipped(ended=True)
            super().on_train_end(logs)

    def _iterations(self) -> int:
        return sum(int(keras.ops.convert_to_numpy(one.iterations)) for one in optimizers_of(self.model))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_recovery": None}

    # -- between two steps -------------------------------------------------------------------------
    def _check_thoroughly(self) -> None:
        if self._session.steps_run:
            self._check(thoroughly=True)
            self._looked_after = self._session.steps_run

    def _check(self, *, thoroughly: bool = False) -> None:
        ring = self._recovery.ring
        if self.stop_reason is None:
            with contextlib.nullcontext() if ring is None else ring.one_look():
                self._act(thoroughly=thoroughly)

    def _act(self, *, thoroughly: bool) -> None:
        pipeline = self._session.pipeline
        consecutive = int(host_value(pipeline.consecutive_skips))
        detector = next(iter(pipeline.detectors.values()), None)
        losses = np.zeros(0, np.float32) if detector is None else detector.remembered(since=self._since)
        at_fault = self._weights_at_fault(consecutive, losses) if self._is_suspect(consecutive, thoroughly) else None
        finite = self._skips_were_finite(consecutive)
        baseline = {} if self._session.kept is None else {"baseline": self._session.kept.baseline}
        readings = Readings(self._session.steps_run, consecutive, losses, finite, at_fault, **baseline)
        trying = self._recovery.rollbacks > 0
        action = self._recovery.consider(readings, thoroughly=thoroughly)
        if action in (Action.ROLL_BACK, Action.GIVE_WAY) or (action is Action.STOP and at_fault is not False):
            self._list_skipped(blamed=False)
        self._list_skipped()
        if action is Action.NOTHING:
            return
        if not trying:
            self._caps_before = {name: float(cap.numpy()) for name, cap in pipeline.rate_caps.items()}
        if action is Action.ROLL_BACK:
            self._roll_back(readings)
        elif action is Action.SPEED_UP:
            self._speed_up()
        else:  # a smaller rate did not help: it was not the rate
            for name, cap in pipeline.rate_caps.items():
                cap.assign(self._caps_before.get(name, np.inf))
        if action is Action.GIVE_WAY:
            pipeline.consecutive_skips.assign(0)
            for detector in pipeline.detectors.values():
                detector.forget()
            self._since = 0
            self._recovery.forget_level()
            self._session.add_event("gave_way", self._recovery.reason, {"consecutive_skips": consecutive})
        elif action is Action.STOP:
            self._stop(consecutive, at_fault)

    def _list_skipped(self, *, ended: bool = False, blamed: bool = True) -> None:
        if self._skips is None or not self._skips.has_new(count := int(self._session.pipeline.skipped_steps.numpy())):
            return
        scaled = any(lower_scale(one) is not None for one in optimizers_of(self.model))
        self._skips.write(self._session.collect(), count, scaled=scaled, ended=ended, blamed=blamed)

    def _is_suspect(self, consecutive: int, thoroughly: bool) -> bool:
        least = 1 if thoroughly else self.max_consecutive_skips
        return consecutive >= least or (thoroughly and self._recovery.weights_moved_far())

    def _weights_at_fault(self, consecutive: int, losses: np.ndarray) -> bool | None:
        self._retrial, growth = self._session.retry(), self._recovery.growth
        if growth is not None and not growth.state_is_finite():
            return True  # a ReLU may turn NaN into 0: no loss shows it
        at_fault = self._session.kept.weights_at_fault(self._retrial, consecutive, losses)
        if growth is not None and not at_fault:
            growth.accept()
        return at_fault

    def _skips_were_finite(self, consecutive: int) -> bool:
        if not consecutive:
            return True
        outcome = self._session.collect().steps["outcome"]
        return bool(np.all(outcome[-consecutive:] >= SKIPPED_LOSS_OUTLIER))

    def _roll_back(self, readings: Readings) -> None:
        recovery, pipeline, rates = self._recovery, self._session.pipeline, learning_rates(self.model)
        snapshot = recovery.ring.restore()
        while len(recovery.ring) > 1 and self._weights_at_fault(readings.consecutive_skips, readings.losses):
            recovery.ring.drop_newest()  # it was kept after the step that ruined the weights
            snapshot = recovery.ring.restore()
        for name, cap in pipeline.rate_caps.items():
            rate = min(rates[name], snapshot.rates[name], float(cap.numpy()))
            cap.assign(recovery.back_off * rate)
            if recovery.rollbacks == 1:  # those of later ones are bounds already
                self._rates_before[name] = rate if snapshot.proven else FIRST_FACTOR * rate
        pipeline.consecutive_skips.assign(0)
        lost = readings.step - snapshot.step
        now = {name: float(cap.numpy()) for name, cap in pipeline.rate_caps.items()}
        details = {"back_to_step": snapshot.step, "steps_lost": lost, "rollbacks": recovery.rollbacks}
        event = self._session.add_event("rollback", recovery.reason, details)
        self._session.add_event("back_off", recovery.reason, {"learning_rates": rates, "at_most": now})
        at_most = ", ".join(f"{rate:.3g}" for rate in now.values())
        message = (
            f"GradientGuard went back {lost} steps at epoch {event.epoch + 1}, batch {event.batch + 1} "
            f"({recovery.reason}), and goes on with the next data at a learning rate of at most {at_most}."
        )
        _LOG.warning("%s", message)

    def _speed_up(self) -> None:
        rates, caps = learning_rates(self.model), self._session.pipeline.rate_caps
        if all(np.isinf(float(cap.numpy())) for cap in caps.values()):
            return
        for name, cap in caps.items():
            faster = min(FASTER * float(cap.numpy()), self._rates_before[name])
            cap.assign(np.inf if faster >= rates[name] else faster)
        at_most = {name: float(cap.numpy()) for name, cap in caps.items()}
        details = {"learning_rates": rates, "at_most": {k: v if np.isfinite(v) else None for k, v in at_most.items()}}
        self._session.add_event("speed_up", self._recovery.reason, details)

    def _stop(self, consecutive: int, at_fault: bool | None) -> None:
        self.stop_reason = self._recovery.reason
        event = self._session.add_event("stop", self.stop_reason, {"consecutive_skips": consecutive})
        outcome = self._session.trace.steps["outcome"]
        reasons = sorted({OUTCOMES[int(code)] for code in outcome[len(outcome) - consecutive :]})
        skipped = f"; the last {consecutive} steps were all skipped ({', '.join(reasons)})" if consecutive else ""
        left = self._left_weights(consecutive, at_fault)
        message = (
            f"GradientGuard stopped the training at epoch {event.epoch + 1}, batch {event.batch + 1} "
            f"({self.stop_reason}){skipped}. {left} gradrecipes.diagnose(guard.trace) says why."
        )
        self._session.pipeline.consecutive_skips.assign(0)
        self.model.stop_training = True
        if self.raise_error:
            raise TrainingStoppedError(message, self.stop_reason, event.epoch, event.batch)
        _LOG.warning("%s", message)

    def _left_weights(self, consecutive: int, at_fault: bool | None) -> str:
        """Put the newest snapshot back, unless the weights are known not to be at fault, and say which are left."""
        before = "The weights are those before the first of them."
        if at_fault is False:
            return before
        ring = self._recovery.ring
        if ring is not None and len(ring):
            return f"The weights are those after step {ring.restore().step}, the last that were known to be healthy."
        if at_fault:
            self._left_bad = True
            return "The weights left are bad, and no snapshot was kept to go back to (snapshot_every)."
        if consecutive:
            return before
        return "There is no healthy state to go back to: weights were not finite when the fit began."
