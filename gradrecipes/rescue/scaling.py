"""Standardize data within the model, so that it takes and gives the user's own units."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

SPREAD_FLOOR = 1e-6  # standard deviation over the mean below which a column is constant
TAIL = 1.0  # percent at either end that does not enter the spread: one outlier must not set the scale
BOUND = 10.0  # standard deviations at which a standardized input is cut off


@dataclass(frozen=True, eq=False)
class Scaling:
    """Hold what standardizes the data.

    Args:
        inputs: For each flattened input (mean, standard deviation) float `[columns]`, or None for one that is looked
            up in a table, or holds whole numbers.
        shapes: Shape of each flattened input, without samples.
        dtypes: Their dtypes.
        structure: An input structure, for its nesting only.
        finite: Whether all inputs are finite, and none an outlier.
        targets: By the position of a flattened output, the target that it is to predict, where that can be scaled.
    """

    inputs: tuple[Any, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]
    structure: Any
    finite: bool
    targets: Mapping[int, TargetScale]


@dataclass(frozen=True, eq=False)
class TargetScale:
    """Hold what standardizes one target.

    Args:
        mean: float `[columns]`.
        spread: Standard deviation, float `[columns]`.
        loss: Keras' name of the loss on it; empty for the only one, which the setup names.
    """

    mean: np.ndarray
    spread: np.ndarray
    loss: str = ""

    def loss_weight(self, loss: str) -> float:
        """Return what brings a loss in the user's units to that of standardized targets."""
        spread = float(np.sqrt(np.mean(self.spread**2)))
        power = 1 if (self.loss or loss) in ("mae", "mean_absolute_error", "huber") else 2
        return float(np.clip(spread**-power, 1e-30, 1e30))


def scaling_of(
    x: Any, y: Any, looked_up: tuple[bool, ...], numbers: Mapping[int, tuple[int, str]] | None = None
) -> Scaling:
    """Measure the training data.

    Args:
        x: Arrays, nested as the model takes them.
        y: Targets, or None.
        looked_up: For each flattened input whether its numbers are only looked up in a table.
        numbers: By the position of an output that is to predict numbers, the position of its target and the name of
            its loss; None for a single output.
    """
    arrays = [np.asarray(part) for part in keras.tree.flatten(x)]
    marks = tuple(looked_up) + (False,) * len(arrays)
    measured = tuple(
        None if mark or array.dtype.kind not in "fiu" else _measured(array)
        for array, mark in zip(arrays, marks, strict=False)
    )
    arrays_of_targets = [np.asarray(part) for part in keras.tree.flatten(y)] if y is not None else []
    if numbers is None:
        numbers = {0: (0, "")} if len(arrays_of_targets) == 1 else {}
    targets = {
        place: TargetScale(*_measured(arrays_of_targets[target]), loss)
        for place, (target, loss) in numbers.items()
        if arrays_of_targets[target].dtype.kind in "fiu"
    }
    return Scaling(
        measured,
        tuple(tuple(array.shape[1:]) for array in arrays),
        tuple("float32" if array.dtype.kind == "f" else str(array.dtype) for array in arrays),
        x,
        finite=all(_is_tame(array, one) for array, one in zip(arrays, measured, strict=True) if one is not None),
        targets=targets,
    )


def _measured(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = array.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    columns = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(-1, 1)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanpercentile(columns, [TAIL, 100.0 - TAIL], axis=0)
        cut = np.clip(columns, low, high)
        mean, spread = np.nan_to_num(np.nanmean(cut, axis=0)), np.nan_to_num(np.nanstd(cut, axis=0))
        rare = np.nan_to_num(np.nanstd(columns, axis=0))
    spread = np.where(spread > SPREAD_FLOOR * np.abs(mean) + 1e-30, spread, rare)  # a column that is mostly zero
    return mean, np.where(spread > SPREAD_FLOOR * np.abs(mean) + 1e-30, spread, 1.0)


def _is_tame(array: np.ndarray, measured: tuple[np.ndarray, np.ndarray]) -> bool:
    mean, spread = measured
    values = array.astype(np.float64)
    values = values if values.ndim > 1 else values[:, None]
    return bool(np.isfinite(values).all() and (np.abs(values - mean) <= BOUND * spread).mean() >= 0.99)


def wrapped(model: keras.Model, scaling: Scaling, *, inputs: bool, targets: bool) -> keras.Model:
    """Return a Functional model around a model that standardizes what goes in, and gives back the user's units.

    Args:
        model: Any model that can be called on symbolic tensors.
        scaling: Means and standard deviations.
        inputs: Whether the inputs are standardized; what is not finite becomes the mean.
        targets: Whether the layers see standardized targets.
    """
    names = _names(model, len(scaling.shapes))
    symbols = [
        keras.Input(shape, dtype=dtype, name=name)
        for shape, dtype, name in zip(scaling.shapes, scaling.dtypes, names, strict=True)
    ]
    flat = [
        _standardized(symbol, measured, scaling.finite) if inputs and measured is not None else symbol
        for symbol, measured in zip(symbols, scaling.inputs, strict=True)
    ]
    outputs = model(keras.tree.pack_sequence_as(scaling.structure, flat))
    flat_outputs = keras.tree.flatten(outputs)
    names = list(getattr(model, "output_names", None) or [])  # by which losses and metrics may be given
    named = len(names) == len(flat_outputs) == len(set(names))
    for place, output in enumerate(flat_outputs):
        name = names[place] if named else None
        if targets and place in scaling.targets:
            flat_outputs[place] = _in_user_units(scaling.targets[place], name)(output)
        elif named:
            flat_outputs[place] = keras.layers.Identity(name=name)(output)
    outputs = keras.tree.pack_sequence_as(outputs, flat_outputs)
    return keras.Model(keras.tree.pack_sequence_as(scaling.structure, symbols), outputs, name=f"{model.name}_scaled")


def _in_user_units(scale: TargetScale, name: str | None) -> keras.layers.Layer:
    several = len(scale.mean) > 1
    factor, offset = (scale.spread, scale.mean) if several else (float(scale.spread[0]), float(scale.mean[0]))
    return keras.layers.Rescaling(factor, offset, name=name or "targets_in_user_units", dtype="float32")


def _names(model: keras.Model, count: int) -> list[str | None]:
    known = [getattr(one, "name", None) for one in (getattr(model, "inputs", None) or [])]
    return known if len(known) == count and len(set(known)) == count else [None] * count


def _standardized(symbol: Any, measured: tuple[np.ndarray, np.ndarray], finite: bool) -> Any:
    mean, spread = measured
    if str(symbol.dtype) != "float32":
        symbol = keras.ops.cast(symbol, "float32")
    if len(symbol.shape) > 1:
        layer = keras.layers.Normalization(mean=mean.tolist(), variance=(spread**2).tolist(), dtype="float32")
    else:
        layer = keras.layers.Rescaling(1.0 / float(spread[0]), -float(mean[0] / spread[0]), dtype="float32")
    out = layer(symbol)
    if finite:
        return out
    out = keras.ops.where(keras.ops.isfinite(out), out, keras.ops.zeros_like(out))
    return keras.ops.clip(out, -BOUND, BOUND)
