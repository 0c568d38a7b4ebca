"""Read from the data, without a model's help: missing values, scales, labels, samples that are absurd."""

from __future__ import annotations

import logging
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.probes.columns import read_numbers, targets_of
from gradrecipes.training.autopsy.arrays import dense, leaves
from gradrecipes.training.description.model_graph import ModelGraph, model_graph
from gradrecipes.training.description.output_head import first_layers

logger = logging.getLogger(__name__)

LOOKUPS = {"Embedding", "StringLookup", "IntegerLookup", "Hashing", "CategoryEncoding", "TextVectorization"}


def data_probe(
    x: Any, y: Any = None, sample_weight: Any = None, *, model: keras.Model | None = None, complete: bool = True
) -> dict[str, Any]:
    """Tell what the data are: finite or not, how large, how the columns differ, what the targets look like.

    Nothing is changed, and odd data are facts, not errors: text, objects, ragged and sparse arrays are read as far
    as they go.

    Args:
        x: Inputs, an array or a nested structure of arrays, samples first.
        y: Targets, likewise.
        sample_weight: Sample weights, likewise.
        model: The model, to tell which inputs are indices into an embedding.
        complete: Whether these are all the data.

    Returns:
        Plain JSON values: `samples`, `complete`, `inputs` and `targets` (a list with a dict for each array) and
        `sample_weight` (such a list, or None). Each array has
        `name` (`"x"`, `"x[0]"`, `"x['pixels']"`), `shape` (without samples), `samples`, `dtype`,
        `numeric` and `unreadable` (why not, or None), `integer_valued`, `feeds_embedding`;
        `nonfinite` (entries), `nonfinite_samples` (the first 20), `nonfinite_share` (of the samples);
        `rms`, `mean`, `std`, `min`, `max`, `median_abs` over finite entries, `rms_sound` without outlying samples;
        `columns` (of the last axis): `count`, `constant`, `empty` and `nonfinite` (which), `std_min`, `std_max`,
        `rms_median`, `rms_max`, `mean_abs_max`, `largest` (up to 5 with `column`, `mean`, `std`, `max_abs`);
        `outliers`: up to 20 samples that stand 30 times further out than the largest of all others: `sample`,
        `column`, `value`, `typical` (distance of that largest one from the median), `factor`; `outlying_samples`.
        Targets also have `unique` (up to 1000, else None), `values` (the first 20 distinct ones),
        `integer_share`, `sums_to_one` (share of rows), `row_sum_max`, `one_hot`, and the shares of the values that
        lie outside common ranges by more than 0.05: `share_below_0`, `share_below_minus_1`, `share_above_1`;
        `share_zero`.

    Example:
        >>> found = data_probe(np.ones((4, 3)), np.array([0, 1, 1, 0]))
        >>> found["samples"], found["inputs"][0]["rms"], found["targets"][0]["unique"]
        (4, 1.0, 2)
    """
    lookups = _feeds_lookup(model)
    inputs = list(leaves("x", x))
    by_name = {f"x[{name!r}]": fed for name, fed in lookups}
    by_place = [fed for _, fed in lookups]
    read_inputs = []
    for place, (name, values) in enumerate(inputs):
        fed = by_name.get(name, by_place[place] if place < len(by_place) else False)
        read_inputs.append(_read(name, values, fed))
    targets = [_read(name, values, False, target=True) for name, values in leaves("y", y)]
    weights = [_read(name, values, False) for name, values in leaves("sample_weight", sample_weight)]
    counts = [array["samples"] for array in [*read_inputs, *targets] if array["samples"] is not None]
    return {
        "samples": counts[0] if counts else 0,
        "complete": bool(complete),
        "inputs": read_inputs,
        "targets": targets,
        "sample_weight": weights or None,
    }


