"""What a rescue builds into a model: other settings of a layer, and data that are standardized within the model."""

from __future__ import annotations

import copy
import functools
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

SEEDS = 2**31 - 1
OWN = "own"  # what the user has, whatever it is
RECURRENT = ("SimpleRNN", "LSTM", "GRU", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
POSITIVE = ("relu", "softplus", "exponential", "relu6")
RECTIFIERS = ("relu", "leaky_relu", "elu", "gelu", "silu", "swish", "mish", "celu", "relu6")
FITTING = {  # by the role of the weight, as Keras initializes it by default; kernels by their activation
    "bias_initializer": "Zeros",
    "recurrent_initializer": "Orthogonal",
    "embeddings_initializer": "RandomUniform",
    "gamma_initializer": "Ones",
    "beta_initializer": "Zeros",
}


def edited(config: dict[str, Any], *edits: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return a copy of a layer's config after the edits, each applied to it and to the configs of layers within."""
    config = copy.deepcopy(config)
    for edit in edits:
        for part in _layers_in(config):
            edit(part)
    return config


def _layers_in(config: Any) -> list[dict[str, Any]]:
    found, pending = [config], list(config.values())
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("config"), dict) and "registered_name" in value and "dtype" in value["config"]:
                found.append(value["config"])
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            pending.extend(value)
    return found


def with_seeds(place: int, seed: int) -> Callable[[dict[str, Any]], None]:
    """Return an edit that gives every seed of a layer a value of its own, fixed by the layer's place and a seed.

    An automatic name would not do: it counts the layers of its kind that the process has built before.
    """

    def edit(config: dict[str, Any]) -> None:
        pending: list[tuple[str, Any]] = [(str(place), config)]
        while pending:
            path, value = pending.pop()
            for key, part in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
                if key == "seed" and (part is None or isinstance(part, int)):
                    value[key] = zlib.crc32(f"{path}/{seed}".encode()) % SEEDS
                elif isinstance(part, dict | list):
                    pending.append((f"{path}/{key}", part))

    return edit


def with_fitting_initializers(activation: str | None) -> Callable[[dict[str, Any]], None]:
    """Return an edit that gives each weight the initializer that fits its role, and a kernel that of its activation."""

    def edit(config: dict[str, Any]) -> None:
        for key in [key for key in config if key.endswith("_initializer")]:
            if config[key] is None:
                continue
            kind = FITTING.get(key)
            if kind is None and ("kernel" in key or key in ("depthwise_initializer", "pointwise_initializer")):
                own = _activation(config)
                kind = kernel_initializer(activation if own in (None, "linear") else own)
            if kind is not None:
                config[key] = {
                    "module": "keras.initializers",
                    "class_name": kind,
                    "config": {},
                    "registered_name": None,
                }
                if kind not in ("Zeros", "Ones"):
                    config[key]["config"] = {"seed": None}

    return edit


def kernel_initializer(activation: str | None) -> str:
    """Return the class of Keras' initializer that fits an activation.

    Example:
        >>> kernel_initializer("relu"), kernel_initializer("tanh"), kernel_initializer("selu")
        ('HeNormal', 'GlorotUniform', 'LecunNormal')
    """
    if activation == "selu":
        return "LecunNormal"
    return "HeNormal" if activation in RECTIFIERS else "GlorotUniform"


def with_setting(name: str, value: str) -> Callable[[dict[str, Any]], None]:
    """Return an edit that exchanges a setting where there is one, such as the activation."""

    def edit(config: dict[str, Any]) -> None:
        if name in config:
            config[name] = value

    return edit


def _activation(config: dict[str, Any]) -> str | None:
    value = config.get("activation")
    if isinstance(value, dict):
        value = value.get("config")
        value = value if isinstance(value, str) else None
    return value


SPREAD_FLOOR = 1e-6  # standard deviation over the mean below which a column is constant
TAIL = 1.0  # percent at either end that does not enter the spread: one outlier must not set the scale
LEAST_OUTPUT = 1e-3  # of a column that must be positive: the logarithm and the reciprocal of it are of usual size
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

    def under(self, head: str, positive: Sequence[int] = ()) -> Scaling:
        """Return the scaling behind an output that is never below 0, from which no mean is added to it.

        Args:
            head: Activation of the only output.
            positive: Its columns that go through softplus.
        """
        if len(self.targets) != 1 or not (positive or head in POSITIVE):
            return self
        place, scale = next(iter(self.targets.items()))
        above = [not positive or column in positive for column in range(len(scale.mean))]
        return replace(self, targets={place: replace(scale, mean=np.where(above, 0.0, scale.mean))})


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


def scaled_in_call(model: keras.Model, scaling: Scaling, *, inputs: bool, targets: bool) -> keras.Model:
    """Let the call of a subclassed model standardize its input and return the user's units, as its train step wants it.

    Args:
        model: A copy of the user's model, with one input and one output. Its class becomes one derived from its own.
        scaling: Means and standard deviations.
        inputs: Whether the input is standardized; what is not finite becomes the mean.
        targets: Whether the layers see standardized targets.
    """
    kind = type(model)

    @functools.wraps(kind.call)
    def call(self: keras.Model, given: Any, *arguments: Any, **keywords: Any) -> Any:
        if inputs:
            mean, spread = (keras.ops.convert_to_tensor(part, "float32") for part in scaling.inputs[0])
            given = (keras.ops.cast(given, "float32") - mean) / spread
            if not scaling.finite:
                given = _bounded(given)
        found = kind.call(self, given, *arguments, **keywords)
        if targets:
            scale = scaling.targets[0]
            spread, mean = (keras.ops.convert_to_tensor(part, "float32") for part in (scale.spread, scale.mean))
            found = keras.ops.cast(found, "float32") * spread + mean
        return found

    model.__class__ = type(f"{kind.__name__}Scaled", (kind,), {"call": call})
    return model


def _bounded(values: Any) -> Any:
    values = keras.ops.where(keras.ops.isfinite(values), values, keras.ops.zeros_like(values))
    return keras.ops.clip(values, -BOUND, BOUND)


def with_positive_columns(model: keras.Model, columns: Sequence[int]) -> keras.Model:
    """Return a Functional model whose output is above 0 in some of its columns.

    Args:
        model: A Sequential or Functional model with one output.
        columns: Places on the last axis.
    """
    output = model.outputs[0]
    parts = [output[..., place : place + 1] for place in range(output.shape[-1])]
    parts = [keras.ops.softplus(part) + LEAST_OUTPUT if place in columns else part for place, part in enumerate(parts)]
    joined = keras.ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    return keras.Model(model.inputs[0] if isinstance(model, keras.Sequential) else model.input, joined, name=model.name)


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
    return out if finite else _bounded(out)
