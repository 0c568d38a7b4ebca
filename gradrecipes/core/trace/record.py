"""How a Trace holds what was seen: frozen dataclasses that become plain JSON and come back, and columns that grow."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence, Set
from enum import Enum
from functools import cache
from typing import Any, Self, TypeVar, Union, cast

import numpy as np

R = TypeVar("R")

NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # how a number that JSON lacks is written


class Record:
    """Give a frozen dataclass `to_json` and `from_json`.

    Fields may be numbers, strings, booleans, enums, dataclasses, `tuple[X, ...]`, `Mapping[str, X]`, `Any` and unions
    with None. A field that is missing takes its default: in the records of a Trace that is None for what was not
    measured.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Point(Record):
        ...     x: float
        ...     name: str | None = None
        >>> Point.from_json({"x": "inf"}), Point(1.0).to_json()
        (Point(x=inf, name=None), {'x': 1.0, 'name': None})
    """

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; a number that JSON cannot hold becomes its name."""
        return to_json(self)

    def filled_from(self, other: Self) -> Self:
        """Return this record, with the fields of `other` where this one has None or nothing."""
        names = [name for name in field_types(cast(Any, type(self))) if getattr(self, name) in (None, "", (), {})]
        return dataclasses.replace(cast(Any, self), **{name: getattr(other, name) for name in names})

    @classmethod
    def from_json(cls: type[R], values: Any) -> R:
        """Return the record that `to_json` wrote.

        Raises:
            ValueError: A value is of another type than its field, a field is unknown, or a required one is missing.
        """
        return from_json(cls, values)


def to_json(value: Any) -> Any:
    """Return a value made of JSON's own types; what is of no known type stays as it is.

    A dataclass becomes the mapping of its fields, an enum its value, a numpy scalar or array the Python value, a number
    that JSON cannot hold its name ("nan", "inf", "-inf"), a key that is no string its `str`.
    """
    if value is None or isinstance(value, bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    if isinstance(value, Sequence | Set):
        return [to_json(part) for part in value]
    return value


def dumps(value: Any) -> str:
    """Return strict JSON text: no NaN, no Infinity, ASCII only. What is of no known type becomes its `str`."""
    return json.dumps(to_json(value), indent=2, allow_nan=False, default=str)


def plain(value: Any) -> Any:
    """Return what a program reads from `dumps`: JSON's own types only."""
    return json.loads(dumps(value))


def from_json(kind: Any, values: Any, path: str = "") -> Any:
    """Return JSON values as an object of a type, checked throughout.

    Args:
        kind: A dataclass, or the type of a field.
        values: What `to_json` returned.
        path: Where the value stands, for the error.

    Raises:
        ValueError: The value does not fit the type.
    """
    if kind is Any:
        return values
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, values, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(arguments, values, path)
    if origin is tuple:
        if not isinstance(values, list | tuple):
            raise _unfit(path, values, "a list")
        return tuple(from_json(arguments[0], part, f"{path}[{place}]") for place, part in enumerate(values))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(values, Mapping):
            raise _unfit(path, values, "an object")
        return {str(key): from_json(arguments[1], part, f"{path}.{key}") for key, part in values.items()}
    return _scalar(kind, values, path)


def _dataclass(kind: Any, values: Any, path: str) -> Any:
    if isinstance(values, kind):
        return values
    if not isinstance(values, Mapping):
        raise _unfit(path, values, "an object")
    hints = field_types(kind)
    if unknown := [name for name in values if name not in hints]:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}{f' (at {path})' if path else ''}")
    given = {name: from_json(hints[name], part, f"{path}.{name}".strip(".")) for name, part in values.items()}
    try:
        return kind(**given)
    except TypeError as error:  # a field without default is missing
        raise ValueError(f"{path or kind.__name__}: {error}") from error


@cache
def field_types(kind: Any) -> dict[str, Any]:
    """Return the type of each field of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _union(kinds: tuple[Any, ...], values: Any, path: str) -> Any:
    if values is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds[:-1]:
        try:
            return from_json(kind, values, path)
        except ValueError:
            continue
    return from_json(kinds[-1], values, path)


def _scalar(kind: Any, values: Any, path: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(values)
        except ValueError:
            raise _unfit(path, values, f"one of {[member.value for member in kind]}") from None
    if kind is float:
        if isinstance(values, str) and values in NONFINITE:
            return NONFINITE[values]
        if isinstance(values, int | float) and not isinstance(values, bool):
            return float(values)
    elif kind is int:
        if isinstance(values, int) and not isinstance(values, bool):
            return values
    elif isinstance(values, kind):
        return values
    raise _unfit(path, values, {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}[kind])


def _unfit(path: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{path or 'it'} must be {expected}. Received: {value!r:.80}")


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
