"""One column of the record for each variable, however many updates of a step it takes part in, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

MISSING = -1.0  # stands where a variable had no gradient in a step: no norm, share or count is negative

Combine = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Indices = Sequence[int | None]


class Columns:
    """Know which column belongs to which variable.

    Args:
        variables: The variables, in the order of the columns; one that comes again is passed over.
    """

    def __init__(self, variables: Sequence[Any]):
        self.variables = list({id(variable): variable for variable in variables}.values())
        self._indices = {id(variable): index for index, variable in enumerate(self.variables)}

    def __len__(self) -> int:
        return len(self.variables)

    def indices(self, variables: Sequence[Any]) -> list[int | None]:
        """Return the column of each variable, None for one that has none."""
        return [self._indices.get(id(variable)) for variable in variables]


def in_columns(values: tf.Tensor, indices: Indices | None, width: int, combine: Combine) -> tf.Tensor:
    """Put readings of updates into their columns. Where there is one of each variable, in order, this costs nothing.

    Args:
        values: float32 `[n]` or `[n, m]`, in the order of the updates.
        indices: The column of each of the n readings; None where they are the columns already.
        width: How many columns there are.
        combine: Makes one of the readings of one variable: takes float32 `[width, k]` or `[width, k, m]`, 0 where there
            are fewer than k, and float32 `[width]` or `[width, 1]`, how many there are.

    Returns:
        float32 `[width]` or `[width, m]`, `MISSING` in a column without a reading.
    """
    if indices is None or list(indices) == list(range(width)):
        return values
    of_column: list[list[int]] = [[] for _ in range(width)]
    for number, column in enumerate(indices):
        if column is not None:
            of_column[column].append(number)
    deepest = max(1, *map(len, of_column))
    nothing = len(indices)
    chosen = np.array([found + [nothing] * (deepest - len(found)) for found in of_column])
    counts = np.array([len(found) for found in of_column], np.float32).reshape([width] + [1] * (values.shape.rank - 1))
    gathered = tf.gather(tf.concat([values, tf.zeros_like(values[:1])], axis=0), chosen)
    combined = gathered[:, 0] if deepest == 1 else combine(gathered, tf.constant(np.maximum(counts, 1)))
    return combined if counts.all() else tf.where(counts > 0, combined, MISSING)


def combine_norms(parts: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """Combine norms to the norm of all of them together."""
    largest = tf.reduce_max(parts, axis=1)
    divisor = tf.where(tf.math.is_finite(largest) & (largest > 0), largest, 1.0)
    return divisor * tf.sqrt(tf.reduce_sum(tf.square(parts / divisor[:, None]), axis=1))


def combine_max(parts: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """Combine to the largest."""
    return tf.reduce_max(parts, axis=1)


def combine_sum(parts: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """Combine to the sum."""
    return tf.reduce_sum(parts, axis=1)


def combine_mean(parts: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Combine to the mean."""
    return tf.reduce_sum(parts, axis=1) / counts
