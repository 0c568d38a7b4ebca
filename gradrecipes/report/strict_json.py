"""JSON that every parser reads: no NaN, no Infinity, no numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Return a value made of JSON's own types only.

    A number JSON cannot hold becomes its name (`"nan"`, `"inf"`, `"-inf"`), a numpy scalar or array the
    Python value, a key that is no string its `str`, anything unknown its `str`.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def dumps(value: Any, *, indent: int | None = 2) -> str:
    """Return strict JSON text, ASCII only."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)
