"""One column of the record for each variable, however many updates of a step it takes part in, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

MISSING = -1.0  # stands where a variable had no gradient in a step: no norm, share or count is negative

Join = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Places = Sequence[int | None]


class Columns:
    """Know which column belongs to which variable.

    Args:
        variables: The variables, in the order of the columns; one that comes again is passed over.
    """

    def __init__(self, variables: Sequence[Any]):
        self.variables = list({id(variable): variable for variable in variables}.values())
        self._places = {id(variable): place for place, variable in enumerate(self.variables)}

    def __len__(self) -> int:
        return len(self.variables)

    def places(self, variables: Sequence[Any]) -> list[int | None]:
        """Return the column of each variable, None for one that has none."""
        return [self._places.get(id(variable)) for variable in variables]


def in_columns(values: tf.Tensor, places: Places | None, width: int, join: Join) -> tf.Tensor:
    """Put readings of updates into their columns; as most steps have one of each variable, in order, it costs nothing.

    Args:
        values: float32 `[n]` or `[n, m]`, in the order of the updates.
        places: The column of each of the n readings; None where they are the columns already.
        width: How many columns there are.
        join: Makes one of the readings of one variable: takes float32 `[width, k]` or `[width, k, m]`, 0 where there
            are fewer than k, and float32 `[width]` or `[width, 1]`, how many there are.

    Returns:
        float32 `[width]` or `[width, m]`, `MISSING` in a column without a reading.
    """
    if places is None or list(places) == list(range(width)):
        return values
    of_column: list[list[int]] = [[] for _ in range(width)]
    for index, place in enumerate(places):
        if place is not None:
            of_column[place].append(index)
    deepest = max(1, *map(len, of_column))
    nothing = len(places)
    chosen = np.array([found + [nothing] * (deepest - len(found)) for found in of_column])
    counts = np.array([len(found) for found in of_column], np.float32).reshape([width] + [1] * (values.shape.rank - 1))
    gathered = tf.gather(tf.concat([values, tf.zeros_like(values[:1])], axis=0), chosen)
    joined = gathered[:, 0] if deepest == 1 else join(gathered, tf.constant(np.maximum(counts, 1)))
    return joined if counts.all() else tf.where(counts > 0, joined, MISSING)


def length(parts: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """Join norms to the norm of all of them together."""
    largest = tf.reduce_max(parts, axis=1)
    divisor = tf.where(tf.math.is_finite(largest) & (largest > 0), largest, 1.0)
    return divisor * tf.sqrt(tf.reduce_sum(tf.square(parts / divisor[:, None]), axis=1))


def most(parts: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """Join to the largest."""
    return tf.reduce_max(parts, axis=1)


def total(parts: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """Join to the sum."""
    return tf.reduce_sum(parts, axis=1)


def average(parts: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Join to the mean."""
    return tf.reduce_sum(parts, axis=1) / counts
