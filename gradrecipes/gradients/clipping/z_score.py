"""Bound the norm of the gradient where it stands out from those of the steps before."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable
from gradrecipes.gradients.clipping.method import (
    LARGEST_BOUND,
    Clipped,
    SerializableMethod,
    StepGradients,
    bounded_globally,
    require_count,
    require_decay,
    require_positive,
)

DEVIATION_FLOOR = 1e-6  # in units of the norm; added to σ, as in the authors' code, so that σ = 0 divides nothing


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class by_z_score(SerializableMethod):  # noqa: N801
    r"""Clip only what stands out: norms more than z_t standard deviations above their moving mean.

    z = (‖g‖ − μ)/(σ + 1e-6); where z > z_t the norm becomes c = μ + z_t·σ·(z_t/z), the smaller the wilder the
    spike. μ and σ² are moving averages of the norm, with c in the place of a norm that was clipped to it:
    μ ← αμ + (1−α)n, then σ² ← ασ² + (1−α)(n−μ)². They start as mean and variance of the first norms.

    `max_norm` bounds the gradient at every step, as in the authors' code; without it the warm-up has no
    bound at all. Set it well above your usual norm, or it alone decides. Norms are unscaled and those of
    applied steps; a norm that is not finite, or zero, never enters: one NaN would stay in μ for ever.

    Args:
        threshold: z_t, positive.
        decay: α, above 0 and below 1.
        warm_up: Steps from which the first mean and variance are taken, at least 1.
        max_norm: The bound for every step, positive; None for none.

    References:
        Kumar et al. 2025, "ZClip", arXiv 2504.02507.
    """

    threshold: float = 2.5
    _: KW_ONLY
    decay: float = 0.97
    warm_up: int = 25
    max_norm: float | None = 1.0

    def __post_init__(self):
        require_positive(self.threshold, "threshold", "by_z_score")
        require_decay(self.decay, "decay", "0.97 remembers about 33 steps.")
        require_count(self.warm_up, "warm_up", "The authors use 25.")
        if self.max_norm is not None:
            require_positive(self.max_norm, "max_norm", "max_norm")

    def make_state(self, tensors: int) -> tuple[tf.Variable, ...]:
        """Return mean and variance of the norm, float64 `[2]`, and how many norms have entered."""
        moments = plain_variable(np.zeros(2), dtype=tf.float64, name="norm_mean_and_variance")
        return moments, plain_variable(0, dtype=tf.int64, name="entered_norms")

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        moments, entered = step.state
        mean, variance = tf.unstack(moments.read_value())
        count = entered.read_value()
        norm = step.unscaled_norm  # float64, as are the moments: the square of a norm above 1.8e19 is no float32
        warm = count < self.warm_up

        limit = z_score_bound(norm, mean, variance, self.threshold)
        highest = tf.constant(LARGEST_BOUND if self.max_norm is None else self.max_norm, tf.float64)
        bound = tf.where(warm, highest, tf.minimum(limit, highest))
        clipped = bounded_globally(step, tf.cast(bound, tf.float32))

        enters = step.may_enter & (norm > 0) & tf.math.is_finite(norm)
        learned = tf.where(
            warm,
            tf.stack(_with_one_more(mean, variance, count, norm)),
            tf.stack(_moving(mean, variance, self.decay, limit)),
        )
        moments.assign(tf.where(enters, learned, moments.read_value()))
        entered.assign_add(tf.cast(enters, tf.int64))
        return clipped


def z_score_bound(norm: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, threshold: float) -> tf.Tensor:
    """Return what ZClip bounds a norm by: itself within the threshold, else μ + z_t²·σ/z.

    Args:
        norm: float64 scalar, the norm of this step.
        mean: float64 scalar, μ.
        variance: float64 scalar, σ².
        threshold: z_t.

    Example:
        >>> mean, variance = tf.constant(1.0, tf.float64), tf.constant(0.04, tf.float64)
        >>> [round(float(z_score_bound(tf.constant(n, tf.float64), mean, variance, 2.5)), 3) for n in (1.4, 3.0)]
        [1.4, 1.125]
    """
    deviation = tf.sqrt(variance)
    score = (norm - mean) / (deviation + DEVIATION_FLOOR)
    stands_out = score > threshold
    return tf.where(stands_out, mean + threshold**2 * deviation / tf.where(stands_out, score, 1.0), norm)


def _with_one_more(mean: tf.Tensor, variance: tf.Tensor, count: tf.Tensor, value: tf.Tensor) -> list[tf.Tensor]:
    """Return mean and variance of the values so far with another one (Welford)."""
    number = tf.cast(count + 1, tf.float64)
    new_mean = mean + (value - mean) / number
    return [new_mean, variance + ((value - mean) * (value - new_mean) - variance) / number]


def _moving(mean: tf.Tensor, variance: tf.Tensor, decay: float, value: tf.Tensor) -> list[tf.Tensor]:
    new_mean = decay * mean + (1 - decay) * value
    return [new_mean, decay * variance + (1 - decay) * tf.square(value - new_mean)]
