"""What a clipping method is given and gives back, and the bounds and checks that several methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule
from keras.saving import deserialize_keras_object

from gradrecipes.compat.tensorflow_private import rare_cond
from gradrecipes.core.arguments import is_number, is_positive
from gradrecipes.gradients.norms import MAX_SINGLE_FACTOR_NORM, Norms, measure_norms
from gradrecipes.gradients.packing import PackedTensors, TensorLike


class Clipped(NamedTuple):
    """Gradients after clipping.

    Attributes:
        packed: The bounded gradients, or, where there is a `scale`, what has to be multiplied by it.
        factor: float32 scalar, norm after by norm before, at most 1; 1 means that nothing was clipped.
        scale: float32 scalar by which every gradient still has to be multiplied, or None. An update that multiplies
            gradient by gradient needs less memory.
    """

    packed: PackedTensors
    factor: tf.Tensor
    scale: tf.Tensor | None = None

    def scaled(self) -> PackedTensors:
        """Return the bounded gradients."""
        return self.packed if self.scale is None else self.packed.scaled(self.scale)


@dataclass(frozen=True)
class StepGradients:
    """The gradients of one step, with what a method may need to bound them.

    Args:
        packed: The gradients, multiplied by `loss_scale`.
        norms: Their norms, in the same units.
        loss_scale: float32 scalar, what the gradients come multiplied by.
        any_norm: False where norms above `MAX_SINGLE_FACTOR_NORM` never reach the optimizer, so that the
            arithmetic for them can be left out.
        state: The variables that the method's `make_state` returned.
        learn: bool scalar, whether this step may enter the state: not when it is skipped.
        weights: Reads the variables that the gradients belong to, packed as they are.
        unit_axes: For each gradient the axes over which the norm of one output unit is taken, or None for a
            variable that is left alone; None where the layers are not known.
        paths: The path of each variable, as Keras names it; None where the variables are not known.
        optimizers: The optimizer that applies the gradients, and those within it.
    """

    packed: PackedTensors
    norms: Norms
    loss_scale: tf.Tensor
    any_norm: bool = True
    state: tuple[tf.Variable, ...] = ()
    learn: tf.Tensor | bool = True
    weights: Callable[[], PackedTensors] | None = None
    unit_axes: Sequence[tuple[int, ...] | None] | None = None
    paths: Sequence[str] | None = None
    optimizers: Sequence[Any] = ()

    @property
    def unscaled_norm(self) -> tf.Tensor:
        """float64 scalar, the global norm in the units of the loss; no finite gradient overflows it."""
        largest, of_scaled = tf.cast(self.norms.largest, tf.float64), tf.cast(self.norms.of_scaled, tf.float64)
        return largest * of_scaled / tf.cast(self.loss_scale, tf.float64)

    @property
    def may_enter(self) -> tf.Tensor:
        """bool scalar, whether the step may enter a memory: it is applied and every entry is finite."""
        return tf.logical_and(tf.convert_to_tensor(self.learn), self.norms.finite)


class Clipping(Protocol):
    """What the pipeline asks of a clipping method."""

    def make_state(self, tensors: int) -> tuple[tf.Variable, ...]:
        """Return the variables in which the method remembers earlier steps of so many gradients."""

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients of a step, in the units in which they came."""


LARGEST_BOUND = float(np.finfo(np.float32).max)  # stands for "no bound": the largest norm float32 can name
SMALLEST_BOUND = float(np.finfo(np.float32).tiny)  # smaller ones count as 0 on many devices, and 0 / 0 is NaN
NEARLY_ONE = float(np.nextafter(np.float32(1), np.float32(0)))  # of a factor that rounds to 1 though it clips


def bounded_globally(step: StepGradients, max_norm: tf.Tensor | float) -> Clipped:
    """Bound the norm of the whole gradient, in the units of the loss, and keep its direction."""
    packed, norms = step.packed, step.norms
    bound = in_units_of(step, max_norm)
    factor = bound / tf.maximum(norms.total, bound)
    if not step.any_norm:
        return Clipped(packed, factor, scale=factor)

    def in_two_steps() -> list[tf.Tensor]:
        return packed.divided(norms.largest).scaled(bound / norms.of_scaled).cast_like(packed).flat()

    parts = rare_cond(
        norms.total <= tf.maximum(bound, MAX_SINGLE_FACTOR_NORM),
        lambda: packed.scaled(factor).flat(),
        in_two_steps,
    )
    return Clipped(packed.with_flat(parts), factor)


def bounded_each(step: StepGradients, max_norms: tf.Tensor | float) -> Clipped:
    """Bound the norm of each tensor by the same number or by its own, float32 `[n]`, in the units of the loss."""
    packed, norms = step.packed, step.norms
    bounds = in_units_of(step, max_norms)
    in_one_step = norms.of_each <= tf.maximum(bounds, MAX_SINGLE_FACTOR_NORM)
    factors_of_plain = bounds / tf.maximum(norms.of_each, bounds)

    def in_two_steps() -> list[tf.Tensor]:
        divided = packed.divided(tf.where(in_one_step, 1.0, packed.largest()))
        factors = tf.where(in_one_step, factors_of_plain, bounds / tf.sqrt(divided.squared_norms()))
        return divided.scaled(factors).cast_like(packed).flat()

    parts = rare_cond(tf.reduce_all(in_one_step), lambda: packed.scaled(factors_of_plain).flat(), in_two_steps)
    largest = tf.reduce_max(bounds)
    shares = tf.minimum(norms.of_each, bounds) / largest  # none above 1: squared, they cannot overflow
    after = largest * tf.sqrt(tf.reduce_sum(tf.square(shares)))
    clipped = tf.logical_not(tf.reduce_all(norms.of_each <= bounds))
    return Clipped(packed.with_flat(parts), factor_where(clipped, after / norms.total, norms))


def in_units_of(step: StepGradients, bounds: tf.Tensor | float) -> tf.Tensor:
    """Return bounds multiplied as the gradients of the step are, kept within what float32 can name."""
    bounds = float(bounds) if isinstance(bounds, int) else bounds  # which may be more than an int64 holds
    return tf.clip_by_value(tf.cast(bounds, tf.float32) * step.loss_scale, SMALLEST_BOUND, LARGEST_BOUND)


def factor_where(clipped: tf.Tensor, ratio: tf.Tensor, before: Norms) -> tf.Tensor:
    """Return the ratio of the norms where something was clipped, else 1; also 1 where there is no ratio."""
    ratio = tf.where(clipped, tf.minimum(ratio, NEARLY_ONE), 1.0)
    return tf.where(before.finite & (before.total > 0), ratio, 1.0)


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
