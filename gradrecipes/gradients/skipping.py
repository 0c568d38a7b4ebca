"""Which steps are left out: those whose loss or gradient is not finite, overflows, or is an outlier."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import host_value, plain_variable, shared_function
from gradrecipes.core.trace import (
    APPLIED,
    SKIPPED_GRADIENT,
    SKIPPED_LOSS,
    SKIPPED_LOSS_OUTLIER,
    SKIPPED_NORM_OUTLIER,
    SKIPPED_OVERFLOW,
)
from gradrecipes.gradients.norms import MAX_SINGLE_FACTOR_NORM, Norms, as_float32
from gradrecipes.gradients.update import Update

WINDOW = 128  # steps that are remembered; OLMo-core, SkipStepOptimizer
WARM_UP = 64  # remembered steps from which the statistics of the window count; OLMo-core
MIN_RATIO = 2.0  # an outlier is above so many times the largest of the window: tails may be heavy
EARLY_STEPS = 8  # remembered steps before the limit of the first steps counts
EARLY_RATIO = 100.0  # in the first steps an outlier is above a hundred times all that was seen
MAX_REMEMBERED = 1e18  # its square is still a float32
RENEW_EVERY, RENEW_EARLY = 32, 8  # remembered steps from one computation of the limits to the next, and in the warm-up
NO_LIMIT = float(np.finfo(np.float32).max)  # below infinity, so that an infinite value is above it
_NO_LIMITS = [NO_LIMIT, NO_LIMIT, -1.0, 0.0]  # see `OutlierDetector.limits`


class Outliers(NamedTuple):
    """What is an outlier in one step.

    Attributes:
        loss: bool scalar.
        norm: bool scalar.
        harmful: bool scalar, whether the norm is an outlier among those of the whole training too.
    """

    loss: tf.Tensor
    norm: tf.Tensor
    harmful: tf.Tensor


class OutlierDetector:
    r"""Compare each step's loss and gradient norm with the last 128: an outlier has x > μ + kσ and x > 2·max.

    One-sided: a value may fall as it likes. The second condition is for small batches, whose losses and norms have
    heavy tails: a hard example is no fault. Harmful is only a step whose norm is above twice the largest of the whole
    training as well: late in a training that learns, a hard example has a large loss, and a gradient such as there
    were at the beginning, where it did no harm. A loss by itself moves no weight. Values that are not finite never
    enter the statistics; outliers enter as the limit, so that one of them hardly moves it, while a lasting change of
    level (a new phase of the data) is accepted within a few steps, as the limit doubles with each. Of the first steps,
    before there are statistics, only a value above a hundred times all earlier ones is an outlier.

    The limits are stored, and computed anew every 32 steps (8 in the first 64): in between, a step costs one
    comparison. A value above a stored limit is judged again by statistics that include the step before it, so that
    nothing is an outlier for the age of a limit. Where the true limit has fallen since, a value between the two passes.

    Args:
        sigmas: k, standard deviations above the mean; 6 is OLMo-core's.

    Attributes:
        values: float32 `[128, 2]`, the remembered losses and norms, a ring.
        count: int64, how many were ever remembered.
        limits: float32 `[4]`, the stored limits of loss and norm, the count up to which they hold, and the largest norm
            of the training up to when they were computed.

    References:
        OLMo-core's `SkipStepOptimizer` (window 128, 6 σ, active after 64 values).
    """

    def __init__(self, sigmas: float = 6.0):
        self.sigmas = sigmas
        self.values = plain_variable(np.zeros([WINDOW, 2], np.float32), name="remembered")
        self.count = plain_variable(0, dtype=tf.int64, name="remembered_count")
        self.limits = plain_variable(_NO_LIMITS, dtype=tf.float32, name="outlier_limits")

    def needs_judgement(self, pair: tf.Tensor) -> tf.Tensor:
        """Return whether a step has to go through `judge`; else `remember` is enough.

        Args:
            pair: float32 `[2]`, loss and unscaled gradient norm; 0 for a loss that is not known.
        """
        count = tf.cast(self.count.read_value(), tf.float32)
        return ~tf.reduce_all(tf.stack([pair[0], pair[1], count, 0.0]) <= self.limits.read_value())

    def remember(self, pair: tf.Tensor) -> None:
        """Remember a step that needs no judgement."""
        self._write(pair, self.count.read_value())
        self.count.assign_add(1)

    def judge(self, pair: tf.Tensor) -> Outliers:
        """Judge one step by all that was remembered before it, store the limits, and remember it."""
        count, values = self.count.read_value(), self.values.read_value()
        kept, limits, loss_outlies, norm_outlies, harmful = _judged(
            values, count, pair, self.limits.read_value()[3], tf.constant(self.sigmas, tf.float32)
        )
        self._write(kept, count)
        self.count.assign_add(tf.cast(tf.math.is_finite(pair[1]), tf.int64))
        self.limits.assign(limits)
        return Outliers(loss_outlies, norm_outlies, harmful)

    def _write(self, pair: tf.Tensor, count: tf.Tensor) -> None:
        self.values.scatter_update(tf.IndexedSlices(pair, count % WINDOW))

    def forget(self) -> None:
        """Begin anew: what was remembered means nothing any more."""
        self.values.assign(tf.zeros([WINDOW, 2]))
        self.count.assign(0)
        self.limits.assign(_NO_LIMITS)

    def remembered(self, *, since: int = 0) -> np.ndarray:
        """Return the losses, oldest first, float32 `[n]`; empty while none is known.

        Args:
            since: What `count` was when the first of them had not come yet.
        """
        count, losses = int(host_value(self.count)), host_value(self.values)[:, 0]
        oldest = count % WINDOW if count >= WINDOW else 0
        losses = np.concatenate([losses[oldest:], losses[:oldest]])[:count]
        return losses[max(len(losses) - max(count - since, 0), 0) :] if losses.any() else losses[:0]

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The state, by name, to be saved with a run."""
        return {"values": self.values, "count": self.count, "limits": self.limits}


