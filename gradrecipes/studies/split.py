"""The data of a study: divided once, and the same rows for every arm and every seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

SHARE = 0.2  # of the samples is kept for validation where the study divides them itself


@dataclass(frozen=True)
class Split:
    """Hold the rows to train on, to validate by and, perhaps, to test by.

    Args:
        x: Training inputs: an array, or a dictionary or list of arrays.
        y: Targets.
        x_val: Validation inputs.
        y_val: Their targets.
        x_test: Test inputs, or None.
        y_test: Their targets.

    Raises:
        ValueError: Inputs and targets of different lengths, or none at all.
    """

    x: Any
    y: Any
    x_val: Any
    y_val: Any
    x_test: Any = None
    y_test: Any = None

    def __post_init__(self):
        for x, y, what in (
            (self.x, self.y, "training"),
            (self.x_val, self.y_val, "validation"),
            (self.x_test, self.y_test, "test"),
        ):
            if (x is None) != (y is None):
                raise ValueError(f"The {what} data must have both inputs and targets. Received: only one of them.")
            if x is not None:
                _samples(x, y, what)

    @classmethod
    def of(cls, data: Any) -> Split:
        """Return the split that was given, or make one of (x, y).

        Args:
            data: `(x, y)`, `(x, y, x_val, y_val)` or `(x, y, x_val, y_val, x_test, y_test)`.

        Raises:
            TypeError: It is none of these.
        """
        if isinstance(data, Split):
            return data
        if not isinstance(data, tuple | list) or len(data) not in (2, 4, 6):
            raise TypeError(
                "`data` must be (x, y), (x, y, x_val, y_val) or (x, y, x_val, y_val, x_test, y_test), of arrays. "
                f"Received: {type(data).__name__} {'of length ' + str(len(data)) if hasattr(data, '__len__') else ''}."
            )
        data = [_arrays(part) for part in data]
        return frozen_split(*data) if len(data) == 2 else cls(*data)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all rows."""
        digest = hashlib.sha256()
        for part in (self.x, self.y, self.x_val, self.y_val, self.x_test, self.y_test):
            digest.update(b"|" if part is None else repr(keras.tree.map_structure(_shape, part)).encode())
            for array in [] if part is None else keras.tree.flatten(part):
                digest.update(repr(array.tolist()).encode() if array.dtype.kind == "O" else _bytes(array))
        return digest.hexdigest()[:16]


def frozen_split(x: Any, y: Any, *, share: float = SHARE, seed: int = 0) -> Split:
    """Keep a share of the samples, drawn at random, for validation.

    Args:
        x: Inputs: an array, or a dictionary or list of arrays.
        y: Targets.
        share: Part that is kept, between 0 and 1.
        seed: Of the draw. It has nothing to do with the seeds of the runs: all of them see the same split.

    Raises:
        ValueError: A share that leaves nothing on one side.

    Example:
        >>> len(frozen_split(np.zeros((10, 2)), np.zeros(10)).x_val)
        2
    """
    x, y = _arrays(x), _arrays(y)
    count = _samples(x, y, "given")
    kept = round(share * count)
    if not 0 < share < 1 or not 0 < kept < count:
        raise ValueError(
            f"`share` must leave samples on both sides. Received: share={share!r} of {count} samples. 0.2 suits most."
        )
    order = np.random.default_rng(seed).permutation(count)
    rows = [np.sort(order[kept:]), np.sort(order[:kept])]
    return Split(*(keras.tree.map_structure(lambda array, at=at: array[at], part) for at in rows for part in (x, y)))


def _samples(x: Any, y: Any, what: str) -> int:
    lengths = {len(array) for array in keras.tree.flatten((x, y))}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"The {what} inputs and targets must have the same number of samples, at least one. "
            f"Received: {sorted(lengths)}."
        )
    return lengths.pop()


def _arrays(part: Any) -> Any:
    """Return the arrays of a part of the data in their structure; plain lists of numbers are one array."""
    if part is None:
        return None
    held = keras.tree.flatten(part)
    if held and all(isinstance(one, bool | int | float) for one in held):
        return np.asarray(part)
    return keras.tree.map_structure(_array, part)


def _array(value: Any) -> np.ndarray:
    if not hasattr(value, "__array__"):
        raise TypeError(
            "The data of a study must be arrays, which can be divided once and kept. "
            f"Received: {type(value).__name__}. Take a dataset into arrays first."
        )
    return np.asarray(value)


def _shape(array: np.ndarray) -> tuple[Any, ...]:
    return array.shape, str(array.dtype)


def _bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
