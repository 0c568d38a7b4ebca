"""A table of numpy columns that grows by whole blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class Table:
    """Hold columns of equal length, each row of a fixed shape and dtype.

    Appending costs what the new rows cost: blocks are joined when a column is next read.

    Args:
        columns: For each name the shape of one row and the dtype. Rows that are left out of an
            `extend` become NaN, or 0 in a column of whole numbers. A number too large for its column
            becomes Inf; a fraction in a column of whole numbers is refused.
    """

    def __init__(self, columns: Mapping[str, tuple[tuple[int, ...], Any]]):
        self._columns = dict(columns)
        self._blocks: dict[str, list[np.ndarray]] = {name: [] for name in self._columns}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise KeyError(f"Unknown reading {name!r}. Known readings: {', '.join(self._columns)}.")
        shape, dtype = self._columns[name]
        blocks = self._blocks[name]
        if len(blocks) != 1:
            blocks[:] = [np.concatenate(blocks) if blocks else np.zeros((0, *shape), dtype)]
        return blocks[0]

    def since(self, name: str, row: int) -> np.ndarray:
        """Return the rows of a column from one on, without joining the blocks before it: costs what they cost."""
        blocks, wanted = self._blocks[name], self._length - row
        last = len(blocks)
        while wanted > 0 and last > 0:
            last -= 1
            wanted -= len(blocks[last])
        shape, dtype = self._columns[name]
        tail = np.concatenate([np.zeros((0, *shape), dtype), *blocks[last:]])
        return tail[-wanted if wanted < 0 else 0 :]

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, column) for every column."""
        return ((name, self[name]) for name in self._columns)

    def extend(self, **rows: Any) -> None:
        """Add rows to every column.

        Raises:
            ValueError: An unknown column, a row of another shape, columns of different lengths, or rows
                that are no numbers. The table is then as it was.
        """
        unknown = sorted(set(rows) - set(self._columns))
        if unknown:
            raise ValueError(f"Unknown readings: {unknown}. Known readings: {', '.join(self._columns)}.")
        given = {name: _rows(name, values) for name, values in rows.items()}
        added = max((len(values) for values in given.values()), default=0)
        blocks = {name: self._block(name, given.get(name), added) for name in self._columns}
        for name, block in blocks.items():
            self._blocks[name].append(block)
        self._length += added

    def _block(self, name: str, given: np.ndarray | None, added: int) -> np.ndarray:
        shape, dtype = self._columns[name]
        whole = np.issubdtype(dtype, np.integer)
        if given is None:
            return np.full((added, *shape), 0 if whole else np.nan, dtype)
        if given.shape != (added, *shape):
            raise ValueError(
                f"The reading {name!r} must have the shape {(added, *shape)}. Received: {given.shape}. "
                "Give one row for each step, and in a reading by layer one column for each layer."
            )
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                block = given.astype(dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"The reading {name!r} must be numbers. Received: {given.tolist()!r:.80}.") from error
        if whole and not np.array_equal(block, given):
            raise ValueError(
                f"The reading {name!r} must be whole numbers that fit {np.dtype(dtype).name}. "
                f"Received: {given.tolist()!r:.80}."
            )
        return block

    def take(self, rows: np.ndarray) -> Table:
        """Return a new table of the given rows."""
        part = Table(self._columns)
        part.extend(**{name: values[rows] for name, values in self.items()})
        return part

    def joined(self, later: Table) -> Table:
        """Return a new table: these rows, then those of `later`."""
        whole = self.take(np.arange(len(self)))
        whole.extend(**dict(later.items()))
        return whole

    def shifted(self, steps: int) -> Table:
        """Return a copy whose `step` column is counted on by so many steps."""
        copy = self.take(np.arange(len(self)))
        copy["step"][:] += steps
        return copy


def _rows(name: str, values: Any) -> np.ndarray:
    try:
        rows = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"The rows of the reading {name!r} must all have one shape: {error}") from error
    if rows.ndim == 0:
        raise ValueError(
            f"The reading {name!r} must have one row for each step. Received: {values!r:.80}. "
            "Put the value of a single step into a list."
        )
    if rows.dtype.kind in "USc":
        raise ValueError(f"The reading {name!r} must be real numbers. Received: {rows.tolist()!r:.80}.")
    return rows
