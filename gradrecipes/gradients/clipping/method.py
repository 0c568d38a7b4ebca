"""What a clipping method is given, what it gives back, and what all methods have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from gradrecipes.core.arguments import is_number, is_positive
from gradrecipes.gradients.norms import Norms, measure_norms
from gradrecipes.gradients.packing import PackedTensors, TensorLike


class Clipped(NamedTuple):
    """Gradients after clipping.

    Attributes:
        packed: The bounded gradients.
        factor: float32 scalar, norm after by norm before, at most 1; 1 means that nothing was clipped.
    """

    packed: PackedTensors
    factor: tf.Tensor


@dataclass(frozen=True)
class StepGradients:
    """The gradients of one step, with what a method may need to bound them.

    Args:
        packed: The gradients, multiplied by `unit`.
        norms: Their norms, in the same units.
        unit: float32 scalar, what the gradients come multiplied by: a loss scale.
        any_norm: False where norms above `LARGEST_SINGLE_FACTOR_NORM` never reach the optimizer, so that the
            arithmetic for them can be left out.
        state: The variables that the method's `make_state` returned.
        learn: bool scalar, whether this step may enter the state: not when it is skipped.
        weights: Reads the variables that the gradients belong to, packed as they are.
        unit_axes: For each gradient the axes over which the norm of one output unit is taken, or None for a
            variable that is left alone; None where the layers are not known.
    """

    packed: PackedTensors
    norms: Norms
    unit: tf.Tensor
    any_norm: bool = True
    state: tuple[tf.Variable, ...] = ()
    learn: tf.Tensor | bool = True
    weights: Callable[[], PackedTensors] | None = None
    unit_axes: Sequence[tuple[int, ...] | None] | None = None

    @property
    def unscaled_norm(self) -> tf.Tensor:
        """float64 scalar, the global norm in the units of the loss; no finite gradient overflows it."""
        largest, of_scaled = tf.cast(self.norms.largest, tf.float64), tf.cast(self.norms.of_scaled, tf.float64)
        return largest * of_scaled / tf.cast(self.unit, tf.float64)

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


class SerializableMethod:
    """Serialize a method by its arguments, and remember nothing unless the method says otherwise."""

    def make_state(self, tensors: int) -> tuple[tf.Variable, ...]:
        """Return no variables: the bound is fixed."""
        return ()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Clipping:
        """Make the method from its arguments."""
        return cls(**config)


def clip_tensors(tensors: Sequence[TensorLike], clipping: Clipping, **known: Any) -> list[TensorLike]:
    """Return tensors bounded by a method that needs no memory; `known` goes to `StepGradients`."""
    packed = PackedTensors(tensors)
    step = StepGradients(packed, measure_norms(packed), tf.constant(1.0), **known)
    return clipping.clip(step).packed.unpacked()


def require_positive(value: Any, name: str, method: str) -> None:
    """Refuse a bound that is no positive number, or one that float32 would hold as 0 or as infinity."""
    if is_positive(value):
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
