"""What all clipping methods have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule
from keras.saving import deserialize_keras_object

from gradrecipes.core.arguments import is_number, is_positive
from gradrecipes.gradients.norms import measure_norms
from gradrecipes.gradients.packing import PackedTensors, TensorLike
from gradrecipes.gradients.step_gradients import Clipping, StepGradients


class SerializableMethod:
    """Serialize a method by its arguments, and remember nothing unless the method says otherwise."""

    def make_state(self, tensors: int) -> tuple[tf.Variable, ...]:
        """Return no variables where the bound is a number; else the count of steps by which it is scheduled."""
        scheduled = any(isinstance(value, LearningRateSchedule) for value in vars(self).values())
        return (tf.Variable(0, dtype=tf.int64, trainable=False, name="clipped_updates"),) if scheduled else ()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the method from its arguments."""
        made = {name: deserialize_keras_object(part) for name, part in config.items() if isinstance(part, dict)}
        return cls(**{**config, **made})


def clip_tensors(tensors: Sequence[TensorLike], clipping: Clipping, **known: Any) -> list[TensorLike]:
    """Return tensors bounded by a method that needs no memory; `known` goes to `StepGradients`."""
    packed = PackedTensors(tensors)
    step = StepGradients(packed, measure_norms(packed), tf.constant(1.0), **known)
    return clipping.clip(step).scaled().unpacked()


def bound_of(step: StepGradients, value: float | LearningRateSchedule) -> tf.Tensor | float:
    """Return the bound of a step: the number, or what a schedule gives for the updates so far, this one not counted."""
    if not isinstance(value, LearningRateSchedule):
        return value
    (count,) = step.state
    bound = tf.cast(value(count.read_value()), tf.float32)
    count.assign_add(tf.cast(step.may_enter, tf.int64))
    return bound


def require_positive(value: Any, name: str, method: str, *, scheduled: bool = False) -> None:
    """Refuse a bound that is no positive number, or one that float32 would hold as 0 or as infinity."""
    if is_positive(value) or (scheduled and isinstance(value, LearningRateSchedule)):
        return
    raise ValueError(
        f"`{name}` must be a positive number. Received: {name}={value!r}. float32 must hold it, 1.2e-38 to 3.4e38. "
        f"To switch clipping off, leave `{method}` out instead."
    )


def require_between(value: Any, name: str, lowest: float, highest: float, remedy: str) -> None:
    """Refuse a number that is not above `lowest` and at most `highest`."""
    if is_number(value) and lowest < value <= highest:
        return
    raise ValueError(
        f"`{name}` must be a number above {lowest:g} and at most {highest:g}. Received: {name}={value!r}. {remedy}"
    )


def require_decay(value: Any, name: str, remedy: str) -> None:
    """Refuse what is no share of the past, strictly between 0 and 1."""
    if is_number(value) and 0 < value < 1:
        return
    raise ValueError(f"`{name}` must be a number between 0 and 1, both left out. Received: {name}={value!r}. {remedy}")


def require_count(value: Any, name: str, remedy: str) -> None:
    """Refuse what is no whole number of steps, at least 1, that an int32 counts."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31:
        return
    raise ValueError(f"`{name}` must be a whole number of steps, at least 1. Received: {name}={value!r}. {remedy}")
