"""Keep what each arm scored in a file, line by line, so that a rescue that was stopped resumes where it was."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gradrecipes.rescue.arm import Result
from gradrecipes.rescue.setup import Setup
from gradrecipes.rescue.task import Score


class Journal:
    """Write results to a file and find them again.

    Args:
        path: The file, or None to keep nothing.
        fingerprint: Of the model and the data; results of others are not found.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str):
        self._path = None if path is None else Path(path)
        self._fingerprint = fingerprint
        self._known: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # a line that was cut off when the process was killed
                    continue
                if row.get("fingerprint") == fingerprint:
                    self._known[row["key"]] = row

    def get(self, setup: Setup, seed: int, steps: int) -> Result | None:
        """Return the result of an arm after so many steps, or None."""
        row = self._known.get(_key(setup, seed, steps))
        if row is None:
            return None
        samples = None if row["samples"] is None else np.array(row["samples"], np.float64)
        number = {name: math.nan if row[name] is None else row[name] for name in ("loss", "peak")}
        return Result(steps, Score(row["score"], samples), broken=row["broken"], error=row["error"], **number)

    def put(self, setup: Setup, seed: int, result: Result) -> None:
        """Keep a result."""
        if self._path is None:
            return
        samples = result.score.samples
        row = {
            "fingerprint": self._fingerprint,
            "key": _key(setup, seed, result.steps),
            "score": result.score.value,
            "samples": None if samples is None else [round(float(value), 6) for value in samples],
            "loss": result.loss if math.isfinite(result.loss) else None,
            "peak": result.peak if math.isfinite(result.peak) else None,
            "broken": result.broken,
            "error": result.error,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def fingerprint_of(model: keras.Model, *data: Any) -> str:
    """Return a digest of a model's weights and of its data."""
    digest = hashlib.sha256()
    for array in [*model.get_weights(), *(part for part in keras.tree.flatten(data) if part is not None)]:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _key(setup: Setup, seed: int, steps: int) -> str:
    text = json.dumps([setup.to_json(), seed, steps], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
