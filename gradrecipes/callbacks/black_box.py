"""Keep the step that broke a training: where in it the trouble began, and whether batch, weights or chance broke it."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.core.arguments import require_directory, require_whole
from gradrecipes.core.trace import APPLIED, OUTCOMES, SKIPPED_LOSS_OUTLIER, Trace
from gradrecipes.core.trace.autopsy import Autopsy
from gradrecipes.training.autopsy import autopsy
from gradrecipes.training.fit.prepared_step import Request
from gradrecipes.training.fit.session import FitSession


class Origin(StrEnum):
    """Where the fault of a bad step lies, as running it again from the same state shows."""

    TRANSIENT = "transient"
    THIS_BATCH = "this_batch"
    THESE_WEIGHTS = "these_weights"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Rerun:
    """One more run of a step from the state before it.

    Args:
        batch: `"same"`, `"next"`, or `"previous"`: the one before, if its step was applied.
        outcome: A value of `gradrecipes.core.trace.OUTCOMES`.
        loss: The loss of the batch; NaN where it is not seen.
    """

    batch: str
    outcome: str
    loss: float

    @property
    def good(self) -> bool:
        """Whether the step would have been applied."""
        return self.outcome == OUTCOMES[APPLIED]

    def __str__(self) -> str:
        return f"the {self.batch} batch: {self.outcome}, loss {self.loss:.4g}"


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
        origin: Whether the fault is transient, of this batch or of these weights.
        reruns: The further runs of the step that say so.
    """

    step: int
    epoch: int
    batch: int
    reason: str
    data: Any
    weights: list[np.ndarray]
    readings: Trace
    autopsy: Autopsy
    origin: Origin = Origin.UNKNOWN
    reruns: tuple[Rerun, ...] = ()

    @property
    def origin_sentence(self) -> str:
        """What running the step again has shown, in a sentence."""
        runs = f" ({'; '.join(map(str, self.reruns))})" if self.reruns else ""
        return f"{_ORIGINS[self.origin]}{runs}."

    def __str__(self) -> str:
        place = f"Step {self.step}, epoch {self.epoch + 1}, batch {self.batch + 1}, was left out: {self.reason}."
        return f"{place}\n{self.origin_sentence}\n{self.autopsy}"

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the recording into a folder of its own: arrays, trace, and the autopsy as JSON and as text."""
        folder = Path(directory) / f"step_{self.step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        parts = tf.nest.flatten(self.data, expand_composites=True)  # of a sparse tensor: indices, values, shape
        batch = {f"batch/{index}": np.asarray(part) for index, part in enumerate(parts)}
        weights = {f"weights/{index}": array for index, array in enumerate(self.weights)}
        np.savez_compressed(folder / "arrays.npz", **batch, **weights)
        self.readings.save(folder / "readings.trace")
        (folder / "autopsy.txt").write_text(f"{self}\n")
        (folder / "autopsy.json").write_text(json.dumps(self.to_dict(), indent=2, default=str) + "\n")
        return folder

    def to_dict(self) -> dict[str, Any]:
        """Return what is known, but for the arrays, as plain JSON values."""
        place = {name: getattr(self, name) for name in ("step", "epoch", "batch", "reason")}
        return {**place, **self.origin_to_dict(), "autopsy": self.autopsy.to_dict()}

    def origin_to_dict(self) -> dict[str, Any]:
        """Return the origin and what it rests on as plain JSON values."""
        runs = [{**asdict(one), "loss": one.loss if np.isfinite(one.loss) else str(one.loss)} for one in self.reruns]
        return {"origin": self.origin.value, "origin_sentence": self.origin_sentence, "reruns": runs}


_ORIGINS = {
    Origin.TRANSIENT: "The fault is transient: run again from the same state on the same batch, the step is good",
    Origin.THIS_BATCH: "The fault is of this batch: from the same state the step fails on it again, and not on another",
    Origin.THESE_WEIGHTS: "The fault is of these weights: from the same state the step fails on other batches too",
    Origin.UNKNOWN: "Whether the fault is of the batch or of the weights is not known: no other batch could be tried",
}


def record_bad_step(session: FitSession, model: keras.Model) -> Recording | None:
    """Return the last step if it was left out, or None if it was applied; its weights are those before it."""
    trace = session.collect()
    row = len(trace) - 1
    if trace.steps["outcome"][row] == APPLIED:
        return None
    origin, reruns = _find_origin(session, row)
    data = tf.nest.map_structure(_whole, session.kept.batch)
    place = {name: int(trace.steps[name][row]) for name in ("step", "epoch", "batch")}
    return Recording(
        **place,
        reason=OUTCOMES[int(trace.steps["outcome"][row])],
        data=data,
        weights=model.get_weights(),
        readings=trace[max(0, row - 127) : row + 1],
        autopsy=_autopsy(model, data, _loss_limit(trace, row)),
        origin=origin,
        reruns=reruns,
    )


def _find_origin(session: FitSession, row: int) -> tuple[Origin, tuple[Rerun, ...]]:
    """Run the step again from the same state: on the same batch, on the next one, and on the last that was good."""
    reruns: list[Rerun] = []

    def is_good(name: str, batch: Any) -> bool:
        seen = None if batch is None else session.retry(batch)
        if seen is not None:
            reruns.append(Rerun(name, OUTCOMES[seen[0]], seen[1]))
        return seen is not None and reruns[-1].good

    try:
        if is_good("same", session.kept.batch):
            return Origin.TRANSIENT, tuple(reruns)
        applied = row and session.trace.steps["outcome"][row - 1] == APPLIED
        good = is_good("next", session.kept.next_batch()) or (applied and is_good("previous", session.kept.before))
    except Exception:  # a step that raises: the fit itself is to go on
        return Origin.UNKNOWN, tuple(reruns)
    if good:
        return Origin.THIS_BATCH, tuple(reruns)
    return Origin.THESE_WEIGHTS if len(reruns) > 1 else Origin.UNKNOWN, tuple(reruns)


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


_LOG = logging.getLogger(__name__)


class BlackBox(AttachedCallback):
    """Keep the batch, the weights and the readings of the first step that goes wrong, and name the first offender.

    The step itself is left out, so that the weights are still those before it. Then one forward and backward pass,
    layer by layer, finds where the first value went wrong: an input, a weight, a layer's output, the loss, a gradient,
    an optimizer slot, with layer and samples. Until that moment a batch is merely held until the next one comes.
    And the step is run again from the same state. Where the same batch is good this time, the fault is transient: of
    the hardware, or of a loss scale that has come down since. Where another batch is good, the next one or the last
    that was, it is of this batch; else it is of these weights.

    It works where the step is compiled by XLA, in which `tf.debugging.enable_check_numerics` is silent. The steps of
    one execution (`steps_per_execution`) are run one by one while the box is there.

    Alone, it stops the training at the first step whose loss or gradient is not finite; together with a
    `GradientGuard` it records and the guard goes on.

    Args:
        directory: Where recordings are written, a folder for each, or None.
        recordings: How many steps are recorded; then the box is full.

    Attributes:
        recordings: list of `gradrecipes.callbacks.black_box.Recording`.
        trace: The record of the fit.

    Raises:
        TypeError: `directory` is no path.
        ValueError: `recordings` is no positive whole number; in `fit`: the model is not compiled, or two black
            boxes were passed.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x = np.array([[1.0, 2.0], [3.0, np.nan]], "float32")
        >>> box = BlackBox()
        >>> _ = model.fit(x, np.ones((2, 1)), verbose=0, callbacks=[box])
        >>> box.recordings[0].autopsy.first.samples
        (1,)
        >>> box.recordings[0].origin.value  # the data end here: there is no other batch to try
        'unknown'
    """

    def __init__(self, *, directory: str | os.PathLike[str] | None = None, recordings: int = 1):
        require_directory("directory", directory)
        remedy = "Each keeps a batch and the weights in memory; 1 is most often enough."
        require_whole("recordings", recordings, least=1, remedy=remedy)
        super().__init__(
            Request(
                skip=True, sigmas=6.0, keep_batches=True, check=self._check, check_every=1, renewed=self._count_skips
            )
        )
        self.directory = directory
        self.capacity = recordings
        self.recordings: list[Recording] = []
        self._skips_seen = self._began = 0  # steps that had run when the fit began

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the pipeline in place."""
        super().on_train_begin(logs)
        self._began = self._session.steps_run
        self._count_skips()

    def _count_skips(self) -> None:
        self._skips_seen = int(self._session.pipeline.skipped_steps.numpy())

    def _check(self) -> None:
        if len(self.recordings) >= self.capacity:
            return
        skips = int(self._session.pipeline.skipped_steps.numpy())
        if skips <= self._skips_seen:
            return
        self._skips_seen = skips
        recording = record_bad_step(self._session, self.model)
        if recording is None:
            return
        if not _is_fatal(recording) and self._session.steps_run == self._began + 1:
            for detector in self._session.pipeline.detectors.values():
                detector.forget()  # a fit that begins with an outlier among the losses of an earlier one has other data
            return
        self._keep(recording)

    def _keep(self, recording: Recording) -> None:
        self.recordings.append(recording)
        details = {**recording.origin_to_dict(), "autopsy": recording.autopsy.to_dict()}
        self._session.add_event("black_box", recording.reason, details)
        _LOG.warning(
            "BlackBox kept the step at epoch %d, batch %d (%s). %s %s",
            recording.epoch + 1,
            recording.batch + 1,
            recording.reason,
            recording.origin_sentence,
            recording.autopsy.first or "All its numbers are finite: see `recordings[-1].autopsy`.",
        )
        if self.directory is not None:
            _LOG.warning("It is written into %s.", recording.save(self.directory))
        if self._session.is_alone(self) and _is_fatal(recording):
            self.model.stop_training = True


def _is_fatal(recording: Recording) -> bool:
    return recording.reason not in ("loss_outlier", "gradient_outlier")
