"""Tell an absurd loss or gradient norm from the ordinary ups and downs of the same training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gradrecipes.compat.plain_variable import plain_variable

WINDOW = 128  # steps that are remembered; OLMo-core, SkipStepOptimizer
WARM_UP = 64  # remembered steps before the verdict of the window counts; OLMo-core
SMALLEST_RATIO = 2.0  # an absurd value is above so many times the largest of the window: tails may be heavy
EARLY = 8  # remembered steps before the verdict of the first steps counts
EARLY_RATIO = 100.0  # in the first steps: absurd is what is above a hundred times all that was seen
LARGEST = 1e18  # its square is still a float32


class Verdict(NamedTuple):
    """What is absurd in one step.

    Attributes:
        loss: bool scalar.
        norm: bool scalar.
    """

    loss: tf.Tensor
    norm: tf.Tensor


class SpikeWatch:
    r"""Compare each step's loss and gradient norm with the last 128: absurd is x > μ + kσ and x > 2·max.

    One-sided: a value may fall as it likes. The second condition is for small batches, whose losses and norms have
    heavy tails: a hard example is no fault. Values that are not finite never enter the statistics; absurd ones enter
    as the limit, so that one of them hardly moves it, while a lasting change of level (a new phase of the data) is
    taken for what it is within a few steps, as the limit doubles with each. Of the first steps, before there are
    statistics, only a value above a hundred times all earlier ones is absurd.

    Args:
        sigmas: k, standard deviations above the mean; 6 is OLMo-core's.

    Attributes:
        values: float32 `[2, 128]`, the remembered losses and norms, a ring.
        count: int64, how many were ever remembered.

    References:
        OLMo-core's `SkipStepOptimizer` (window 128, 6 σ, active after 64 values).
    """

    def __init__(self, sigmas: float = 6.0):
        self.sigmas = sigmas
        self.values = plain_variable(np.zeros([2, WINDOW], np.float32), name="remembered")
        self.count = plain_variable(0, dtype=tf.int64, name="remembered_count")

    def judge(self, loss: tf.Tensor | None, norm: tf.Tensor) -> Verdict:
        """Judge one step and remember it.

        Args:
            loss: float32 scalar, or None where it is not known.
            norm: float32 scalar, the unscaled global gradient norm.
        """
        pair = tf.stack([tf.constant(np.nan) if loss is None else loss, norm])
        count, values = self.count.read_value(), self.values.read_value()
        seen = tf.minimum(count, WINDOW)
        share = tf.cast(tf.range(WINDOW, dtype=tf.int64) < seen, tf.float32) / tf.cast(tf.maximum(seen, 1), tf.float32)
        mean = tf.linalg.matvec(values, share)
        variance = tf.linalg.matvec(tf.square(values - mean[:, None]), share)
        largest = tf.reduce_max(values, axis=1)
        late = tf.maximum(mean + self.sigmas * tf.sqrt(variance), SMALLEST_RATIO * largest)
        limit = tf.where(seen >= WARM_UP, late, tf.where(seen >= EARLY, EARLY_RATIO * largest, np.inf))
        finite = tf.math.is_finite(pair)
        absurd = finite & (pair > limit) & (limit > 0)
        most = tf.minimum(tf.where(seen >= WARM_UP, limit, SMALLEST_RATIO * largest), LARGEST)
        kept = tf.where(finite, tf.where(absurd, most, pair), mean)
        self._remember(kept, count, finite[1])
        return Verdict(absurd[0], absurd[1])

    def _remember(self, pair: tf.Tensor, count: tf.Tensor, worth: tf.Tensor) -> None:
        place = tf.cast(count % WINDOW, tf.int32)
        before = tf.gather(self.values.read_value(), place, axis=1)  # a slice would be compiled anew for each place
        pair = tf.where(worth & tf.math.is_finite(pair), pair, before)
        self.values.scatter_nd_update(tf.stack([[0, place], [1, place]]), pair)
        self.count.assign_add(tf.cast(worth, tf.int64))

    def forget(self) -> None:
        """Begin anew: what was remembered means nothing any more."""
        self.values.assign(tf.zeros([2, WINDOW]))
        self.count.assign(0)

    def remembered(self) -> np.ndarray:
        """Return the losses, oldest first, float32 `[n]`; empty while none is known."""
        count, losses = int(self.count.numpy()), self.values.numpy()[0]
        losses = losses[:count] if count < WINDOW else np.roll(losses, -(count % WINDOW))
        return losses if losses.any() else losses[:0]

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The state, by name, to be saved with a run."""
        return {"values": self.values, "count": self.count}
