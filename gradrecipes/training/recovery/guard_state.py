"""What a guard writes to disk: its state, for a run that is killed and resumed, and the batches it left out."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from gradrecipes.core.trace import APPLIED, OUTCOMES, SKIPPED_GRADIENT, Trace
from gradrecipes.core.trace.trace import Event

NAME = "guard_state.npz"
PREVIOUS = "guard_state.previous.npz"
TAG = "iterations"


def save_guard_state(directory: str | os.PathLike[str], values: dict[str, np.ndarray], *, iterations: int) -> None:
    """Write the state, in one move, and keep the one before: a run may be killed between two backups.

    Args:
        directory: Where to; it is made if it is missing.
        values: Arrays by name.
        iterations: The optimizer's step counter, which tells which backup of the weights this belongs to.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{NAME}.{os.getpid()}"
    with open(unfinished, "wb") as file:
        np.savez(file, **values, **{TAG: np.int64(iterations)})
    if (folder / NAME).exists():
        os.replace(folder / NAME, folder / PREVIOUS)
    os.replace(unfinished, folder / NAME)


def load_guard_state(directory: str | os.PathLike[str], *, iterations: int) -> dict[str, np.ndarray] | None:
    """Read the state that belongs to weights after so many optimizer steps, or None if there is none.

    Raises:
        ValueError: A file is there that is no state of a guard, or is damaged.
    """
    for name in (NAME, PREVIOUS):
        path = Path(directory) / name
        if not path.exists():
            continue
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                values = dict(file)
            found = int(values.pop(TAG))
        except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on damaged bytes
            raise ValueError(
                f"The state of a guard was expected in {str(path)!r}. Received: a file that cannot be read as one "
                f"({error or type(error).__name__}). Remove it to begin with a fresh guard."
            ) from error
        if found == iterations:
            return values
    return None


def seeds_of(model: keras.Model) -> dict[str, keras.Variable]:
    """Return by name what Keras leaves out of a weights file: the counters of dropout and the like."""
    saved = {id(weight) for weight in model.weights}
    left_out = [variable for variable in model.variables if id(variable) not in saved]
    return {f"seed_{index}": variable for index, variable in enumerate(left_out)}


class SkippedBatches:
    """List in a CSV file the batches that were left out, once a later step has shown that the weights were good.

    Args:
        path: The file, which is made if it is missing. Its columns are `epoch`, `batch` (within the epoch) and `step`,
            counted from 0, `reason`, `loss` and `gradient_norm`.
        trace: What was recorded before; none of it is listed.
        count: Steps that were skipped before.
    """

    def __init__(self, path: str | os.PathLike[str], trace: Trace, count: int):
        self._path = Path(path)
        self._until = int(trace.steps["step"][-1]) if len(trace) else -1  # the last step that is listed, or will not be
        self._count = count  # skipped steps up to there; -1 where some of them wait

    def has_new(self, count: int) -> bool:
        """Return whether there is anything to write, after so many skipped steps."""
        return count != self._count

    def write(self, trace: Trace, count: int, *, scaled: bool, ended: bool, blamed: bool) -> None:
        """List what is known by now to be the fault of a batch.

        Args:
            trace: The record, up to the present step.
            count: Steps that were skipped.
            scaled: Whether a loss scale is searched for, which makes gradients infinite now and then.
            ended: Whether no step follows.
            blamed: Whether the batches after the last step that was applied can be at fault.
        """
        steps, applied = trace.steps["step"], np.flatnonzero(trace.steps["outcome"] == APPLIED)
        last, last_applied = int(steps[-1]), int(steps[applied[-1]]) if len(applied) else -1
        until = last if ended and blamed else last_applied
        skips = [event for event in trace.events if event.kind == "skip" and self._until < event.step <= until]
        self._append([skip for skip in skips if not (scaled and skip.reason == OUTCOMES[SKIPPED_GRADIENT])])
        self._until = until if blamed else last
        self._count = count if self._until == last else -1

    def _append(self, skips: Sequence[Event]) -> None:
        if not skips:
            return
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        written = self._path.read_bytes()[-1:] if self._path.exists() else b""
        if not written:
            writer.writerow(["epoch", "batch", "step", "reason", "loss", "gradient_norm"])
        elif written != b"\n":  # of a run that was killed while it wrote
            lines.write("\n")
        for skip in skips:
            measured = [skip.details.get(name) for name in ("loss", "gradient_norm")]
            writer.writerow([skip.epoch, skip.batch, skip.step, skip.reason, *measured])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(lines.getvalue())
