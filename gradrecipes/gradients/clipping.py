"""The ways to bound a gradient: by its global norm, tensor by tensor, or by value.

Each is one function of tensors (`clip_by_global_norm` and so on) and one small object that holds its bound
(`by_global_norm(1.0)` and so on), which callbacks and models take and which serializes with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

from gradrecipes.gradients.norms import Norms, measure_norms
from gradrecipes.gradients.packing import PackedTensors, TensorLike

LARGEST_SINGLE_FACTOR_NORM = 1e30  # above it, bound / norm nears float32's smallest number: divide in two steps


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


class Clipping(Protocol):
    """What the pipeline asks of a clipping method."""

    def make_state(self, tensors: int) -> tuple[tf.Variable, ...]:
        """Return the variables in which the method remembers earlier steps of so many gradients."""

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients of a step, in the units in which they came."""


class _Serializable:
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


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class by_global_norm(_Serializable):  # noqa: N801 - reads as the verb phrase it is: GradientGuard(clipping=by_global_norm(1.0))
    r"""Bound the norm of the whole gradient and keep its direction: g·min(1, c / ‖g‖).

    The usual choice for exploding gradients. Unlike Keras' `global_clipnorm` it stays right for norms above
    1.8e19, where a sum of plain squares overflows and every gradient becomes NaN. A gradient within the bound
    is untouched to the bit, so nothing is added to the norm, where others add 1e-6.

    Args:
        max_norm: The bound c, positive. 1.0 suits most networks.

    References:
        Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063, algorithm 1.
    """

    max_norm: float = 1.0

    def __post_init__(self):
        _require_positive(self.max_norm, "max_norm", "by_global_norm")

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        packed, norms = step.packed, step.norms
        bound = self.max_norm * step.unit
        factor = bound / tf.maximum(norms.total, bound)
        if not step.any_norm:
            return Clipped(packed.scaled(factor), factor)

        def in_two_steps() -> list[tf.Tensor]:
            return packed.divided(norms.largest).scaled(bound / norms.of_scaled).cast_like(packed).flat()

        parts = tf.cond(
            norms.total <= tf.maximum(bound, LARGEST_SINGLE_FACTOR_NORM),
            lambda: packed.scaled(factor).flat(),
            in_two_steps,
        )
        return Clipped(packed.with_flat(parts), factor)


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class by_norm(_Serializable):  # noqa: N801
    r"""Bound the norm of each tensor on its own: g_i·min(1, c / ‖g_i‖).

    Changes the relative scale of the layers, and so the direction of the whole step.

    Args:
        max_norm: The bound c for each tensor, positive.
    """

    max_norm: float = 1.0

    def __post_init__(self):
        _require_positive(self.max_norm, "max_norm", "by_norm")

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        packed, norms = step.packed, step.norms
        bound = self.max_norm * step.unit
        in_one_step = norms.of_each <= tf.maximum(bound, LARGEST_SINGLE_FACTOR_NORM)
        factors_of_plain = bound / tf.maximum(norms.of_each, bound)

        def in_two_steps() -> list[tf.Tensor]:
            divided = packed.divided(tf.where(in_one_step, 1.0, packed.largest()))
            factors = tf.where(in_one_step, factors_of_plain, bound / tf.sqrt(divided.squared_norms()))
            return divided.scaled(factors).cast_like(packed).flat()

        parts = tf.cond(tf.reduce_all(in_one_step), lambda: packed.scaled(factors_of_plain).flat(), in_two_steps)
        shares = tf.minimum(norms.of_each / bound, 1.0)  # none above 1: squared, they cannot overflow
        after = bound * tf.sqrt(tf.reduce_sum(tf.square(shares)))
        factor = tf.where(tf.reduce_all(norms.of_each <= bound), 1.0, after / norms.total)
        return Clipped(packed.with_flat(parts), _factor(factor, norms))


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class by_value(_Serializable):  # noqa: N801
    """Clamp every entry of the gradient to the interval from -v to v.

    Changes the direction of the step. NaN passes through: combine it with a guard that skips.

    Args:
        max_value: The bound v, positive.
    """

    max_value: float = 0.5

    def __post_init__(self):
        _require_positive(self.max_value, "max_value", "by_value")

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        packed, norms = step.packed, step.norms
        clamped = packed.clamped(self.max_value * step.unit)
        return Clipped(clamped, _factor(measure_norms(clamped).total / norms.total, norms))


METHODS = (by_global_norm, by_norm, by_value)


def clip_by_global_norm(tensors: Sequence[TensorLike], max_norm: float) -> list[TensorLike]:
    """Return the tensors with their global norm bounded; see `by_global_norm`."""
    return _clip(tensors, by_global_norm(max_norm))


def clip_by_norm(tensors: Sequence[TensorLike], max_norm: float) -> list[TensorLike]:
    """Return the tensors, each with its norm bounded; see `by_norm`."""
    return _clip(tensors, by_norm(max_norm))


def clip_by_value(tensors: Sequence[TensorLike], max_value: float) -> list[TensorLike]:
    """Return the tensors with every entry clamped; see `by_value`."""
    return _clip(tensors, by_value(max_value))


def require_clipping(clipping: Any, caller: str) -> None:
    """Refuse what is not a clipping method.

    Raises:
        TypeError: With what came, the choices and the remedy.
    """
    if clipping is None or (hasattr(clipping, "clip") and not isinstance(clipping, type)):
        return
    choices = ", ".join(f"gr.clipping.{method.__name__}(...)" for method in METHODS)
    raise TypeError(
        f"`clipping` of {caller} must be a clipping method or None. Received: {clipping!r}. Choose one of: {choices}."
    )


def _clip(tensors: Sequence[TensorLike], clipping: Clipping) -> list[TensorLike]:
    packed = PackedTensors(tensors)
    return clipping.clip(StepGradients(packed, measure_norms(packed), tf.constant(1.0))).packed.unpacked()


def _factor(ratio: tf.Tensor, before: Norms) -> tf.Tensor:
    return tf.where(before.finite & (before.total > 0), tf.minimum(1.0, ratio), 1.0)


def _require_positive(value: Any, name: str, method: str) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return
    raise ValueError(
        f"`{name}` must be a positive number. Received: {name}={value!r}. "
        f"To switch clipping off, leave `{method}` out instead."
    )
