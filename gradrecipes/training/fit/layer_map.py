"""Which layer each trainable variable belongs to, and in what order a Trace lists the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.gradients.columns import MISSING
from gradrecipes.training.description.model_graph import kernel_of


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
