"""Turn frozen dataclasses into plain JSON values and back, with an error that says where a value does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence, Set
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
