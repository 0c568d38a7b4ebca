"""Gradient norms that neither overflow nor vanish in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from gradrecipes.gradients.packing import PackedTensors, TensorLike

SAFE_LARGEST_SQUARE = 3.0e38  # float32 ends at 3.4e38; a sum of squares above this is taken again, scaled
SAFE_SMALLEST_SQUARE = 1.0e-24  # below it the squares of single entries fall under float32's 1.2e-38
LARGEST_PLAIN_NORM = 1.7e19  # the square root of the former: above it no optimizer can hold the squares


class Norms(NamedTuple):
    """The norms of a list of gradients, in a form that holds any finite gradient.

    Attributes:
        of_each: float32 `[n]`, L2 norm of each tensor; inf where it is above 3.4e38, NaN where an entry is NaN.
        largest: float32 scalar, the largest |entry|, or 1 where it was not needed to avoid overflow.
        of_scaled: float32 scalar, global L2 norm of the gradients divided by `largest`.
        finite: bool scalar, whether every entry is finite.
    """

    of_each: tf.Tensor
    largest: tf.Tensor
    of_scaled: tf.Tensor
    finite: tf.Tensor

    @property
    def total(self) -> tf.Tensor:
        """float32 scalar, the global L2 norm; inf where it is above 3.4e38 or an entry is infinite."""
        return self.largest * self.of_scaled


def measure_norms(packed: PackedTensors, *, when_rare: Callable[[tf.Tensor], None] | None = None) -> Norms:
    r"""Measure the norm of each tensor and of all together, whatever their magnitude.

    m = max|g|, n = m·sqrt(Σ(g/m)²). The plain Σg² is taken first, as it costs one op; only when it leaves
    float32 (‖g‖ above 1.8e19, or that of one tensor below 1e-12) the scaled one follows. Beside larger ones a
    tensor below 1e-19 may read 0, unless there is one between: a gradient that vanishes layer by layer is exact.

    Args:
        packed: The gradients.
        when_rare: Called in the branch of the graph that runs only when the plain sum left float32, with
            whether every entry is finite: the place for what is too dear for every step.

    Returns:
        `Norms`. Where an entry is not finite, `finite` is False and the norms that hold it are inf or NaN.
    """
    squares = packed.squared_norms()
    total = tf.reduce_sum(squares)
    smallest = tf.reduce_min(tf.where(squares > 0, squares, total))
    plain = (total < SAFE_LARGEST_SQUARE) & (smallest > SAFE_SMALLEST_SQUARE)

    def common() -> tuple[tf.Tensor, ...]:
        return tf.sqrt(squares), tf.ones(()), tf.sqrt(total), tf.constant(True)

    def rare() -> tuple[tf.Tensor, ...]:
        norms = _scaled_norms(packed)
        if when_rare is not None:
            when_rare(norms[-1])
        return norms

    return Norms(*tf.cond(plain, common, rare))


def _scaled_norms(packed: PackedTensors) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    largest_of_each = packed.largest()
    finite = tf.reduce_all(tf.math.is_finite(largest_of_each))
    divisors = tf.where(largest_of_each > 0, largest_of_each, 1.0)

    scaled_squares = packed.divided(divisors).squared_norms()
    of_each = largest_of_each * tf.sqrt(scaled_squares)
    of_each = tf.where(tf.math.is_finite(largest_of_each), of_each, largest_of_each)
    largest = tf.reduce_max(largest_of_each)
    largest = tf.where(largest > 0, largest, 1.0)
    of_scaled = tf.sqrt(tf.reduce_sum(tf.square(largest_of_each / largest) * scaled_squares))
    nothing = tf.where(tf.reduce_any(tf.math.is_nan(largest_of_each)), float("nan"), float("inf"))
    return of_each, tf.where(finite, largest, 1.0), tf.where(finite, of_scaled, nothing), finite


def global_norm(tensors: Sequence[TensorLike]) -> tf.Tensor:
    """Return the L2 norm over all tensors, right for any finite float32 entries.

    `tf.linalg.global_norm` and Keras' `global_clipnorm` sum plain squares, which overflow above 1.84e19.

    Args:
        tensors: Tensors or `tf.IndexedSlices` of any floating dtype.

    Returns:
        float32 scalar; inf where the norm is above 3.4e38 or an entry is infinite, NaN where an entry is NaN.

    Example:
        >>> f"{float(global_norm([tf.constant([3e30, 4e30])])):.4g}"
        '5e+30'
    """
    return measure_norms(PackedTensors(tensors)).total
