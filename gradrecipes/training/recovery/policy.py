"""When to keep a snapshot of a training, when to go back to one, and when to give up, and the error that says so."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.arguments import is_positive, require_whole
from gradrecipes.gradients.clipping import Clipping, as_clipping
from gradrecipes.training.recovery.model_state import SnapshotRing

FIRST_FACTOR = 0.5  # of the learning rate at the first rollback: what has been asked of Keras since 2017, issue 8332
NEXT_FACTOR = 0.1  # at each further one before the training has recovered, and where nothing is known of the rate
FASTER = 2.0  # times the bound of the learning rate at each recovery: two undo most of the first rollback
RECENT = 32  # losses that tell the present level; a quarter of the window
LATEST = 8  # losses that tell a level that has just changed: those since the device was asked last
BEGINNING = 16  # losses that tell the level at the beginning
LEARNED = 0.5  # of the level at the beginning: below it, something had been learned
LOST_SHARE = 0.9  # of the level at the beginning: above it again, all of that is lost
DIVERGED = 2.0  # times the level at the beginning: worse than knowing nothing
FORGOTTEN = 0.5  # of the way from the level at the beginning to a constant prediction
HIGHER = 1.25  # times the level of the newest snapshot: below it, going back would gain nothing
HEALTHY_RATIO = 2.0  # a snapshot is kept up to this many times the best level; llm-foundry calls twice the mean a spike
MAX_GROWTH = 2.0  # times an earlier norm; see `WeightGrowth`
SAME = 1e-5  # relative difference of the norms of the same weights, summed in another order


class Action(StrEnum):
    """What a guard does between two steps."""

    NOTHING = "nothing"
    ROLL_BACK = "rollback"
    SPEED_UP = "speed_up"
    GIVE_WAY = "gave_way"
    STOP = "stop"


@dataclass(frozen=True)
class Readings:
    """What is known between two steps.

    Args:
        step: Steps that have run.
        consecutive_skips: How many of the last steps were skipped in a row.
        losses: float32 `[n]`, the remembered losses, oldest first; empty where they are not known.
        finite: Whether the loss and gradient of the last step were finite.
        weights_at_fault: Whether a batch that once was good is bad with the present weights; None where it was not
            tried.
        baseline: Returns the loss of the best constant prediction, NaN where it is not known.
    """

    step: int
    consecutive_skips: int
    losses: np.ndarray
    finite: bool
    weights_at_fault: bool | None = None
    baseline: Callable[[], float] = lambda: float("nan")


class Recovery:
    """Keep snapshots of a healthy training, and decide what to do when it does not make progress.

    Too many skips in a row that are not the fault of the data, a loss that is back at its first level after half of it
    had been learned away or at twice that level, or a weight that is not finite when a snapshot is due, send the
    training back to the newest snapshot, with a smaller learning rate and with later data. The last attempt goes to an
    older one. The first snapshot is that of the beginning; where training goes back to it, no rate has been seen to
    train, and the rate falls by an order at once.

    Where a batch that was good is still good with the present weights, the skipped batches are bad themselves. Then
    nothing goes back, and skipping goes on for as long as `max_rollbacks` would have taken.

    The bound of the rate is raised again after the next snapshot: what went wrong may have been one batch or one bit.
    After each further rollback of the fit, the training has to last for twice as many snapshots before that.

    A fit that begins with nothing but outliers among the losses of an earlier one has other data, and gives way.

    A fit that continues a training begins far below the loss of a constant prediction, where twice the level is noise.
    There the training is lost only if the loss is more than half the way up to that of a constant prediction.

    A loss may also rise because the data change, or the loss itself, as under an annealed penalty. Then the weights of
    the snapshot do no better on the present data, or were at nearly the same level, and the training gives way: the
    new level is accepted.

    Args:
        ring: Where snapshots are kept, or None to keep none: then too many skips stop the training.
        every: Steps from one snapshot to the next.
        max_consecutive_skips: Consecutive skipped steps allowed before rolling back.
        max_rollbacks: Rollbacks without recovery between them that are tried.
        model: Whose weights are looked at where no snapshots are kept, or None.

    Attributes:
        rollbacks: Rollbacks since the last recovery.
        reason: Why the last action was taken: `"too_many_skips"`, `"training_lost"`, `"nonfinite_weights"`,
            `"too_many_rollbacks"`, `"level_changed"`.
        back_off: What the learning rate is to be multiplied by at this rollback.
    """

    def __init__(
        self,
        ring: SnapshotRing | None,
        *,
        every: int,
        max_consecutive_skips: int,
        max_rollbacks: int,
        model: keras.Model | None = None,
    ):
        self.ring = ring
        self.growth = WeightGrowth(model) if ring is None and model is not None else None
        self._looked_at = self.growth if ring is None else ring
        self.every = every
        self.max_consecutive_skips = max_consecutive_skips
        self.max_rollbacks = max_rollbacks
        self.rollbacks = 0
        self.reason = ""
        self.back_off = 1.0
        self._last_kept = -every
        self._beginning = self._best = self._kept_level = float("nan")
        self._lost_at: tuple[int, float] | None = None  # step and level of the last rollback for a lost level
        self._rollbacks_of_fit = self._kept_since = self._began = 0

    def begin(self, step: int) -> None:
        """Keep a snapshot of the beginning, or note its weights; nothing is known yet of its learning rate."""
        self._began = step
        if self.growth is not None:
            self.growth.begin()
        if self.ring is not None and self.ring.keep(step, proven=False):
            self._last_kept = step

    def weights_moved_far(self) -> bool:
        """Return whether the weights have moved so far that a batch is to be tried with them."""
        return self._looked_at is not None and self._looked_at.moved_far()

    def _weights_are_finite(self) -> bool:
        return self._looked_at is None or self._looked_at.state_is_finite()

    def consider(self, readings: Readings, *, thoroughly: bool = False) -> Action:
        """Say what to do; keep a snapshot when one is due and the training is healthy.

        Args:
            readings: What is known.
            thoroughly: Whether to look at the weights even if no snapshot is due.
        """
        recent = self._learn_level(readings.losses)
        learned = 0 <= self._best <= LEARNED * self._beginning
        high = recent >= (LOST_SHARE if learned else DIVERGED) * self._beginning
        lost = high and not self._still_knows(recent, readings)
        if self._begins_at_another_level(readings):
            return self._give_way()
        if readings.weights_at_fault:
            reason = "too_many_skips" if readings.consecutive_skips else "training_lost"
            return self._recover(reason if self._weights_are_finite() else "nonfinite_weights", readings)
        if readings.consecutive_skips >= self.max_consecutive_skips:
            if readings.weights_at_fault is None or self.ring is None:
                return self._recover("too_many_skips", readings)
            return self._bear_bad_data(readings)
        if self.ring is None:
            return Action.NOTHING
        if self._in_vain(readings):
            return self._go_further_back(readings)
        if lost:
            slow = not learned and recent < HIGHER * self._kept_level
            return self._give_way() if slow else self._lose(recent, readings)
        finite = self._keep_if_sound(readings, recent) and (not thoroughly or self.ring.state_is_finite())
        if not finite:
            return self._recover("nonfinite_weights", replace(readings, finite=False))
        if self._rollbacks_of_fit and self._kept_since >= 2 ** (self._rollbacks_of_fit - 1):
            self._kept_since = 0
            self.reason = "recovered"
            return Action.SPEED_UP
        return Action.NOTHING

    def _begins_at_another_level(self, readings: Readings) -> bool:
        """Return whether all steps of a fit so far were finite outliers: its weights are as it got them."""
        skips = readings.consecutive_skips
        return readings.finite and skips >= max(readings.step - self._began, min(LATEST, self.max_consecutive_skips))

    def forget_level(self) -> None:
        """Begin anew with the losses: their level has changed for good."""
        self._best = self._beginning = self._kept_level = float("nan")
        self._lost_at = None

    def _learn_level(self, losses: np.ndarray) -> float:
        if len(losses) < RECENT:
            return float("nan")
        if np.isnan(self._beginning):
            beginning = float(np.median(losses[:BEGINNING]))
            self._beginning = beginning if beginning > 0 else float("inf")  # ratios of negative losses mean nothing
        recent = statistics.median(losses[-RECENT:].tolist())
        self._best = float(np.fmin(self._best, recent))
        return recent

    def _still_knows(self, recent: float, readings: Readings) -> bool:
        known = readings.baseline() - self._beginning
        return bool(known > 0 and recent < self._beginning + FORGOTTEN * known)

    def _keep_if_sound(self, readings: Readings, recent: float) -> bool:
        if readings.consecutive_skips or readings.step - self._last_kept < self.every:
            return True
        latest = float(np.median(readings.losses[-LATEST:])) if len(readings.losses) else recent
        level = max(recent, latest)
        risen = self._best > 0 and level > max(HEALTHY_RATIO * self._best, (1 - LOST_SHARE) * self._beginning)
        if risen and not level <= (1 - LOST_SHARE) * readings.baseline():
            return True
        if not self.ring.keep(readings.step):
            return False  # a ReLU may turn NaN into 0: no loss and no gradient shows the NaN in a weight before it
        self._last_kept, self._kept_level = readings.step, recent
        self.rollbacks = 0
        self._kept_since += 1
        return True

    def _lose(self, level: float, readings: Readings) -> Action:
        self._lost_at = readings.step, level
        return self._recover("training_lost", readings)

    def _in_vain(self, readings: Readings) -> bool:
        """Return whether the first losses after going back were all nearer to the lost level than to the snapshot's."""
        if self._lost_at is None or readings.step - self._lost_at[0] < LATEST:
            return False
        (step, level), self._lost_at = self._lost_at, None
        since = readings.step - step
        first = readings.losses[-since:][:LATEST] if since <= len(readings.losses) else readings.losses[:0]
        return bool(len(first) and np.min(first) > np.sqrt(level * self._kept_level))

    def _go_further_back(self, readings: Readings) -> Action:
        if len(self.ring) == 1:
            return self._give_way()
        self.ring.drop_newest()
        self._last_kept = readings.step
        self._lost_at = readings.step, float(np.median(readings.losses[-LATEST:]))
        self.reason, self.back_off = "training_lost", 1.0
        return Action.ROLL_BACK

    def _recover(self, reason: str, readings: Readings) -> Action:
        self.reason = reason
        self._last_kept = readings.step
        finite = readings.finite
        if self.ring is None or not len(self.ring):
            return Action.STOP
        self.rollbacks += 1
        if self.rollbacks > self.max_rollbacks:
            return self._give_up("too_many_rollbacks", finite)
        changes = not self.ring.is_current()
        if len(self.ring) > 1 and (self.rollbacks == self.max_rollbacks or not changes):
            self.ring.drop_newest()
        elif not changes:
            return self._give_up(reason, finite)
        self._rollbacks_of_fit += 1
        self._kept_since = 0
        self.back_off = FIRST_FACTOR if self.rollbacks == 1 and self.ring.newest.proven else NEXT_FACTOR
        return Action.ROLL_BACK

    def _bear_bad_data(self, readings: Readings) -> Action:
        """Go on with weights that are good: going back is for weights that are bad."""
        if readings.consecutive_skips < (self.max_rollbacks + 1) * self.max_consecutive_skips:
            return Action.NOTHING
        return self._give_up("too_many_skips", readings.finite)

    def _give_up(self, reason: str, finite: bool) -> Action:
        if finite:
            return self._give_way(reason)
        self.reason = reason
        return Action.STOP

    def _give_way(self, reason: str = "level_changed") -> Action:
        self.reason = reason
        self.rollbacks = 0
        return Action.GIVE_WAY


