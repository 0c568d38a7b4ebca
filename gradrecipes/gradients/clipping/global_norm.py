"""Bound the norm of the whole gradient."""

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
    bounded_globally,
    clip_tensors,
    require_positive,
)
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
