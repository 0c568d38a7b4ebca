"""Standardize data within the model, so that it takes and gives the user's own units."""

from __future__ import annotations

import warnings
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
        target: (mean, standard deviation) float `[columns]` of the only target, or None.
    """

    inputs: tuple[Any, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]
    structure: Any
    finite: bool
    target: tuple[np.ndarray, np.ndarray] | None

    def loss_weight(self, loss: str) -> float:
        """Return what brings a loss in the user's units to that of standardized targets."""
        if self.target is None:
            return 1.0
        spread = float(np.sqrt(np.mean(self.target[1] ** 2)))
        power = 1 if loss in ("mae", "mean_absolute_error", "huber") else 2
        return float(np.clip(spread**-power, 1e-30, 1e30))


def scaling_of(x: Any, y: Any, looked_up: tuple[bool, ...]) -> Scaling:
    """Measure the training data.

    Args:
        x: Arrays, nested as the model takes them.
        y: Targets, or None.
        looked_up: For each flattened input whether its numbers are only looked up in a table.
    """
    arrays = [np.asarray(part) for part in keras.tree.flatten(x)]
    marks = tuple(looked_up) + (False,) * len(arrays)
    measured = tuple(
        None if mark or array.dtype.kind not in "fiu" else _measured(array)
        for array, mark in zip(arrays, marks, strict=False)
    )
    targets = [np.asarray(part) for part in keras.tree.flatten(y)] if y is not None else []
    single = len(targets) == 1 and targets[0].dtype.kind in "fiu"
    return Scaling(
        measured,
        tuple(tuple(array.shape[1:]) for array in arrays),
        tuple("float32" if array.dtype.kind == "f" else str(array.dtype) for array in arrays),
        x,
        finite=all(_is_tame(array, one) for array, one in zip(arrays, measured, strict=True) if one is not None),
        target=_measured(targets[0]) if single else None,
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
    if targets and scaling.target is not None:
        mean, spread = scaling.target
        scale, offset = (spread, mean) if len(mean) > 1 else (float(spread[0]), float(mean[0]))
        layer = keras.layers.Rescaling(scale, offset, name="targets_in_user_units", dtype="float32")
        outputs = keras.tree.map_structure(layer, outputs)
    return keras.Model(keras.tree.pack_sequence_as(scaling.structure, symbols), outputs, name=f"{model.name}_scaled")


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
