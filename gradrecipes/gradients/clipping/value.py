"""Clamp the entries of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from gradrecipes.gradients.clipping.method import (
    Clipped,
    SerializableMethod,
    StepGradients,
    bound_of,
    clip_tensors,
    require_positive,
)
from gradrecipes.gradients.norms import measure_norms
from gradrecipes.gradients.packing import TensorLike


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class by_value(SerializableMethod):  # noqa: N801
    """Clamp every entry of the gradient to the interval from -v to v.

    Changes the direction of the step. NaN passes through: combine it with a guard that skips.

    Args:
        max_value: The bound v, positive, or a schedule of the updates so far, as for a learning rate.
    """

    max_value: float | LearningRateSchedule = 0.5

    def __post_init__(self):
        require_positive(self.max_value, "max_value", "by_value", scheduled=True)

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        before = step.norms
        clamped = step.packed.clamped(bound_of(step, self.max_value) * step.loss_scale)
        factor = tf.minimum(1.0, measure_norms(clamped).total / before.total)
        return Clipped(clamped, tf.where(before.finite & (before.total > 0), factor, 1.0))


def clip_by_value(tensors: Sequence[TensorLike], max_value: float) -> list[TensorLike]:
    """Return the tensors with every entry clamped; see `by_value`."""
    return clip_tensors(tensors, by_value(max_value))
