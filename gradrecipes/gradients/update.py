"""What enters the pipeline and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from gradrecipes.gradients.packing import PackedTensors, TensorLike
from gradrecipes.gradients.recorder import SampledUpdate


@dataclass(frozen=True)
class Update:
    """The gradients that one optimizer is about to apply, and what is known of them.

    Args:
        gradients: What `apply` takes, none of them None.
        apply: Applies them through the optimizer; called once, perhaps inside a `tf.cond`.
        measured: The true gradients where they differ from what is handed on (gradient accumulation);
            they are measured and not clipped here.
        loss: float scalar, the loss of the batch; None when it is not known.
        unit: What the gradients come multiplied by: a loss scale.
        bounded_elsewhere: Whether a later bound makes a gradient above 1.8e19 harmless.
        lower_scale: What a loss scaler does about a gradient that is not finite while the loss is. Were the
            step skipped without it, a scale that is too high would stay so, and every step be skipped.
        weights: Reads the variables that the gradients belong to, as they are at the time of the call.
        unit_axes: See `StepGradients`.
        owner: Names the optimizer, and which of its updates in a step it is: each has a memory of its own.
        alone: Whether no update came before it in the step, and no other optimizer applies gradients.
        variables: What the gradients belong to, where they are recorded by variable.
    """

    gradients: Sequence[TensorLike]
    apply: Callable[[Sequence[TensorLike]], None]
    measured: Sequence[TensorLike] | None = None
    loss: tf.Tensor | None = None
    unit: tf.Tensor | float = 1.0
    bounded_elsewhere: bool = False
    lower_scale: Callable[[], None] | None = None
    weights: Callable[[], PackedTensors] | None = None
    unit_axes: Sequence[tuple[int, ...] | None] | None = None
    owner: str = "0"
    alone: bool = True
    variables: Sequence[Any] | None = None


@dataclass(frozen=True)
class StepOutcome:
    """What a pipeline did with one update.

    Attributes:
        code: int64 scalar, a key of `gradrecipes.core.trace.OUTCOMES`.
        gradient_norm: float32 scalar, global norm of the unscaled gradient before clipping.
        clip_factor: float32 scalar, what the gradient was multiplied by.
        norms: float32 `[n]`, norm of each unscaled gradient before clipping.
        sampled: What else was measured, in a step that is sampled.
        variables: What the gradients belong to, where that is known.
    """

    code: tf.Tensor
    gradient_norm: tf.Tensor
    clip_factor: tf.Tensor
    norms: tf.Tensor
    sampled: SampledUpdate | None = None
    variables: Sequence[Any] | None = None


def joined(outcomes: Sequence[StepOutcome]) -> StepOutcome:
    """Return the outcome of a step of several updates, whether of several optimizers or of one."""
    norms = tf.concat([outcome.norms for outcome in outcomes], axis=0)
    totals = tf.stack([outcome.gradient_norm for outcome in outcomes])
    largest = tf.maximum(tf.reduce_max(totals), 1.0)
    return StepOutcome(
        tf.reduce_max(tf.stack([outcome.code for outcome in outcomes])),
        largest * tf.sqrt(tf.reduce_sum(tf.square(totals / largest))),
        tf.reduce_min(tf.stack([outcome.clip_factor for outcome in outcomes])),
        norms,
        variables=[variable for outcome in outcomes for variable in outcome.variables or ()] or None,
    )
