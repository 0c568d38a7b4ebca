"""Bound a gradient by its own past: a percentile, mean and deviation, or the moving average of each tensor."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable, rare_cond
from gradrecipes.gradients.clipping.method import (
    LARGEST_BOUND,
    Clipped,
    SerializableMethod,
    StepGradients,
    bounded_each,
    bounded_globally,
    require_between,
    require_count,
    require_decay,
    require_positive,
)

LARGEST_WINDOW = 100_000  # steps; a selection from more would cost more than a step of a small network
DEVIATION_FLOOR = 1e-6  # in units of the norm; added to σ, as in the authors' code, so that σ = 0 divides nothing
MAX_AVERAGED_RATIO = 10.0  # times its bound: what one step can add to the average of a tensor that finds a new level


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class by_percentile(SerializableMethod):  # noqa: N801
    """Bound the whole gradient by the p-th percentile of its own past norms, so that no bound need be tuned.

    With the default, nine steps of ten are clipped to the level of the calmest tenth: the step is nearly of
    constant length, and its direction is kept. Take 90 or more where only spikes are to be cut.

    The norms that are remembered are those before clipping, unscaled, of applied steps; a norm that is not
    finite, or zero, never enters. This step's own norm is not among them, so that a spike cannot raise the
    bound that is to catch it. The percentile is always a norm that was observed (the lower one where it falls
    between two): a mean of neighbours would be drawn up by a single spike as long as the memory is short.
    Without `max_norm` the very first step has no bound, as there is no past. A run that explodes for longer
    than the window forgets what healthy norms were.

    Args:
        percentile: p, above 0 and at most 100.
        window: Number of earlier norms that count, from 1 to 100,000.
        max_norm: A bound that holds besides, the first step included; None for none.

    References:
        Seetharaman et al. 2020, "AutoClip", arXiv 2007.14469. There the current norm counts too, and the
        history is the whole run.
    """

    percentile: float = 10.0
    _: KW_ONLY
    window: int = 1000
    max_norm: float | None = None

    def __post_init__(self):
        require_between(self.percentile, "percentile", 0, 100, "10 clips nine steps of ten, 90 clips one step of ten.")
        require_count(self.window, "window", "AutoClip works well from about 1000.")
        require_between(self.window, "window", 0, LARGEST_WINDOW, "A shorter window follows the training faster.")
        if self.max_norm is not None:
            require_positive(self.max_norm, "max_norm", "max_norm")

    def make_state(self, tensors: int) -> tuple[tf.Variable, ...]:
        """Return the past norms, float32 `[window]`, the largest float32 where none is, and how many have entered."""
        past = plain_variable(np.full(self.window, LARGEST_BOUND, np.float32), name="past_norms")
        return past, plain_variable(0, dtype=tf.int64, name="entered_norms")

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        past, entered = step.state
        count = entered.read_value()
        bound = percentile_of_past(past.read_value(), count, self.percentile)
        if self.max_norm is not None:
            bound = tf.minimum(bound, self.max_norm)
        clipped = bounded_globally(step, bound)

        norm = tf.cast(step.unscaled_norm, tf.float32)
        enters = step.may_enter & (norm > 0) & tf.math.is_finite(norm)
        place = tf.reshape(count % self.window, [1])
        kept = tf.where(enters, norm[None], tf.gather(past.read_value(), place))
        past.scatter_nd_update(place[:, None], kept)
        entered.assign_add(tf.cast(enters, tf.int64))
        return clipped


def percentile_of_past(past: tf.Tensor, count: tf.Tensor, percentile: float) -> tf.Tensor:
    """Return the p-th percentile of the norms remembered so far, or the largest float32 where there is none.

    Args:
        past: float32 `[window]`, norms in any order, the largest float32 where none is yet.
        count: int64 scalar, how many norms have ever entered.
        percentile: p, above 0 and at most 100.
    """
    window = past.shape[0]
    lowest, _ = tf.math.top_k(-past, k=math.floor(percentile * (window - 1) / 100) + 1)  # the sought one is the last
    remembered = tf.cast(tf.minimum(count, window), tf.float64)
    rank = tf.cast(tf.floor(percentile * (tf.maximum(remembered, 1.0) - 1.0) / 100.0), tf.int64)
    return tf.minimum(-tf.gather(lowest, rank), LARGEST_BOUND)


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


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class adaptive_by_tensor(SerializableMethod):  # noqa: N801
    r"""Bound each tensor by a little more than its own usual norm, so that no layer pays for another's spike.

    After the warm-up: g_i·min(1, λγ_i/‖g_i‖) with γ_i ← βγ_i + (1−β)·min(‖g_i‖, λγ_i). During the warm-up the
    whole gradient is bounded by `max_norm`, and γ_i averages what that leaves of each tensor.

    The trap of the method is a norm that is tiny in the beginning (a branch that starts at zero, a plateau):
    as γ_i averages only clipped norms, it grows by a thousandth a step, and the layer is frozen. Three things
    prevent it. A zero norm is no norm and does not enter. The warm-up averages, where the paper keeps the
    smallest norm it meets. And a tensor that was clipped in 1/(1−β) steps in a row has no spike but a new
    level: from then on γ_i takes up to ten times the bound, until the norm is within it again.

    Norms are unscaled and those of applied steps; in a step with a non-finite entry nothing is learned. A
    tensor without a past (no gradient so far) is bounded by `max_norm`.

    Args:
        max_ratio: λ, at least 1.
        decay: β, above 0 and below 1.
        warm_up: Steps before a tensor's own average decides, at least 1.
        max_norm: The bound of the whole gradient during the warm-up, positive.

    References:
        Wang et al. 2025, "AdaGC", arXiv 2502.11034.
    """

    max_ratio: float = 1.05
    _: KW_ONLY
    decay: float = 0.98
    warm_up: int = 100
    max_norm: float = 1.0

    def __post_init__(self):
        require_positive(self.max_ratio, "max_ratio", "adaptive_by_tensor")
        if self.max_ratio < 1:
            raise ValueError(
                f"`max_ratio` must be at least 1. Received: max_ratio={self.max_ratio!r}. Below 1 every step is "
                "clipped, the average sees only what is clipped, and the bound shrinks to nothing."
            )
        require_decay(self.decay, "decay", "0.98 remembers about 50 steps.")
        require_count(self.warm_up, "warm_up", "The authors use 100.")
        require_positive(self.max_norm, "max_norm", "adaptive_by_tensor")

    def make_state(self, tensors: int) -> tuple[tf.Variable, ...]:
        """Return the average norms, float32 `[n]`, 0 where none is yet, the runs of clipped steps, and the steps."""
        averages = plain_variable(np.zeros(tensors, np.float32), name="average_norms")
        runs = plain_variable(np.zeros(tensors, np.int64), name="runs_of_clipped_steps")
        return averages, runs, plain_variable(0, dtype=tf.int64, name="entered_steps")

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        averages, runs, entered = (variable.read_value() for variable in step.state)
        warm = entered < self.warm_up
        bounds = tf.where(averages > 0, self.max_ratio * averages, self.max_norm)

        def flat_and_factor(clipped: Clipped) -> list[tf.Tensor]:
            return [*clipped.scaled().flat(), clipped.factor]

        *parts, factor = rare_cond(
            warm,
            lambda: flat_and_factor(bounded_globally(step, self.max_norm)),
            lambda: flat_and_factor(bounded_each(step, bounds)),
        )

        sizes = step.norms.of_each / step.loss_scale
        enters = step.may_enter & (sizes > 0) & tf.math.is_finite(sizes)
        runs_now = tf.where(warm | (sizes <= bounds), tf.zeros_like(runs), runs + 1)
        new_level = tf.cast(runs_now, tf.float32) > 1.0 / (1.0 - self.decay)
        averaged = tf.minimum(sizes, bounds * tf.where(new_level, MAX_AVERAGED_RATIO, 1.0))
        averaged = tf.where(warm, sizes * factor, averaged)
        learned = tf.where(averages > 0, self.decay * averages + (1 - self.decay) * averaged, averaged)
        step.state[0].assign(tf.where(enters, learned, averages))
        step.state[1].assign(tf.where(enters, runs_now, runs))
        step.state[2].assign_add(tf.cast(step.may_enter, tf.int64))
        return Clipped(step.packed.with_flat(parts), factor)