def check_guard_arguments(
    clipping: Any, sigmas: Any, max_consecutive_skips: Any, snapshot_every: Any, max_rollbacks: Any
) -> Clipping | None:
    """Return the clipping method of a `GradientGuard`; refuse arguments that make no sense.

    Raises:
        TypeError: `clipping` is no clipping method.
        ValueError: A number is not positive or not whole.
    """
    clipping = as_clipping(clipping, "GradientGuard")
    if sigmas is not None and not is_positive(sigmas):
        raise ValueError(
            f"`sigmas` must be a positive number of standard deviations, or None. Received: sigmas={sigmas!r}. "
            "6 suits most trainings; None skips only what is not finite."
        )
    require_whole("max_consecutive_skips", max_consecutive_skips, least=1, remedy="10 suits most trainings.")
    require_whole("max_rollbacks", max_rollbacks, least=0, remedy="5 suits most trainings; 0 stops at once.")
    if snapshot_every is not None:
        remedy = "100 suits most trainings; None keeps no snapshots."
        require_whole("snapshot_every", snapshot_every, least=1, remedy=remedy)
    return clipping


class TrainingStoppedError(RuntimeError):
    """Say that a `GradientGuard(raise_error=True)` stopped the training, and why.

    Args:
        message: What happened, as it is logged.
        reason: Code of the reason, as in `GradientGuard.stop_reason`.
        epoch: Where it happened, counted from 0.
        batch: Where in the epoch, counted from 0.

    Attributes:
        reason, epoch, batch: As above.

    Example:
        >>> error = TrainingStoppedError("It stopped.", "too_many_skips", 2, 17)
        >>> print(error, error.reason)
        It stopped. too_many_skips
    """

    def __init__(self, message: str, reason: str, epoch: int, batch: int):
        super().__init__(message, reason, epoch, batch)  # all of them, so that it is pickled whole
        self.reason = reason
        self.epoch = epoch
        self.batch = batch

    def __str__(self) -> str:
        return str(self.args[0])


