"""Gradient norms that neither overflow nor vanish in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import rare_cond, shared_function
from gradrecipes.gradients.packing import PackedTensors, TensorLike, largest_of_rows, values_of

MAX_PLAIN_SQUARE = 3.0e38  # float32 ends at 3.4e38; a sum of squares above this is taken again, scaled
MIN_PLAIN_SQUARE = 1.0e-24  # below it the squares of single entries fall under float32's 1.2e-38
MAX_PLAIN_NORM = 1.7e19  # the square root of the first: above it no optimizer can hold the squares
MAX_PLAIN_NORM_FLOAT64 = 1.3e154  # that of float64, which ends at 1.8e308
MAX_OF_FLOAT64 = 1e30  # of a loss in the record, in float32: a mean of such losses is finite too
MOMENTS = 5  # columns of `row_moments`
MAX_SINGLE_FACTOR_NORM = 1e30  # above it, bound / norm nears float32's smallest number: divide in two steps


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


class PlainSquares(NamedTuple):
    """Sums of squares, one cheap operation a tensor, right unless they leave float32.

    Attributes:
        of_each: float32 `[n]`, the sum of squares of each tensor.
        total: float32 scalar, their sum.
        smallest: float32 scalar, the smallest that is not 0; 0 where all are, as those of tiny entries are too.
    """

    of_each: tf.Tensor
    total: tf.Tensor
    smallest: tf.Tensor

    @property
    def within_float32(self) -> tf.Tensor:
        """bool scalar, whether `norms` holds; False where an entry is not finite."""
        return (self.total < MAX_PLAIN_SQUARE) & (self.smallest > MIN_PLAIN_SQUARE)

    def norms(self) -> Norms:
        """Return the norms, where the squares are within float32."""
        return Norms(tf.sqrt(self.of_each), tf.ones(()), tf.sqrt(self.total), tf.constant(True))


def plain_squares(tensors: Sequence[TensorLike]) -> PlainSquares:
    """Sum the squares of each tensor, with one `L2Loss` each: the cheapest kernel there is for it.

    Args:
        tensors: Tensors, or `tf.IndexedSlices` without repeated indices, of any floating dtype.
    """
    of_each = 2.0 * tf.stack([tf.nn.l2_loss(tf.cast(values_of(tensor), tf.float32)) for tensor in tensors])
    total = tf.reduce_sum(of_each)
    return PlainSquares(of_each, total, tf.reduce_min(tf.where(of_each > 0, of_each, total)))


def scaled_norms(packed: PackedTensors) -> Norms:
    r"""Return the norms whatever the magnitude of the entries: m = max|g|, n = m·sqrt(Σ(g/m)²)."""
    norms = Norms(*_combined_moments(packed.each(row_moments)))
    norms.of_each.set_shape([len(packed)])
    return norms


@shared_function(tf.TensorSpec([None, None], tf.float32))
def row_moments(rows: tf.Tensor) -> tf.Tensor:
    """Measure rows of entries of any magnitude.

    Args:
        rows: float32 `[k, entries]`.

    Returns:
        float32 `[k, MOMENTS]`: the largest |entry|, NaN where one is; Σ(entry/largest)²; the norm; the mean;
        sqrt(mean(entry²)).
    """
    return _moments(rows)


@shared_function(tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None, None], tf.float32))
def compare_rows(rows: tf.Tensor, changes: tf.Tensor) -> tf.Tensor:
    """Return float32 `[k, 3]`: the norms and the means of rows, and the norms of their changes."""
    of_rows, of_changes = _moments(rows), _moments(changes)
    return tf.stack([of_rows[:, 2], of_rows[:, 3], of_changes[:, 2]], axis=1)


def _moments(rows: tf.Tensor) -> tf.Tensor:
    largest = largest_of_rows(rows)
    scaled = rows / tf.where(largest > 0, largest, 1.0)[:, None]
    squares = tf.reduce_sum(tf.square(scaled), axis=1)
    entries = tf.cast(tf.shape(rows)[1], tf.float32)
    norm = tf.where(tf.math.is_finite(largest), largest * tf.sqrt(squares), largest)
    return tf.stack(
        [largest, squares, norm, tf.reduce_mean(rows, axis=1), largest * tf.sqrt(squares / entries)], axis=1
    )


@shared_function(tf.TensorSpec([None, MOMENTS], tf.float32))
def _combined_moments(moments: tf.Tensor) -> tuple[tf.Tensor, ...]:
    largest_of_each, scaled_squares = moments[:, 0], moments[:, 1]
    finite = tf.reduce_all(tf.math.is_finite(largest_of_each))
    largest = tf.reduce_max(largest_of_each)
    largest = tf.where(largest > 0, largest, 1.0)
    of_scaled = tf.sqrt(tf.reduce_sum(tf.square(largest_of_each / largest) * scaled_squares))
    nothing = tf.where(tf.reduce_any(tf.math.is_nan(largest_of_each)), float("nan"), float("inf"))
    return moments[:, 2], tf.where(finite, largest, 1.0), tf.where(finite, of_scaled, nothing), finite


def judge_range(norms: Norms, tensors: Sequence[TensorLike], loss_scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Judge gradients by the range of their own dtypes, which are also those of the optimizer's slots.

    Args:
        norms: Their norms.
        tensors: Tensors, or `tf.IndexedSlices` without repeated indices.
        loss_scale: float32 scalar, what they come multiplied by.

    Returns:
        bool scalars: whether every entry is finite, and whether a norm is above what an optimizer can square.
    """
    if all(values_of(tensor).dtype != tf.float64 for tensor in tensors):
        return norms.finite, norms.total > MAX_PLAIN_NORM * loss_scale
    finite, overflows = [], []
    for wide, bound in ((True, MAX_PLAIN_NORM_FLOAT64), (False, MAX_PLAIN_NORM)):
        values = [values_of(tensor) for tensor in tensors if (values_of(tensor).dtype == tf.float64) is wide]
        if not values:
            continue
        values = [tf.cast(part, tf.float64) for part in values]
        finite += [tf.reduce_all(tf.math.is_finite(part)) for part in values]
        largest = tf.reduce_max(tf.stack([tf.reduce_max(tf.abs(part), axis=None) for part in values]))
        divisor = tf.where(largest > 0, largest, 1.0)
        squares = tf.add_n([tf.reduce_sum(tf.square(part / divisor)) for part in values])
        overflows.append(divisor * tf.sqrt(squares) > bound * tf.cast(loss_scale, tf.float64))
    return tf.reduce_all(tf.stack(finite)), tf.reduce_any(tf.stack(overflows))


def as_float32(value: tf.Tensor | None, *, missing: float = np.nan) -> tf.Tensor:
    """Return a loss in float32: what is finite in float64 stays so, at most `MAX_OF_FLOAT64`; `missing` for None."""
    if value is None:
        return tf.constant(missing, tf.float32)
    if value.dtype == tf.float64:
        bounded = tf.clip_by_value(value, -MAX_OF_FLOAT64, MAX_OF_FLOAT64)
        value = tf.where(tf.math.is_finite(value), bounded, value)
    return tf.cast(value, tf.float32)


def measure_norms(packed: PackedTensors) -> Norms:
    r"""Measure the norm of each tensor and of all together, whatever their magnitude.

    The plain Σg² is taken first, as it costs one operation; only when it leaves float32 (‖g‖ above 1.8e19, or that
    of one tensor below 1e-12) the scaled one follows. Beside larger ones a tensor below 1e-19 may read 0, unless there
    is one between: a gradient that vanishes layer by layer is exact.

    Returns:
        `Norms`. Where an entry is not finite, `finite` is False and the norms that hold it are inf or NaN.
    """
    squares = plain_squares(packed.tensors)
    return Norms(*rare_cond(squares.within_float32, squares.norms, lambda: scaled_norms(packed)))


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
