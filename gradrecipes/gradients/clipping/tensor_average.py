"""Bound the norm of each tensor by the moving average of its own norm."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable, rare_cond
from gradrecipes.gradients.clipping.method import (
    Clipped,
    SerializableMethod,
    StepGradients,
    bounded_each,
    bounded_globally,
    require_count,
    require_decay,
    require_positive,
)

MAX_AVERAGED_RATIO = 10.0  # times its bound: what one step can add to the average of a tensor that finds a new level


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
