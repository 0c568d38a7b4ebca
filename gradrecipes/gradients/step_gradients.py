"""What a clipping method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from gradrecipes.gradients.norms import Norms
from gradrecipes.gradients.packing import PackedTensors


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
