"""Weights and updates of a few steps, read by the host before and after them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import LayerSignal
from gradrecipes.training.fit.trace_writer import TraceWriter


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
