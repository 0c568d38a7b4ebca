"""Bound the norm of each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
from keras.optimizers.schedules import LearningRateSchedule

from gradrecipes.gradients.clipping.method import (
    Clipped,
    SerializableMethod,
    StepGradients,
    bound_of,
    bounded_each,
    clip_tensors,
    require_positive,
)
from gradrecipes.gradients.packing import TensorLike


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
