"""Say in plain JSON what a run depends on, so that a kept result is known for what it is."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.studies.arm import Arm

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
LARGEST_ARRAY = 16  # numbers that are written out; of larger arrays a digest is


def describe(value: Any) -> Any:
    """Return a plain JSON value that is the same whenever the same thing is given, in another process too.

    Functions are told by their names and by their source; Keras objects by their configuration; other objects
    by their representation.

    Example:
        >>> describe({"rate": 0.1, "shape": (2, 3)})
        {'rate': 0.1, 'shape': [2, 3]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        small = value.size <= LARGEST_ARRAY
        return value.tolist() if small else hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
    if inspect.isroutine(value) or inspect.isclass(value):
        # Without the module: that of a script has another name in the workers which it starts.
        return f"{value.__qualname__}:{_digest(source_of(value))}"
    if dataclasses.is_dataclass(value):
        return {one.name: describe(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if hasattr(value, "get_config"):
        try:
            return json.loads(json.dumps(keras.saving.serialize_keras_object(value), sort_keys=True, default=str))
        except Exception:  # whatever its author's get_config raises
            return _represented(value)
    return _represented(value)


def fingerprint(
    build: Callable[..., Any], arm: Arm, *, fit: Mapping[str, Any], data: str
) -> tuple[str, dict[str, Any]]:
    """Return a digest of all that a run depends on beside its seed, and its parts.

    Args:
        build: The study's `build`.
        arm: The arm.
        fit: The study's arguments of `fit`.
        data: Fingerprint of the data.
    """
    parts = {
        "build": describe(build),
        "arm": {name: describe(getattr(arm, name)) for name in ("build", "fit", "recipe")},
        "fit": describe(fit),
        "data": data,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    return _digest(json.dumps(parts, sort_keys=True)), parts


def source_of(function: Any) -> str:
    """Return the source of a function or class, or its code where there is none."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return "" if code is None else repr(_told(code))


def _told(code: types.CodeType) -> tuple[Any, ...]:
    constants = [_told(one) if isinstance(one, types.CodeType) else _represented(one) for one in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants


def _represented(value: Any) -> str:
    return ADDRESS.sub("", str(value))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
