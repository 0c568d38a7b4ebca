"""Many small tensors handled as few, and the columns in which the numbers of each are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

STACK_BELOW = 8192  # entries; measured on two cores: below it, one copy is cheaper than an op for each tensor
LARGE = 65_536  # entries; of this size a weight, its gradient and two slots fill a cache of 1 MiB

TensorLike: TypeAlias = "tf.Tensor | tf.IndexedSlices"


class PackedTensors:
    """Let one op serve all tensors of a shape, so that measuring and clipping cost a few ops, not hundreds.

    Small tensors of equal shape and dtype are stacked; large ones and sparse ones stand alone. Functions of
    the tensors return one number for each tensor, in the order in which the tensors came.

    Args:
        tensors: Dense tensors or `tf.IndexedSlices`, of any floating dtype. Repeated indices of slices are
            summed first: the norm of a sparse gradient is that of the dense gradient it stands for.
        xla: Whether the code is to be compiled by XLA; slices are then made dense, as XLA has no unique op.
    """

    def __init__(self, tensors: Sequence[TensorLike], *, xla: bool = False):
        tensors = without_repeated_indices(tensors, xla=xla)
        self._tensors: Sequence[TensorLike] | None = tensors
        self._members = _groups(tensors)
        self._stacks = [
            tf.stack([tensors[i] for i in group]) if len(group) > 1 else tensors[group[0]] for group in self._members
        ]
        order = np.argsort([i for group in self._members for i in group])
        self._order = None if np.array_equal(order, np.arange(len(order))) else order

    def __len__(self) -> int:
        return sum(len(group) for group in self._members)

    @property
    def tensors(self) -> list[TensorLike]:
        """The tensors one by one, repeated indices summed."""
        return self.unpacked() if self._tensors is None else list(self._tensors)

    @property
    def members(self) -> list[list[int]]:
        """For each stack, the places of its tensors in the order in which the tensors came."""
        return self._members

    def rows_touched(self) -> list[tf.Tensor | None]:
        """Return for each stack the rows of the dense tensor that sparse values stand for, or None if it is dense."""
        return [stack.indices if isinstance(stack, tf.IndexedSlices) else None for stack in self._stacks]

    def each(self, reduce: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """Reduce every tensor to one number.

        Args:
            reduce: Takes float32 `[k, entries]`, returns `[k]` or `[k, m]`, row by row.

        Returns:
            float32 `[n]` or `[n, m]`, in the order of the tensors.
        """
        return self.in_order(reduce(rows) for rows in self.rows())

    def in_order(self, parts: Iterable[tf.Tensor]) -> tf.Tensor:
        """Join what was made of each stack, row by row, in the order of the tensors."""
        joined = tf.concat(list(parts), axis=0)
        return joined if self._order is None else tf.gather(joined, self._order)

    def rows(self) -> list[tf.Tensor]:
        """Return each stack as float32 `[k, entries]`, in the order of the stacks."""
        return [
            tf.reshape(tf.cast(values_of(stack), tf.float32), [len(group), -1])
            for group, stack in zip(self._members, self._stacks, strict=True)
        ]

    def squared_norms(self) -> tf.Tensor:
        """Return the sum of squares of every tensor, float32 `[n]`; cheap, and infinite above 3.4e38."""
        sums = []
        for group, stack in zip(self._members, self._stacks, strict=True):
            values = tf.cast(values_of(stack), tf.float32)
            if len(group) == 1:
                sums.append(tf.reshape(2.0 * tf.nn.l2_loss(values), [1]))
            else:
                sums.append(tf.reduce_sum(tf.square(tf.reshape(values, [len(group), -1])), axis=1))
        return self.in_order(sums)

    def largest(self) -> tf.Tensor:
        """Return the largest |entry| of every tensor, float32 `[n]`; NaN where a tensor holds a NaN."""
        return self.each(largest_of_rows)

    def scaled(self, *factors: tf.Tensor) -> PackedTensors:
        """Return the tensors multiplied by each factor in turn.

        Args:
            factors: float32 scalars, or float32 `[n]` with one factor for each tensor.
        """

        def scale(group: list[int], values: tf.Tensor) -> tf.Tensor:
            dtype = tf.float32 if values.dtype.size < 4 else values.dtype  # a half would round the factor itself
            product = tf.cast(values, dtype)
            for factor in factors:
                product = product * tf.cast(_spread(factor, group, values), dtype)
            return tf.cast(product, values.dtype)

        return self._mapped(scale)

    def divided(self, divisors: tf.Tensor) -> PackedTensors:
        """Return the tensors in float32, divided by one number, or each by its own, float32 `[n]`."""
        return self._mapped(lambda group, values: tf.cast(values, tf.float32) / _spread(divisors, group, values))

    def cast_like(self, other: PackedTensors) -> PackedTensors:
        """Return the tensors in the dtypes of `other`, which has the same packing."""
        return self.with_flat([tf.cast(a, b.dtype) for a, b in zip(self.flat(), other.flat(), strict=True)])

    def clamped(self, bound: tf.Tensor | float) -> PackedTensors:
        """Return the tensors with every entry clamped to the interval from -bound to bound."""

        def clamp(_: list[int], values: tf.Tensor) -> tf.Tensor:
            limit = tf.cast(bound, values.dtype)
            return tf.clip_by_value(values, -limit, limit)

        return self._mapped(clamp)

    def flat(self) -> list[tf.Tensor]:
        """Return the dense parts, a tensor for each stack; `with_flat` takes them back."""
        return [values_of(stack) for stack in self._stacks]

    def with_flat(self, parts: Sequence[tf.Tensor]) -> PackedTensors:
        """Return the same packing around other values."""
        copy = object.__new__(PackedTensors)
        copy._members, copy._order, copy._tensors = self._members, self._order, None
        copy._stacks = [
            tf.IndexedSlices(part, stack.indices, stack.dense_shape) if isinstance(stack, tf.IndexedSlices) else part
            for stack, part in zip(self._stacks, parts, strict=True)
        ]
        return copy

    def unpacked(self) -> list[TensorLike]:
        """Return the tensors one by one, in the order in which they came, all in the current graph."""
        tensors: list[TensorLike] = [None] * len(self)
        for group, stack in zip(self._members, self._stacks, strict=True):
            for index, tensor in zip(group, tf.unstack(stack) if len(group) > 1 else [tf.identity(stack)], strict=True):
                tensors[index] = tensor
        return tensors

    def _mapped(self, function: Callable[[list[int], tf.Tensor], tf.Tensor]) -> PackedTensors:
        parts = [function(group, part) for group, part in zip(self._members, self.flat(), strict=True)]
        return self.with_flat(parts)


def stack_specs(variables: Sequence[Any]) -> list[tf.TensorSpec]:
    """Return what `PackedTensors(...).flat()` of the values of variables would hold."""
    specs = [tf.TensorSpec(variable.shape, tf.as_dtype(variable.dtype)) for variable in variables]
    groups = [(len(group), specs[group[0]]) for group in _groups(specs)]
    return [tf.TensorSpec([k, *one.shape] if k > 1 else one.shape, one.dtype) for k, one in groups]


def _groups(tensors: Sequence[Any]) -> list[list[int]]:
    members: dict[object, list[int]] = {}
    for index, tensor in enumerate(tensors):
        members.setdefault(_group_of(tensor, index), []).append(index)
    return list(members.values())


def _group_of(tensor: Any, index: int) -> object:
    if isinstance(tensor, tf.IndexedSlices) or not tensor.shape.is_fully_defined():
        return index
    entries = tensor.shape.num_elements()
    return (tuple(tensor.shape), tensor.dtype) if entries <= STACK_BELOW else index


def values_of(tensor: TensorLike) -> tf.Tensor:
    """Return the entries of a gradient: of a sparse one, those that it holds."""
    return tensor.values if isinstance(tensor, tf.IndexedSlices) else tensor


def large_held_back(tensors: Sequence[TensorLike], until: tf.Tensor) -> list[TensorLike]:
    """Return tensors and slices of which the large ones, together, are there only when another tensor is."""
    sizes = [values_of(tensor).shape.num_elements() for tensor in tensors]
    large = [place for place, size in enumerate(sizes) if size is None or size >= LARGE]
    held_back = list(tensors)
    if large:
        with tf.control_dependencies([until]):
            values = tf.identity_n([values_of(tensors[place]) for place in large])
        for place, value in zip(large, values, strict=True):
            whole = tensors[place]
            sliced = isinstance(whole, tf.IndexedSlices)
            held_back[place] = tf.IndexedSlices(value, whole.indices, whole.dense_shape) if sliced else value
    return held_back


def without_repeated_indices(tensors: Sequence[TensorLike], *, xla: bool) -> list[TensorLike]:
    """Return gradients whose norm is that of the dense gradients; under XLA slices are made dense."""
    return [_sum_repeated_indices(tensor, xla) for tensor in tensors]


def largest_of_rows(rows: tf.Tensor) -> tf.Tensor:
    """Return the largest |entry| of each row; NaN where it holds a NaN."""
    largest = tf.maximum(tf.reduce_max(tf.abs(rows), axis=1), 0.0)  # an empty tensor has no entry: 0, not -inf
    has_nan = tf.reduce_any(tf.math.is_nan(rows), axis=1)
    return tf.where(has_nan, tf.constant(np.nan, tf.float32), largest)


def _spread(factor: tf.Tensor, group: list[int], values: tf.Tensor) -> tf.Tensor:
    if factor.shape.rank == 0:
        return factor
    chosen = tf.gather(factor, group)
    return chosen[0] if len(group) == 1 else tf.reshape(chosen, [len(group)] + [1] * (values.shape.rank - 1))


def _sum_repeated_indices(tensor: TensorLike, xla: bool) -> TensorLike:
    if not isinstance(tensor, tf.IndexedSlices):
        return tensor
    if xla:
        return tf.convert_to_tensor(tensor)
    indices, places = tf.unique(tensor.indices)
    values = tf.math.unsorted_segment_sum(tensor.values, places, tf.shape(indices)[0])
    return tf.IndexedSlices(values, indices, tensor.dense_shape)


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
