"""The record of a training: what was measured at each step and layer, and what happened."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import Probes
from gradrecipes.core.trace.record import Table, to_json


@dataclass(frozen=True)
class Event:
    """Tell what happened, when, and why.

    Args:
        kind: A short noun: `"skip"`, `"stop"`, `"epoch"`, `"interrupted"`.
        step: Training step since the start of the record, counted from 0.
        epoch: Epoch as Keras counts it, from 0.
        batch: Batch within the epoch, from 0.
        reason: One machine-readable word, such as `"nonfinite_gradient"`; empty when there is none.
        details: What else is known, as plain JSON values.

    Raises:
        TypeError: The step, the epoch or the batch is no whole number.
    """

    kind: str
    step: int
    epoch: int
    batch: int
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("step", "epoch", "batch"):
            if not isinstance(getattr(self, name), int | np.integer):
                raise TypeError(
                    f"`{name}` of an event must be a whole number, counted from 0. "
                    f"Received: {name}={getattr(self, name)!r} in the event {self.kind!r}."
                )

    @property
    def logs(self) -> dict[str, Any]:
        """The logs of the epoch that ended, by name; empty for other events."""
        return self.details.get("logs") or {}

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain JSON values."""
        return to_json(self)

    def __repr__(self) -> str:
        return f"<Event: {self}>"

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.kind} at epoch {self.epoch + 1}, batch {self.batch + 1}{reason}"


STEP_READINGS = ("epoch", "batch", "loss", "gradient_norm", "clip_factor", "outcome")
SAMPLE_READINGS = (
    "gradient_max",
    "nonfinite_share",
    "zero_share",
    "weight_norm",
    "update_norm",
    "update_ratio",
    "output_rms",
    "output_gradient_norm",
)
HISTOGRAM_LOWEST = -40  # log2 of the lower edge of the first bin; float32 gradients below 2^-40 are rounding noise
HISTOGRAM_HIGHEST = 24  # log2 of the upper edge of the last bin
HISTOGRAM_BINS = HISTOGRAM_HIGHEST - HISTOGRAM_LOWEST

APPLIED, SKIPPED_LOSS, SKIPPED_GRADIENT, SKIPPED_OVERFLOW, SKIPPED_LOSS_OUTLIER, SKIPPED_NORM_OUTLIER = range(6)
OUTCOMES = {
    APPLIED: "applied",
    SKIPPED_LOSS: "nonfinite_loss",
    SKIPPED_GRADIENT: "nonfinite_gradient",
    SKIPPED_OVERFLOW: "gradient_overflow",
    SKIPPED_LOSS_OUTLIER: "loss_outlier",
    SKIPPED_NORM_OUTLIER: "gradient_outlier",
}


