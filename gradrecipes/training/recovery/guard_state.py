"""What a guard writes to disk: its state, for a run that is killed and resumed, and the batches it left out."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gradrecipes.core.trace.event import Event

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


def append_skipped_batches(path: str | os.PathLike[str], skips: Sequence[Event]) -> None:
    """Append a line for each skip to a CSV file, which is made, with a line of names, if it is missing.

    Args:
        path: The file. Its columns are `epoch`, `batch` (within the epoch) and `step`, counted from 0, `reason`, `loss`
            and `gradient_norm`.
        skips: The skips.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    file = Path(path)
    written = file.read_bytes()[-1:] if file.exists() else b""
    if not written:
        writer.writerow(["epoch", "batch", "step", "reason", "loss", "gradient_norm"])
    elif written != b"\n":  # of a run that was killed while it wrote
        lines.write("\n")
    for skip in skips:
        measured = [skip.details.get(name) for name in ("loss", "gradient_norm")]
        writer.writerow([skip.epoch, skip.batch, skip.step, skip.reason, *measured])
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as stream:
        stream.write(lines.getvalue())