@shared_function(
    tf.TensorSpec([WINDOW, 2]), tf.TensorSpec([], tf.int64), tf.TensorSpec([2]), tf.TensorSpec([]), tf.TensorSpec([])
)
def _judged(
    values: tf.Tensor, count: tf.Tensor, pair: tf.Tensor, largest_norm: tf.Tensor, sigmas: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Return what is remembered of a step, what is stored as limits, and what is an outlier."""
    seen = tf.minimum(count, WINDOW)
    share = tf.cast(tf.range(WINDOW, dtype=tf.int64) < seen, tf.float32) / tf.cast(tf.maximum(seen, 1), tf.float32)
    mean = tf.linalg.matvec(values, share, transpose_a=True)
    variance = tf.linalg.matvec(tf.square(values - mean), share, transpose_a=True)
    largest = tf.reduce_max(values, axis=0)
    largest_norm = tf.maximum(largest_norm, largest[1])
    late = tf.maximum(mean + sigmas * tf.sqrt(variance), MIN_RATIO * largest)
    limit = tf.where(seen >= WARM_UP, late, tf.where(seen >= EARLY_STEPS, EARLY_RATIO * largest, np.inf))
    limit = tf.where(limit > 0, tf.minimum(limit, NO_LIMIT), NO_LIMIT)  # a loss below 0 has no largest to go by
    finite = tf.math.is_finite(pair)
    outlying = finite & (pair > limit)
    most = tf.minimum(tf.where(seen >= WARM_UP, limit, MIN_RATIO * largest), MAX_REMEMBERED)
    kept = tf.where(finite, tf.where(outlying, most, pair), mean)
    before = tf.gather(values, count % WINDOW)  # a slice would be compiled anew for each place
    kept = tf.where(finite[1] & tf.math.is_finite(kept), kept, before)
    every = tf.where(count < WARM_UP, tf.cast(RENEW_EARLY, tf.int64), RENEW_EVERY)
    last = tf.cast((count // every + 1) * every - 1, tf.float32)
    limits = tf.where(outlying, tf.minimum(MIN_RATIO * limit, NO_LIMIT), limit)
    limits = tf.concat([limits, [last, largest_norm]], axis=0)
    harmful = outlying[1] & (pair[1] > MIN_RATIO * largest_norm)
    return kept, limits, outlying[0], outlying[1], harmful


def decide(
    update: Update,
    norms: Norms,
    loss_scale: tf.Tensor,
    detector: OutlierDetector | None,
    *,
    overflows: tf.Tensor,
    clips: bool,
) -> tf.Tensor:
    """Return whether an update is applied, and else why it is left out, int64, a key of `OUTCOMES`.

    Args:
        update: The update.
        norms: The norms of its gradients.
        loss_scale: float32 scalar, what they come multiplied by.
        detector: Judges finite losses and norms, or None.
        overflows: bool scalar, whether a norm is above what an optimizer can square.
        clips: Whether the gradients are clipped before the optimizer gets them.
    """
    if clips:
        overflows = norms.total > MAX_SINGLE_FACTOR_NORM
    elif update.bounded_elsewhere:
        overflows = tf.constant(False)
    outcome = tf.constant(APPLIED)
    if detector is not None:
        outliers = detector.judge(tf.stack([as_float32(update.loss, missing=0.0), norms.total / loss_scale]))
        reason = tf.where(outliers.loss, SKIPPED_LOSS_OUTLIER, SKIPPED_NORM_OUTLIER)
        outcome = tf.where(outliers.harmful, reason, outcome)
    outcome = tf.where(overflows, SKIPPED_OVERFLOW, outcome)
    outcome = tf.where(norms.finite, outcome, SKIPPED_GRADIENT)
    if update.loss is not None:
        outcome = tf.where(tf.math.is_finite(update.loss), outcome, SKIPPED_LOSS)
    return tf.cast(outcome, tf.int64)