class Trace:
    """Keep what a training measured, step by step and layer by layer, and read it anywhere.

    A Trace needs neither a model nor TensorFlow: rules, plots and reports read it and nothing else,
    and a Trace saved on one machine is diagnosed on another.

    There are two tables. `steps` has a row for every training step; `samples` has a row for every step
    at which the expensive statistics were due (the first steps, every n-th one, and those that went wrong).
    A value that was not measured is NaN.

    Args:
        layers: Names of the layers, in the order in which they are called.
        description: What is known of the model and its optimizer; None for nothing.

    Attributes:
        steps: `step` int64 `[n]`; `epoch`, `batch` int32 `[n]`; `loss` float32 `[n]`, the loss of the
            batch, not Keras' running mean; `gradient_norm` float32 `[n]`, global L2 norm of the
            unscaled gradient before clipping; `clip_factor` float32 `[n]`, what the gradient was
            multiplied by, at most 1; `outcome` int32 `[n]`, a key of `OUTCOMES`;
            `layer_gradient_norm` float32 `[n, layers]`.
        samples: `step` int64 `[m]`; each of `SAMPLE_READINGS` float32 `[m, layers]`;
            `histogram` float32 `[m, layers, bins]`, counts of log2|g| in bins of one binary order
            from `HISTOGRAM_LOWEST` to `HISTOGRAM_HIGHEST`, the outermost bins open.
        description: `Description` of the model.
        events: list of `Event`.
        probes: `Probes`, what was measured without training. Empty for a record of training alone.

    Example:
        >>> trace = Trace(layers=["dense"])
        >>> trace.append(step=0, loss=2.3, gradient_norm=1.5, layer_gradient_norm=[1.5])
        >>> len(trace)
        1
    """

    def __init__(self, layers: Iterable[str] = (), *, description: Description | None = None):
        self.layers = tuple(layers)
        if isinstance(layers, str) or not all(isinstance(name, str) for name in self.layers):
            raise TypeError(f"`layers` must be a list of names, as in ['dense', 'out']. Received: {layers!r}.")
        self.description = Description() if description is None else description
        self.events: list[Event] = []
        self.probes = Probes()
        self.reset_tables()

    def reset_tables(self) -> None:
        """Forget every reading; layers, description, events and probes stay."""
        depth = len(self.layers)
        integers = {"epoch": np.int32, "batch": np.int32, "outcome": np.int32}
        self.steps = Table(
            {
                "step": ((), np.int64),
                **{name: ((), integers.get(name, np.float32)) for name in STEP_READINGS},
                "layer_gradient_norm": ((depth,), np.float32),
            }
        )
        self.samples = Table(
            {
                "step": ((), np.int64),
                **{name: ((depth,), np.float32) for name in SAMPLE_READINGS},
                "histogram": ((depth, HISTOGRAM_BINS), np.float32),
            }
        )

    # -- reading ---------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.steps)

    @property
    def loss(self) -> np.ndarray:
        """float32 `[n]`, the loss of each batch; at most 1e30 where that of float64 is finite."""
        return self.steps["loss"]

    @property
    def gradient_norm(self) -> np.ndarray:
        """float32 `[n]`, the global gradient norm of each step, before clipping."""
        return self.steps["gradient_norm"]

    @property
    def layer_gradient_norm(self) -> np.ndarray:
        """float32 `[n, layers]`, the gradient norm of each step and layer, before clipping."""
        return self.steps["layer_gradient_norm"]

    @property
    def skipped(self) -> np.ndarray:
        """bool `[n]`, whether the step was left out by the guard."""
        return self.steps["outcome"] != APPLIED

    def locate(self, step: int) -> tuple[int, int] | None:
        """Return (epoch, batch) of a step, both counted from 0, or None when the step is not recorded."""
        rows = np.flatnonzero(self.steps["step"] == step)
        if not len(rows):
            return None
        return int(self.steps["epoch"][rows[0]]), int(self.steps["batch"][rows[0]])

    # -- writing ---------------------------------------------------------------------------------
    def append(self, *, step: int, **readings: Any) -> None:
        """Add one step. Readings that are left out are NaN (0 for whole numbers)."""
        self.extend(step=[step], **{name: [value] for name, value in readings.items()})

    def extend(self, *, step: Any, **readings: Any) -> None:
        """Add many steps at once; every reading has one row for each step.

        Raises:
            ValueError: An unknown reading, or shapes that do not fit the layers.
        """
        self.steps.extend(step=step, **readings)

    def extend_samples(self, *, step: Any, **readings: Any) -> None:
        """Add many samples at once; every reading has one row for each sample."""
        self.samples.extend(step=step, **readings)

    def add_event(self, event: Event) -> None:
        """Add one event."""
        self.events.append(event)

    # -- parts and unions ------------------------------------------------------------------------
    def __getitem__(self, rows: slice) -> Trace:
        """Return the part of the record within a slice of rows, samples and events with it."""
        if not isinstance(rows, slice):
            raise TypeError(
                f"A Trace is sliced by rows, as in trace[10:20]. Received: {rows!r}. "
                "For one reading, use trace.steps[name][row]."
            )
        part = Trace(self.layers, description=self.description)
        part.probes = self.probes
        part.steps = self.steps.take(np.arange(len(self))[rows])
        kept = set(part.steps["step"].tolist())
        part.samples = self.samples.take(
            np.array([i for i, step in enumerate(self.samples["step"].tolist()) if step in kept], dtype=int)
        )
        part.events = [event for event in self.events if event.step in kept]
        return part

    def merge(self, later: Trace) -> Trace:
        """Return a new Trace: this record, then `later`, its steps counted on from this one's end.

        Raises:
            ValueError: The layers differ, so that the columns would not mean the same.
        """
        if self.layers != later.layers:
            raise ValueError(
                "Only traces of the same layers can be merged. "
                f"Received: {len(self.layers)} layers {list(self.layers)[:4]} and "
                f"{len(later.layers)} layers {list(later.layers)[:4]}. Diagnose the traces one by one instead."
            )
        offset = int(self.steps["step"].max()) + 1 if len(self) else 0
        first = int(later.steps["step"].min()) if len(later) else 0
        shift = max(0, offset - first)
        whole = Trace(self.layers, description=self.description.filled_from(later.description))
        whole.probes = self.probes.filled_from(later.probes)
        whole.steps = self.steps.joined(later.steps.shifted(shift))
        whole.samples = self.samples.joined(later.samples.shifted(shift))
        whole.events = self.events + [dataclasses.replace(event, step=event.step + shift) for event in later.events]
        return whole

    # -- files -----------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record to one file (zip of numpy arrays and JSON; versioned; no pickle)."""
        arrays = {f"steps/{name}": values for name, values in self.steps.items()}
        arrays |= {f"samples/{name}": values for name, values in self.samples.items()}
        meta = {
            "layers": list(self.layers),
            "description": self.description.to_json(),
            "events": [event.to_dict() for event in self.events],
            "probes": self.probes.to_json(),
        }
        from gradrecipes.core.trace.trace_file import write_trace_file

        write_trace_file(path, arrays=arrays, meta=meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a record that `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, is no trace, or is of a later version.
        """
        from gradrecipes.core.trace.trace_file import read_trace_file, unreadable

        arrays, meta = read_trace_file(path)
        try:
            return cls._from_parts(arrays, meta)
        except (ValueError, TypeError) as error:
            raise unreadable(path, error) from error

    @classmethod
    def _from_parts(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Trace:
        if meta["version"] == 1:
            from gradrecipes.core.trace.trace_file import upgrade

            description, probes = upgrade(meta["description"], meta["probes"])
        else:
            description, probes = Description.from_json(meta["description"]), Probes.from_json(meta["probes"])
        trace = cls(meta["layers"], description=description)
        trace.events = [Event(**event) for event in meta["events"]]
        trace.probes = probes
        tables = {"steps": trace.steps, "samples": trace.samples}
        columns: dict[str, dict[str, np.ndarray]] = {name: {} for name in tables}
        for name, values in arrays.items():
            table, _, column = name.partition("/")
            if table not in columns:
                raise ValueError(f"it holds {name!r}, which no trace does")
            columns[table][column] = values
        for name in tables:
            if "step" not in columns[name]:
                raise ValueError(f"the column 'step' of its {name} is missing")
            tables[name].extend(**columns[name])
        return trace

    def __repr__(self) -> str:
        last = f", last loss {self.loss[-1]:.4g}" if len(self) and math.isfinite(self.loss[-1]) else ""
        return (
            f"<Trace of {len(self)} steps, {len(self.layers)} layers, {len(self.samples)} samples, "
            f"{len(self.events)} events{last}>"
        )
