"""What is kept of the step that broke a training."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.trace import APPLIED, OUTCOMES, SKIPPED_LOSS_OUTLIER, Trace
from gradrecipes.core.trace.autopsy import Autopsy
from gradrecipes.training.autopsy import autopsy
from gradrecipes.training.fit.session import FitSession


@dataclass(frozen=True)
class Recording:
    """One step that went wrong, whole.

    Attributes:
        step: Training step since the start of the record, from 0.
        epoch: Epoch, from 0.
        batch: Batch within the epoch, from 0.
        reason: Why the step was left out, a value of `gradrecipes.core.trace.OUTCOMES`.
        data: The batch as the train step got it: numpy arrays in the structure of the data set; what is sparse or
            ragged stays a tensor of its kind.
        weights: The model's variables before the step, as `model.get_weights()` orders them.
        readings: What was measured up to the step: a `Trace` of the last 128 steps.
        autopsy: Where in the step the trouble began.
    """

    step: int
    epoch: int
    batch: int
    reason: str
    data: Any
    weights: list[np.ndarray]
    readings: Trace
    autopsy: Autopsy

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the recording into a folder of its own: arrays, trace, and the autopsy as JSON and as text."""
        folder = Path(directory) / f"step_{self.step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        parts = tf.nest.flatten(self.data, expand_composites=True)  # of a sparse tensor: indices, values, shape
        batch = {f"batch/{index}": np.asarray(part) for index, part in enumerate(parts)}
        weights = {f"weights/{index}": array for index, array in enumerate(self.weights)}
        np.savez_compressed(folder / "arrays.npz", **batch, **weights)
        self.readings.save(folder / "readings.trace")
        (folder / "autopsy.txt").write_text(f"{self.autopsy}\n")
        (folder / "autopsy.json").write_text(json.dumps(self.to_dict(), indent=2, default=str) + "\n")
        return folder

    def to_dict(self) -> dict[str, Any]:
        """Return what is known, but for the arrays, as plain JSON values."""
        place = {name: getattr(self, name) for name in ("step", "epoch", "batch", "reason")}
        return {**place, "autopsy": self.autopsy.to_dict()}


def record_bad_step(session: FitSession, model: keras.Model) -> Recording | None:
    """Return the last step if it was left out, or None if it was applied; its weights are those before it."""
    trace = session.collect()
    row = len(trace) - 1
    if trace.steps["outcome"][row] == APPLIED:
        return None
    data = tf.nest.map_structure(_whole, session.batch)
    place = {name: int(trace.steps[name][row]) for name in ("step", "epoch", "batch")}
    return Recording(
        **place,
        reason=OUTCOMES[int(trace.steps["outcome"][row])],
        data=data,
        weights=model.get_weights(),
        readings=trace[max(0, row - 127) : row + 1],
        autopsy=_autopsy(model, data, _loss_limit(trace, row)),
    )


def _autopsy(model: keras.Model, data: Any, loss_limit: float | None) -> Autopsy:
    try:
        return autopsy(model, data, loss_limit=loss_limit)
    except Exception as error:  # a fit that a guard keeps alive must not end for it
        return Autopsy(notes=(f"No autopsy: {type(error).__name__}: {str(error)[:300]}",), complete=False)


def _loss_limit(trace: Trace, row: int) -> float | None:
    """Return the largest loss of the steps before, if the step was left out for its size alone."""
    if trace.steps["outcome"][row] < SKIPPED_LOSS_OUTLIER:
        return None
    earlier = trace.loss[max(0, row - 128) : row]
    earlier = earlier[np.isfinite(earlier)]
    return float(earlier.max()) if len(earlier) else None


def _whole(value: Any) -> Any:
    parts = value.values if isinstance(value, tf.distribute.DistributedValues) else (value,)
    if isinstance(parts[0], tf.SparseTensor):
        return tf.sparse.concat(0, list(parts))
    if isinstance(parts[0], tf.RaggedTensor):
        return tf.concat(list(parts), axis=0)
    return np.concatenate([np.asarray(part) for part in parts]) if len(parts) > 1 else np.asarray(parts[0])
