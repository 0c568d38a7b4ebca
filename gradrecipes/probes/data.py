"""Read from the data, without a model's help: missing values, scales, labels, samples that are absurd."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from gradrecipes.core.trace.data_reading import ArrayReading, DataReading
from gradrecipes.core.trace.description import InputDescription
from gradrecipes.probes.columns import read_numbers, target_values
from gradrecipes.training.autopsy.arrays import dense, leaves

logger = logging.getLogger(__name__)


def data_probe(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    inputs: Sequence[InputDescription] = (),
    samples: int | None = None,
    complete: bool = True,
) -> DataReading:
    """Tell what the data are: finite or not, how large, how the columns differ, what the targets look like.

    Nothing is changed, and odd data are facts, not errors: text, objects, ragged and sparse arrays are read as far
    as they go.

    Args:
        x: Inputs, an array or a nested structure of arrays, samples first.
        y: Targets, likewise.
        sample_weight: Sample weights, likewise.
        inputs: The inputs of the model, which say which arrays are indices into an embedding.
        samples: How many samples there are; those of the first array by default.
        complete: Whether these are all the data.

    Example:
        >>> found = data_probe(np.ones((4, 3)), np.array([0, 1, 1, 0]))
        >>> found.samples, found.inputs[0].rms, found.targets[0].unique
        (4, 1.0, 2)
    """
    by_name = {f"x[{one.name!r}]": one.looked_up for one in inputs}
    by_place = [one.looked_up for one in inputs]
    read_inputs = []
    for place, (name, values) in enumerate(leaves("x", x)):
        fed = by_name.get(name, by_place[place] if place < len(by_place) else False)
        read_inputs.append(_read(name, values, fed))
    targets = [_read(name, values, False, target=True) for name, values in leaves("y", y)]
    weights = [_read(name, values, False) for name, values in leaves("sample_weight", sample_weight)]
    counts = [array.samples for array in [*read_inputs, *targets] if array.samples is not None]
    if samples is None:
        samples = counts[0] if counts else 0
    return DataReading(samples, bool(complete), tuple(read_inputs), tuple(targets), tuple(weights))


def _read(name: str, values: Any, fed: bool, *, target: bool = False) -> ArrayReading:
    found = ArrayReading(name, dtype=str(getattr(values, "dtype", type(values).__name__)), feeds_embedding=fed)
    try:
        array, rows = _array(values)
        found = replace(found, shape=tuple(int(size) for size in array.shape[1:]), samples=rows)
        if (why := _why_unreadable(array)) is not None:
            return replace(found, unreadable=why)
        array, dtype = _real(array), found.dtype if hasattr(values, "dtype") else str(array.dtype)
        found = replace(found, dtype=dtype, numeric=True, **read_numbers(array, ids=fed and not target))
        if rows != (array.shape[0] if array.ndim else None):
            found = replace(found, nonfinite_samples=())  # of a sparse or ragged array: which sample is not known
        return replace(found, **target_values(array)) if target else found
    except Exception as error:  # whatever a user hands over: a probe does not raise
        logger.debug("%s could not be read.", name, exc_info=True)
        return replace(found, unreadable=f"it could not be read: {type(error).__name__}: {error}")


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