class WeightGrowth:
    """Compare the size of a model's weights with that of an earlier time, when they were good.

    Weights whose norm has more than doubled have moved farther than they were large, by the triangle inequality: the
    bound of `SnapshotRing.moved_far`. That is no fault in itself, as weights that begin at zero grow so in every
    training. It is a reason to try a batch with them.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._norm = float("nan")  # the smallest since the weights were last known to be good
        self._never_finite: set[int] = set()  # by id: what was not finite from the beginning, such as a mask of -inf

    def begin(self) -> None:
        """Note the weights with which a fit begins."""
        norm, broken = self._measure()
        self._never_finite = broken - {id(weight) for weight in self._model.trainable_variables}
        self._norm = norm

    def accept(self) -> None:
        """Take the present weights for good ones."""
        self._norm = self._measure()[0]

    def moved_far(self) -> bool:
        """Return whether the weights have more than doubled, are not finite, or were never measured."""
        norm, broken = self._measure()
        if broken <= self._never_finite and norm <= MAX_GROWTH * self._norm:
            self._norm = min(norm, self._norm)
            return False
        return True

    def state_is_finite(self) -> bool:
        """Return whether every weight and moving statistic is finite, apart from those that never were."""
        return self._measure()[1] <= self._never_finite

    def _measure(self) -> tuple[float, set[int]]:
        """Return the L2 norm of the trainable weights, and the ids of all variables that are not finite."""
        values = {id(variable): tf.convert_to_tensor(variable) for variable in self._model.variables}
        values = {key: value for key, value in values.items() if value.dtype.is_floating}
        halves = {key: tf.nn.l2_loss(_in_range(value)) for key, value in values.items()}
        halved = dict(zip(halves, np.array([*halves.values()], np.float64), strict=True))
        suspects = [key for key, value in halved.items() if not np.isfinite(value)]  # it may be the square alone
        broken = {key for key in suspects if not bool(tf.reduce_all(tf.math.is_finite(values[key])))}
        trained = {id(weight) for weight in self._model.trainable_variables}
        return float(np.sqrt(2 * sum(value for key, value in halved.items() if key in trained))), broken


def _in_range(value: tf.Tensor) -> tf.Tensor:
    return tf.cast(value, tf.float32) if value.dtype.size < 4 else value


def weight_norms(model: keras.Model) -> np.ndarray:
    """Return the L2 norm of each weight that is trained, float64 `[weights]`."""
    halves = [tf.nn.l2_loss(_in_range(tf.convert_to_tensor(weight))) for weight in model.trainable_variables]
    return np.sqrt(2 * np.array(halves, np.float64))


def are_other_weights(model: keras.Model, norms: np.ndarray | None) -> bool:
    """Return whether a model has other weights than it had when it had these norms; False where none are known."""
    if norms is None:
        return False
    now = weight_norms(model)
    return now.shape != norms.shape or not np.allclose(now, norms, rtol=SAME, atol=0.0, equal_nan=True)
