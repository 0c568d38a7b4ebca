"""Bound a gradient by a fixed number: its global norm, the norm of each tensor, or each entry."""

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
    bounded_each,
    bounded_globally,
    clip_tensors,
    require_positive,
)
from gradrecipes.gradients.norms import measure_norms
from gradrecipes.gradients.packing import TensorLike


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class by_global_norm(SerializableMethod):  # noqa: N801 - reads as the verb phrase it is: clipping=by_global_norm(1.0)
    r"""Bound the norm of the whole gradient and keep its direction: g·min(1, c / ‖g‖).

    The usual choice for exploding gradients. Unlike Keras' `global_clipnorm` it stays right for norms above
    1.8e19, where a sum of plain squares overflows and every gradient becomes NaN. A gradient within the bound
    is untouched to the bit, so nothing is added to the norm, where others add 1e-6.

    Args:
        max_norm: The bound c, positive, or a schedule of the updates so far. 1.0 suits most networks.

    References:
        Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063, algorithm 1.
    """

    max_norm: float | LearningRateSchedule = 1.0

    def __post_init__(self):
        require_positive(self.max_norm, "max_norm", "by_global_norm", scheduled=True)

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        return bounded_globally(step, bound_of(step, self.max_norm))


def clip_by_global_norm(tensors: Sequence[TensorLike], max_norm: float) -> list[TensorLike]:
    """Return the tensors with their global norm bounded; see `by_global_norm`."""
    return clip_tensors(tensors, by_global_norm(max_norm))


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class by_norm(SerializableMethod):  # noqa: N801
    r"""Bound the norm of each tensor on its own: g_i·min(1, c / ‖g_i‖).

    Changes the relative scale of the layers, and so the direction of the whole step.

    Args:
        max_norm: The bound c for each tensor, positive, or a schedule of the updates so far, as for a learning rate.
    """

    max_norm: float | LearningRateSchedule = 1.0

    def __post_init__(self):
        require_positive(self.max_norm, "max_norm", "by_norm", scheduled=True)

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        return bounded_each(step, bound_of(step, self.max_norm))


def clip_by_norm(tensors: Sequence[TensorLike], max_norm: float) -> list[TensorLike]:
    """Return the tensors, each with its norm bounded; see `by_norm`."""
    return clip_tensors(tensors, by_norm(max_norm))


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
