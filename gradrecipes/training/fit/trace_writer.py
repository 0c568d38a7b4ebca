"""From the rings on the device to the rows of a Trace, with epoch, batch and layer put to each number."""

from __future__ import annotations

import math

import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.gradients.columns import MISSING
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.recorder import STEP_COLUMNS, TAP_COLUMNS
from gradrecipes.training.step.instrumented_step import InstrumentedStep


class Harvest:
    """Take readings from a pipeline's recorder into a Trace.

    Args:
        pipeline: Whose recorder is read.
        step: The instrumented step; it knows variables and layers once it was traced.
        trace: The record to go on with, if its layers are the same; else a new one is begun.

    Attributes:
        trace: The record.
        epoch: The epoch that runs.
        next_step: The host's own count of steps; the device is asked for its count whenever rows are taken.
    """

    def __init__(self, pipeline: Pipeline, step: InstrumentedStep, *, trace: Trace):
        self.trace = trace
        self.epoch = 0
        self._pipeline = pipeline
        self._step = step
        self._earlier = trace if len(trace) else None
        self._begun = False
        self._offset = 0
        self._epoch_starts: list[tuple[int, int]] = []
        self.next_step = 0
        self._collected = 0

    # -- the host's own count of steps -----------------------------------------------------------
    def begin_epoch(self, epoch: int) -> None:
        """Note that the steps from here on belong to an epoch."""
        recorder = self._pipeline.recorder
        self.epoch = epoch
        self.next_step = 0 if recorder is None else int(recorder.step.numpy())
        self._epoch_starts.append((self.next_step, epoch))

    def before_execution(self) -> bool:
        """Return whether the step that can sample is to be run in the execution that begins."""
        recorder = self._pipeline.recorder
        steps = range(self.next_step, self.next_step + self._step.model.steps_per_execution)
        return recorder is None or self._step.serves_all or any(recorder.is_due(step) for step in steps)

    def after_execution(self, steps: int) -> bool:
        """Count the steps that ran; return whether the ring is half full, so that it is time to collect."""
        self.next_step += steps
        return self.next_step - self._collected >= self._pipeline.settings.capacity // 2

    # -- the rows --------------------------------------------------------------------------------
    def collect(self) -> None:
        """Add to the trace what the device has written since the last time."""
        recorder = self._pipeline.recorder
        if recorder is None or self._step.layer_map is None:
            return
        rows, places = recorder.take(), self._step.places
        self._collected = self.next_step = rows.first + len(rows.steps)
        if not self._begun:
            self._begin_trace()
        if len(rows.steps):
            norms = rows.steps[:, len(STEP_COLUMNS) :][:, places]
            self._add_steps(rows.first + np.arange(len(rows.steps)), rows.steps, norms)
        if len(rows.sample_steps):
            sample = recorder.split_sample(rows.samples).items()
            of_variables = {name: part if name in TAP_COLUMNS else part[:, places] for name, part in sample}
            self._add_samples(rows.sample_steps, of_variables)

    def _begin_trace(self) -> None:
        self._begun = True
        names = tuple(self._step.layer_map.names)
        if self._earlier is not None and self._earlier.layers == names:
            self._offset = int(self._earlier.steps["step"][-1]) + 1
            return
        self.trace = Trace(names, description=self._step.description)

    def _note_initial_weights(self, sample: dict[str, np.ndarray]) -> None:
        for layer, kernel in zip(self.trace.description["layers"], self._step.layer_map.kernels, strict=True):
            if kernel is not None and layer["weight_std"] is None and sample["weight_norm"][0, kernel] != MISSING:
                norm, mean = float(sample["weight_norm"][0, kernel]), float(sample["weight_mean"][0, kernel])
                variance = norm**2 / int(self._step.sizes[kernel]) - mean**2
                layer["weight_std"] = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else None
                layer["weight_mean"] = mean if math.isfinite(mean) else None

    def _add_steps(self, steps: np.ndarray, rows: np.ndarray, norms: np.ndarray) -> None:
        starts = np.array([start for start, _ in self._epoch_starts] or [0])
        epochs = np.array([epoch for _, epoch in self._epoch_starts] or [0])
        place = np.maximum(np.searchsorted(starts, steps, side="right") - 1, 0)
        columns = dict(zip(STEP_COLUMNS, rows[:, : len(STEP_COLUMNS)].T, strict=True))
        self.trace.extend(
            step=steps + self._offset,
            epoch=epochs[place],
            batch=steps - starts[place],
            **columns,
            layer_gradient_norm=self._step.layer_map.norms(norms),
        )

    def _add_samples(self, steps: np.ndarray, sample: dict[str, np.ndarray]) -> None:
        layer_map, sizes = self._step.layer_map, self._step.sizes
        if steps[0] == 0 and not len(self.trace.samples):
            self._note_initial_weights(sample)
        weight_norm = layer_map.norms(sample["weight_norm"])
        update_norm = layer_map.norms(sample["update_norm"])
        with np.errstate(divide="ignore", invalid="ignore"):
            update_ratio = np.where(weight_norm > 0, update_norm / weight_norm, np.nan)
        self.trace.extend_samples(
            step=steps + self._offset,
            gradient_max=layer_map.largest(sample["gradient_max"]),
            nonfinite_share=layer_map.shares(sample["nonfinite_share"], sizes),
            zero_share=layer_map.shares(sample["zero_share"], sizes),
            histogram=layer_map.histograms(sample["histogram"]),
            output_rms=layer_map.outputs(sample["output_rms"]),
            output_gradient_norm=layer_map.outputs(sample["output_gradient_norm"]),
            weight_norm=weight_norm,
            update_norm=update_norm,
            update_ratio=update_ratio,
        )
