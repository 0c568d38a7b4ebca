"""From the rings on the device to the rows of a Trace, with epoch, batch and layer put to each number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import optimizers_of, sublayers
from gradrecipes.core.trace import APPLIED, OUTCOMES, Trace
from gradrecipes.core.trace.probes import LayerSignal
from gradrecipes.core.trace.trace import Event
from gradrecipes.gradients.packing import MISSING
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.recorder import ACTIVATION_COLUMNS, STEP_COLUMNS
from gradrecipes.training.step.instrumented_step import InstrumentedStep


class TraceWriter:
    """Write the readings of a pipeline's recorder into a Trace.

    Args:
        pipeline: Whose recorder is read.
        step: The instrumented step; it knows variables and layers once it was traced.
        trace: The record to go on with, if its layers are the same; else a new one is begun.

    Attributes:
        trace: The record.
        epoch: The epoch that runs.
        layer_map: Which layer each variable belongs to; None before the first rows.
    """

    def __init__(self, pipeline: Pipeline, step: InstrumentedStep, *, trace: Trace):
        self.trace = trace
        self.epoch = 0
        self.layer_map: LayerMap | None = None
        self._pipeline = pipeline
        self._step = step
        self._earlier = trace if len(trace) else None
        self._offset = 0
        self._epoch_starts: list[tuple[int, int]] = []
        self._of_epoch = np.zeros(3)  # sum, maximum and count of the gradient norms of its updates
        self._next_in_epoch = 0  # the first step that is not among them

    def begin_epoch(self, epoch: int) -> None:
        """Assign the steps from here on to an epoch."""
        self.epoch = epoch
        self._epoch_starts.append((self._pipeline.batches, epoch))
        self._of_epoch, self._next_in_epoch = np.zeros(3), int(self._pipeline.step.numpy())

    def read_norms(self) -> dict[str, float]:
        """Return mean and maximum of the gradient norm over the updates of this epoch; NaN before the first."""
        if self._pipeline.recorder is not None:
            self._add_to_epoch(self._next_in_epoch, self._pipeline.recorder.results_since(self._next_in_epoch))
        total, largest, count = self._of_epoch.tolist()
        mean, largest = (total / count, largest) if count else (math.nan, math.nan)
        return {"gradient_norm": mean, "gradient_norm_max": largest}

    def _add_to_epoch(self, first: int, rows: np.ndarray) -> None:
        """Count the norms of steps; those that were skipped do not count, as they do not in the mean of the loss."""
        rows = rows[max(self._next_in_epoch - first, 0) :]
        self._next_in_epoch += len(rows)
        columns = dict(zip(STEP_COLUMNS, rows.T, strict=False))
        norms = columns["gradient_norm"][columns["outcome"] == APPLIED].astype(np.float64)
        if not np.isfinite(norms).all():
            norms = self._of_updates(norms)
        if len(norms):
            total, largest, count = self._of_epoch
            self._of_epoch = np.array([total + norms.sum(), np.maximum(largest, norms.max()), count + len(norms)])

    def _of_updates(self, norms: np.ndarray) -> np.ndarray:
        from gradrecipes.compat.keras_optimizers import lower_scale

        left_out_by_scaler = any(lower_scale(one) is not None for one in optimizers_of(self._step.model))
        return norms[np.isfinite(norms)] if left_out_by_scaler else norms

    def collect(self) -> None:
        """Add to the trace what the device has written since the last time, and an event for every skipped step."""
        recorder = self._pipeline.recorder
        if recorder is None or self._step.columns is None:
            return
        rows, indices = recorder.take(), self._step.indices
        if self.layer_map is None:
            self._begin_trace()
        self._add_to_epoch(rows.first, rows.steps)
        if len(rows.steps):
            norms = rows.steps[:, len(STEP_COLUMNS) :][:, indices]
            self._add_steps(rows.first + np.arange(len(rows.steps)), rows.batches, rows.steps, norms)
        if len(rows.sample_steps):
            sample = recorder.split_sample(rows.samples).items()
            of_variables = {name: part if name in ACTIVATION_COLUMNS else part[:, indices] for name, part in sample}
            self._add_samples(rows.sample_steps, of_variables)

    def _begin_trace(self) -> None:
        from gradrecipes.training.description.describe import describe_model

        model = self._step.model
        self.layer_map = LayerMap(model, self._step.variables, self._step.captured_layers)
        if self._earlier is not None and self._earlier.layers == tuple(self.layer_map.names):
            self._offset = int(self._earlier.steps["step"][-1]) + 1
            return
        with tf.init_scope():
            description = describe_model(model, self.layer_map.layers, names=self.layer_map.names)
        self.trace = Trace(self.layer_map.names, description=description)

    def _note_initial_weights(self, sample: dict[str, np.ndarray]) -> None:
        spreads = {}
        for place, kernel in enumerate(self.layer_map.kernels):
            if kernel is not None and sample["weight_norm"][0, kernel] != MISSING:
                norm, mean = float(sample["weight_norm"][0, kernel]), float(sample["weight_mean"][0, kernel])
                variance = norm**2 / int(self._step.sizes[kernel]) - mean**2
                spreads[place] = (math.sqrt(max(variance, 0.0)), mean)
        self.trace.description = self.trace.description.with_initial_weights(spreads)

    def _add_steps(self, steps: np.ndarray, batches: np.ndarray, rows: np.ndarray, norms: np.ndarray) -> None:
        starts = np.array([start for start, _ in self._epoch_starts] or [0])
        epochs = np.array([epoch for _, epoch in self._epoch_starts] or [0])
        place = np.maximum(np.searchsorted(starts, batches, side="right") - 1, 0)
        columns = dict(zip(STEP_COLUMNS, rows[:, : len(STEP_COLUMNS)].T, strict=True))
        self.trace.extend(
            step=steps + self._offset,
            epoch=epochs[place],
            batch=batches - starts[place],
            **columns,
            layer_gradient_norm=self.layer_map.norms(norms),
        )
        self._add_skips(len(self.trace) - len(steps))

    def _add_skips(self, first_row: int) -> None:
        steps = self.trace.steps
        for row in np.flatnonzero(steps["outcome"][first_row:] != APPLIED) + first_row:
            step, epoch, batch, outcome = (int(steps[name][row]) for name in ("step", "epoch", "batch", "outcome"))
            details = {name: float(steps[name][row]) for name in ("loss", "gradient_norm")}
            self.trace.add_event(Event("skip", step, epoch, batch, OUTCOMES[outcome], details))

    def _add_samples(self, steps: np.ndarray, sample: dict[str, np.ndarray]) -> None:
        layer_map, sizes = self.layer_map, self._step.sizes
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


class LayerMap:
    """Turn readings by variable, or by captured layer, into readings by layer.

    Captured layers come first, in the order of their calls; then those that were not and have weights.
    A variable belongs to the smallest layer that holds it, a captured one if there is one. A reading that is `MISSING`
    counts for nothing; a layer without any other is NaN.

    Args:
        model: The model.
        variables: The variables that had a gradient, in the order of the readings.
        captured: The layers whose outputs were captured, in the order of the readings.

    Attributes:
        layers: The layers, in the order of the Trace.
        names: Their names, each once.
        kernels: Which variable is the kernel of each layer, or None.
        with_variables: Which layers have variables.
    """

    def __init__(self, model: keras.Model, variables: Sequence[Any], captured: Sequence[keras.layers.Layer]):
        from gradrecipes.training.description.model_graph import kernel_of

        owners = _owners(model, captured)
        owner_of = [owners.get(id(variable), model) for variable in variables]
        self.layers = list({id(layer): layer for layer in [*captured, *owner_of]}.values())
        self.names = _unique_names(self.layers)
        place = {id(layer): column for column, layer in enumerate(self.layers)}
        index = {id(variable): number for number, variable in enumerate(variables)}
        self.kernels = [index.get(id(kernel_of(layer))) for layer in self.layers]
        self._of_variables = np.array([place[id(layer)] for layer in owner_of], dtype=int)
        self.with_variables: list[int] = sorted(set(self._of_variables.tolist()))
        self._of_captured = np.array([place[id(layer)] for layer in captured], dtype=int)

    def norms(self, of_variables: np.ndarray) -> np.ndarray:
        """Join norms `[rows, variables]` to norms of layers, float32 `[rows, layers]`; NaN without variables."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.where(of_variables == MISSING, MISSING, np.square(of_variables.astype(np.float64)))
            return np.sqrt(self._joined(squares, np.add, 0.0)).astype(np.float32)

    def largest(self, of_variables: np.ndarray) -> np.ndarray:
        """Take the largest over the variables of each layer."""
        return self._joined(of_variables, np.maximum, -np.inf).astype(np.float32)

    def shares(self, of_variables: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Average shares over the entries of each layer."""
        missing = of_variables == MISSING
        whole = self._joined(np.where(missing, MISSING, sizes).astype(np.float64), np.add, 0.0)
        parts = np.where(missing, MISSING, of_variables * sizes)
        return (self._joined(parts, np.add, 0.0) / whole).astype(np.float32)

    def histograms(self, of_variables: np.ndarray) -> np.ndarray:
        """Add up histograms `[rows, variables, bins]` to `[rows, layers, bins]`."""
        rows, _, bins = of_variables.shape
        joined = np.zeros((rows, len(self.layers), bins), np.float32)
        np.add.at(joined, (slice(None), self._of_variables), np.where(of_variables == MISSING, 0.0, of_variables))
        return joined

    def outputs(self, of_captured: np.ndarray) -> np.ndarray:
        """Spread readings of captured layers `[rows, captured]` over all layers; NaN for those not read."""
        spread = np.full((len(of_captured), len(self.layers)), np.nan, np.float32)
        if of_captured.shape[1]:
            spread[:, self._of_captured] = of_captured
        return spread

    def _joined(self, values: np.ndarray, join: np.ufunc, start: float) -> np.ndarray:
        there = values != MISSING
        joined = np.full((len(values), len(self.layers)), start, np.float64)
        join.at(joined, (slice(None), self._of_variables), np.where(there, values, start))
        found = np.zeros(joined.shape, bool)
        np.logical_or.at(found, (slice(None), self._of_variables), there)
        joined[~found] = np.nan
        return joined


def _owners(model: keras.Model, captured: Sequence[keras.layers.Layer]) -> dict[int, keras.layers.Layer]:
    is_captured = {id(layer) for layer in captured}
    owners: dict[int, tuple[tuple[bool, int], keras.layers.Layer]] = {}
    for layer in sublayers(model):
        rank = (id(layer) not in is_captured, len(layer.trainable_variables))
        for variable in layer.trainable_variables:
            if id(variable) not in owners or rank < owners[id(variable)][0]:
                owners[id(variable)] = (rank, layer)
    return {key: layer for key, (_, layer) in owners.items()}


def _unique_names(layers: Sequence[keras.layers.Layer]) -> list[str]:
    names = [layer.name for layer in layers]
    taken: dict[str, int] = {}
    unique = []
    for layer, name in zip(layers, names, strict=True):
        if names.count(name) > 1:
            name = getattr(layer, "path", "") or name
        count = taken[name] = taken.get(name, 0) + 1
        unique.append(name if count == 1 else f"{name}_{count}")
    return unique


class WeightSamples:
    """Read the weights of a model before and after some steps, and add them to the record as samples.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._rows: list[tuple[int, dict[int, np.ndarray], dict[int, np.ndarray]]] = []
        self._step, self._before = 0, {}

    def before(self, step: int) -> None:
        """Read the weights that a step begins with."""
        self._step, self._before = step, self._read()

    def after(self) -> None:
        """Read the weights that it leaves, and keep the norms."""
        now = self._read()
        with np.errstate(over="ignore", invalid="ignore"):
            norms = {key: _norm(value) for key, value in self._before.items()}
            moved = {key: _norm(now[key] - value) for key, value in self._before.items() if key in now}
        if not self._rows:
            self._first = {key: (float(np.std(value)), float(np.mean(value))) for key, value in self._before.items()}
        self._rows.append((self._step, norms, moved))

    def add_to(self, writer: TraceWriter, variables: Sequence[Any], *, outputs: Sequence[LayerSignal] = ()) -> None:
        """Write the samples into a trace by layers, and the spread of the initial weights into its description.

        Args:
            writer: The writer of the record.
            variables: The variables that had a gradient.
            outputs: What each layer put out before the first step.
        """
        trace, layer_map = writer.trace, writer.layer_map
        rows = [row for row in self._rows if row[0] < len(trace)]
        if layer_map is None or not rows or not len(trace.layers):
            return
        weights, updates = (
            layer_map.norms(np.array([[row[part].get(id(one), math.nan) for one in variables] for row in rows]))
            for part in (1, 2)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(weights > 0, updates / weights, np.nan)
        captured = {name: _of_first(trace, outputs, name, len(rows)) for name in ("output_rms", "output_gradient_norm")}
        trace.extend_samples(
            step=[row[0] for row in rows], weight_norm=weights, update_norm=updates, update_ratio=ratios, **captured
        )
        unknown = (math.nan, math.nan)
        kernels = [(place, kernel) for place, kernel in enumerate(layer_map.kernels) if kernel is not None]
        spreads = {place: self._first.get(id(variables[kernel]), unknown) for place, kernel in kernels}
        trace.description = trace.description.with_initial_weights(spreads)

    def _read(self) -> dict[int, np.ndarray]:
        return {id(one): np.asarray(one).astype(np.float64) for one in self._model.trainable_variables}


def _of_first(trace: Trace, outputs: Sequence[LayerSignal], reading: str, rows: int) -> np.ndarray:
    values = np.full((rows, len(trace.layers)), np.nan)
    by_name = {layer.name: getattr(layer, reading) for layer in outputs}
    values[0] = [np.nan if by_name.get(name) is None else by_name[name] for name in trace.layers]
    return values


def _norm(values: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(values))))