def _read(name: str, values: Any, fed: bool, *, target: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "shape": [],
        "samples": None,
        "dtype": str(getattr(values, "dtype", type(values).__name__)),
        "numeric": False,
        "unreadable": None,
        "integer_valued": False,
        "feeds_embedding": fed,
    }
    try:
        array, rows = _array(values)
        found |= {"shape": [int(size) for size in array.shape[1:]], "samples": rows}
        found["unreadable"] = _why_unreadable(array)
        if found["unreadable"] is None:
            array, found["dtype"] = _real(array), found["dtype"] if hasattr(values, "dtype") else str(array.dtype)
            found |= {"numeric": True, **read_numbers(array, ids=fed and not target)}
            if rows != (array.shape[0] if array.ndim else None):
                found["nonfinite_samples"] = []  # values of a sparse or ragged array: which sample is not known
            if target:
                found |= targets_of(array)
    except Exception as error:  # whatever a user hands over: a probe does not raise
        logger.debug("%s could not be read.", name, exc_info=True)
        found["unreadable"] = f"it could not be read: {type(error).__name__}: {error}"
    return found


def _array(values: Any) -> tuple[np.ndarray, int | None]:
    """Return the numbers of a tensor, array, table or list, and how many samples it has."""
    if isinstance(values, tf.SparseTensor | tf.RaggedTensor):
        held = dense(values)
        return np.asarray(held), int(values.shape[0]) if values.shape[0] is not None else None
    if hasattr(values, "tocoo"):  # a sparse matrix of scipy
        return np.asarray(values.tocoo().data), int(values.shape[0])
    array = values.numpy() if isinstance(values, tf.Tensor) else np.asarray(values)
    if array.dtype == object:
        array = _numbers_in_objects(array)
    return array, int(array.shape[0]) if array.ndim else None


def _numbers_in_objects(array: np.ndarray) -> np.ndarray:
    """Return an array of objects as numbers where every object is one, None as NaN; else as it is."""
    flat = array.ravel()
    if not all(part is None or isinstance(part, int | float | np.number | np.bool_) for part in flat):
        return array
    return np.array([math.nan if part is None else float(part) for part in flat]).reshape(array.shape)


def _why_unreadable(array: np.ndarray) -> str | None:
    kind = array.dtype.kind
    if kind in "USO":
        parts = {type(part).__name__ for part in array.ravel()[:1000]}
        what = "text" if parts <= {"str", "bytes", "str_", "bytes_"} else f"objects ({', '.join(sorted(parts)[:3])})"
        return f"it holds {what}, not numbers"
    if kind in "mM":
        return "it holds times, not numbers"
    if kind == "c":
        return "it holds complex numbers"
    return "it is empty" if array.size == 0 else None


def _real(array: np.ndarray) -> np.ndarray:
    """Return an array whose dtype numpy can compute with; bfloat16 and truth values are widened."""
    if array.dtype.kind == "b" or array.dtype.kind == "V" or array.dtype.name in ("bfloat16", "float16"):
        return array.astype(np.float32)
    return array


def _feeds_lookup(model: keras.Model | None) -> list[tuple[str | None, bool]]:
    """Return for each input of a model its name and whether its numbers are only looked up in a table."""
    if model is None:
        return []
    try:
        graph = model_graph(model)
        if graph is None:
            return [(None, _begins_with_lookup(model))]
        return [(graph.nodes[place].operation.name, _only_looked_up(graph, place)) for place in graph.inputs]
    except Exception:
        logger.debug("The graph of %r could not be read.", model, exc_info=True)
        return []


def _only_looked_up(graph: ModelGraph, place: int) -> bool:
    kinds = {type(layer).__name__ for layer in first_layers(graph, place)}
    return bool(kinds & LOOKUPS) and kinds <= LOOKUPS | {"NotEqual", "Equal"}


def _begins_with_lookup(model: keras.Model) -> bool:
    """Say whether the layer attached first to a subclassed model is a table, so that its input is indices."""
    layers = [layer for layer in sublayers(model) if not sublayers(layer) and type(layer).__name__ != "InputLayer"]
    return bool(layers) and type(layers[0]).__name__ in LOOKUPS
