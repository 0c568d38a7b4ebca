"""Read from the data, without a model's help: missing values, scales, labels, samples that are outliers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.analysis.gap_marks import gap_marks
from gradrecipes.core.trace.data_reading import CLASS_WEIGHT, ArrayReading, Column, Columns, DataReading, Outlier
from gradrecipes.core.trace.description import Description, InputDescription
from gradrecipes.training.autopsy.arrays import dense, leaves
from gradrecipes.training.trial_data import TrialData

SAMPLES_NAMED = 20  # samples that are listed by their index
LARGEST_COLUMNS = 5  # columns that are described
ENTRIES_AT_ONCE = 4_000_000  # entries read at a time, 32 MB in float64
ROWS_FOR_SCALES = 20_000  # samples, spread evenly over the data, from which medians and deviations are taken
ENTRIES_FOR_SCALES = 1_000_000  # entries of them at the most
ROOM = 0.05  # by which a target may lie beyond the range of an activation before it counts as outside
DISTINCT_AT_MOST = 1000  # distinct values that are counted

OUTLYING_SHARE = 0.05  # of the samples, who may stand apart together: a damaged batch of 32 in 640
GAP = (
    30.0  # times beyond the largest of the other samples; of Pareto values (exponent 1) 3% of the sets have such a gap
)
SMALLEST_MIXED, FEWEST_MIXED = 4, 4  # samples of a batch and batches, of fewer of which mixing says little
COLUMNS_SEARCHED = 500  # columns with such a gap that are gone through sample by sample


def read_numbers(values: np.ndarray, *, ids: bool = False, factors: bool = False) -> dict[str, Any]:
    """Return size, columns, missing values and outlying samples of an array `[samples, ...]` of real numbers.

    Args:
        values: Real numbers or truth values, one row a sample.
        ids: Whether the numbers are names of things rather than sizes; then columns and outliers mean nothing.
        factors: Whether samples are multiplied by them: an outlier is then one far from 0, not from the median.

    Returns:
        Fields of `ArrayReading`, by name.

    Example:
        >>> found = read_numbers(np.array([[0.0, 1.0], [2.0, np.nan], [4.0, 3.0]]))
        >>> found["nonfinite_samples"], found["rms"], found["columns"].std_max
        ((1,), 2.449489742783178, 1.632993161855452)
    """
    flat = _rows_by_columns(values)
    totals = _totals(flat)
    picked = _picked(flat)
    magnitudes = np.abs(picked[np.isfinite(picked)])
    found = {
        **totals,
        "median_abs": float(np.median(magnitudes)) if magnitudes.size else None,
        "columns": None,
        "outliers": (),
        "outlying_samples": 0,
    }
    if totals["finite"] and not ids:
        found["columns"] = _columns(picked.reshape(-1, picked.shape[-1]))
        found |= _outliers(flat, picked, np.zeros(flat.shape[-1]) if factors else _medians(picked))
    found["rms_without_outliers"] = _rms_without(flat, found) if found["outliers"] else found["rms"]
    return found


def target_values(values: np.ndarray) -> dict[str, Any]:
    """Return what is asked of targets: how many distinct values, and whether rows are distributions or one-hot."""
    flat = values.reshape(-1)[:ENTRIES_AT_ONCE]
    distinct = np.unique(flat[np.isfinite(flat)]) if flat.size else flat
    found: dict[str, Any] = {
        "unique": int(distinct.size) if distinct.size <= DISTINCT_AT_MOST else None,
        "values": tuple(float(value) for value in distinct[:SAMPLES_NAMED]),
    }
    if flat.size:
        found["gap_marks"] = gap_marks(flat, alone=math.inf) if values.size == len(values) else ()
        with np.errstate(invalid="ignore"):
            found["integer_share"] = float(np.mean(flat == np.rint(flat)))
            shares = _outside_of_common_ranges(flat.astype(np.float64))
            shares["marked_share"] = np.isin(flat, found["gap_marks"])
            found |= {name: float(np.mean(outside)) for name, outside in shares.items()}
    if values.ndim >= 2 and values.shape[-1] > 1 and values.size:
        rows = values.reshape(-1, values.shape[-1])[: ENTRIES_AT_ONCE // values.shape[-1]].astype(np.float64)
        with np.errstate(invalid="ignore"):
            valid = (np.abs(rows.sum(axis=1) - 1.0) < 1e-3) & (rows >= 0).all(axis=1)
            sums = rows.sum(axis=1)[np.isfinite(rows).all(axis=1)]
            one_hot = valid & (np.isclose(rows, 0) | np.isclose(rows, 1)).all(axis=1)
        found["sums_to_one"] = float(valid.mean())
        found["row_sum_max"] = float(sums.max()) if sums.size else None
        found["one_hot"] = bool(one_hot.mean() > 0.99)
    return found


def _outside_of_common_ranges(flat: np.ndarray) -> dict[str, np.ndarray]:
    """Return which values lie beyond the ends of a sigmoid, a tanh or a ReLU, with a little room; which are 0."""
    return {
        "share_below_minus_1": flat < -1.0 - ROOM,
        "share_below_0": flat < -ROOM,
        "share_above_1": flat > 1.0 + ROOM,
        "share_zero": flat == 0,
    }


def _rows_by_columns(values: np.ndarray) -> np.ndarray:
    """Return a view `[samples, places, columns]`; a vector has one place and one column."""
    samples = values.shape[0] if values.ndim else 1
    if values.ndim < 2:
        return values.reshape(samples, 1, 1)
    columns = values.shape[-1]
    return values.reshape(samples, -1 if columns and samples else int(np.prod(values.shape[1:-1])), columns)


def _chunks(flat: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first sample, part in float64); the whole would double the memory."""
    rows = max(1, ENTRIES_AT_ONCE // max(1, flat.shape[1] * flat.shape[2]))
    for start in range(0, len(flat), rows):
        yield start, flat[start : start + rows].astype(np.float64)


def _totals(flat: np.ndarray) -> dict[str, Any]:
    count, total, squares, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    bad, broken, integers = 0, [], True
    for start, part in _chunks(flat):
        finite = np.isfinite(part)
        if not finite.all():
            bad += int((~finite).sum())
            broken += [start + int(row) for row in np.flatnonzero(~finite.all(axis=(1, 2)))]
            part = part[finite]
        if part.size:
            count += part.size
            low, high = min(low, float(part.min())), max(high, float(part.max()))
            with np.errstate(over="ignore"):
                total, squares = total + float(part.sum()), squares + float(np.square(part).sum())
            integers = integers and bool((part == np.rint(part)).all())
    mean = total / count if count else None
    spread = None if mean is None else max(0.0, squares / count - mean**2)
    return {
        "finite": count,
        "integer_valued": bool(count) and integers,
        "nonfinite": bad,
        "nonfinite_samples": tuple(broken[:SAMPLES_NAMED]),
        "nonfinite_share": len(broken) / len(flat) if len(flat) else 0.0,
        "rms": _plain(np.sqrt(squares / count)) if count else None,
        "mean": _plain(mean),
        "std": None if spread is None else _plain(np.sqrt(spread)),
        "min": low if count else None,
        "max": high if count else None,
    }


def _picked(flat: np.ndarray) -> np.ndarray:
    """Return samples spread evenly over the data, in float64."""
    rows = min(ROWS_FOR_SCALES, max(1, ENTRIES_FOR_SCALES // max(1, flat.shape[1] * flat.shape[2])))
    step = max(1, -(-len(flat) // rows))
    return flat[::step].astype(np.float64)


def _columns(by_column: np.ndarray) -> Columns:
    """Describe columns `[rows, columns]`; moments are taken over finite entries."""
    finite = np.isfinite(by_column)
    count = np.maximum(finite.sum(axis=0), 1)
    kept = np.where(finite, by_column, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = kept.sum(axis=0) / count
        std = np.sqrt(np.where(finite, np.square(by_column - mean), 0.0).sum(axis=0) / count)
        rms = np.sqrt(np.square(kept).sum(axis=0) / count)
    constant = std <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
    moving = std[~constant]
    order = np.argsort(-np.nan_to_num(rms, posinf=np.finfo(float).max))[:LARGEST_COLUMNS]
    largest = np.abs(kept).max(axis=0)
    empty = np.flatnonzero(~finite.any(axis=0))
    return Columns(
        count=int(by_column.shape[1]),
        constant=int((constant & finite.any(axis=0)).sum()),
        empty=tuple(int(column) for column in empty[:SAMPLES_NAMED]),
        nonfinite=tuple(int(column) for column in np.flatnonzero(~finite.all(axis=0))[:SAMPLES_NAMED]),
        std_min=_plain(moving.min()) if moving.size else None,
        std_max=_plain(moving.max()) if moving.size else None,
        rms_median=_plain(np.median(rms)),
        rms_max=_plain(rms.max()),
        mean_abs_max=_plain(np.abs(mean).max()),
        largest=tuple(
            Column(int(column), _plain(mean[column]), _plain(std[column]), _plain(largest[column])) for column in order
        ),
    )


def _outliers(flat: np.ndarray, picked: np.ndarray, center: np.ndarray) -> dict[str, Any]:
    """Return the few samples that stand apart from all others in some column, by orders of magnitude.

    A sample is compared with the largest of all others in the same column, and where those are small with what is
    usual over the columns, so that a column that is mostly 0 holds no outlier where it is not.
    """
    if len(flat) < 3:
        return {}
    most = max(1, min(int(OUTLYING_SHARE * len(flat)), len(flat) - 2))
    near = _largest_by_sample(picked, center)
    rank = min(max(1, int(OUTLYING_SHARE * len(near))), len(near) - 1)
    valid = -np.partition(-near, rank, axis=0)[rank]  # what is left when as many as may be are taken away
    usual = float(np.median(valid[valid > 0])) if (valid > 0).any() else 0.0
    furthest = np.max([_largest_by_sample(part, center).max(axis=0) for _, part in _chunks(flat)], axis=0)
    floor = np.maximum(valid, usual)
    found: dict[int, Outlier] = {}
    for column in np.flatnonzero((floor > 0) & (furthest >= GAP * floor))[:COLUMNS_SEARCHED]:
        one = flat[:, :, column : column + 1]
        distance = np.concatenate([_largest_by_sample(part, center[column])[:, 0] for _, part in _chunks(one)])
        ordered = np.sort(distance)[::-1]
        below = np.maximum(ordered[1 : most + 1], usual)
        place = int(np.argmax(ordered[:most] / below))
        limit = float(below[place])
        if ordered[place] < GAP * limit:
            continue
        for sample in np.flatnonzero(distance >= ordered[place]):
            factor = float(distance[sample] / limit)
            if sample not in found or factor > found[sample].factor:
                found[sample] = _outlier(one, sample, column, center[column], limit, factor)
    return {"outliers": tuple(found[one] for one in sorted(found))[:SAMPLES_NAMED], "outlying_samples": len(found)}


def _rms_without(flat: np.ndarray, found: dict[str, Any]) -> float | None:
    """Return the root mean square without the outlying samples that are named."""
    kept = np.ones(len(flat), bool)
    kept[[outlier.sample for outlier in found["outliers"]]] = False
    picked = _picked(flat[kept])
    picked = picked[np.isfinite(picked)]
    with np.errstate(over="ignore"):
        return _plain(np.sqrt(np.mean(np.square(picked)))) if picked.size else None


def _medians(picked: np.ndarray) -> np.ndarray:
    by_column = picked.reshape(-1, picked.shape[-1])
    finite = np.isfinite(by_column)
    if finite.all():
        return np.median(by_column, axis=0)
    medians, known = np.zeros(by_column.shape[1]), finite.any(axis=0)
    medians[known] = np.nanmedian(np.where(finite, by_column, np.nan)[:, known], axis=0)
    return medians


def _largest_by_sample(part: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the largest distance from the center, `[samples, columns]`; 0 for what is not finite."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(part - center)
    return np.where(np.isfinite(distance), distance, 0.0).max(axis=1, initial=0.0)


def _outlier(one: np.ndarray, sample: int, column: int, center: float, limit: float, factor: float) -> Outlier:
    values = one[sample].astype(np.float64).ravel()
    values = values[np.isfinite(values)]
    value = values[np.argmax(np.abs(values - center))]
    return Outlier(int(sample), int(column), float(value), limit, factor)


def _plain(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


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
    weights = [_read(name, values, False, factors=True) for name, values in leaves("sample_weight", sample_weight)]
    counts = [array.samples for array in [*read_inputs, *targets] if array.samples is not None]
    if samples is None:
        samples = counts[0] if counts else 0
    return DataReading(samples, bool(complete), tuple(read_inputs), tuple(targets), tuple(weights))


def read_data(data: TrialData, description: Description, *, complete: bool | None = None) -> DataReading:
    """Return `data_probe` of the data of a trial.

    Args:
        data: Arrays, or what was read of a dataset.
        description: Of the model.
        complete: Whether these are all the data; None for what `data` says.
    """
    complete = data.complete if complete is None else complete
    how = {"inputs": description.inputs, "samples": data.samples, "complete": complete}
    read = data_probe(data.x, data.y, data.sample_weight, **how)
    if data.by_class:
        read = replace(read, sample_weight=tuple(replace(one, name=CLASS_WEIGHT) for one in read.sample_weight))
    if data.batches is None or len(read.targets) != 1 or not read.targets[0].numeric:
        return read
    labels = [np.asarray(keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(one)[1])[0]) for one in data.batches]
    return replace(read, targets=(replace(read.targets[0], between_batches=_between(labels, read.targets[0])),))


def _between(batches: Sequence[np.ndarray], read: ArrayReading) -> float | None:
    """Return the share of the variance of labels that lies between batches, 0 of mixed ones; None of other targets."""
    if read.one_hot and all(one.ndim == 2 for one in batches):
        batches = [one.argmax(axis=1) for one in batches]
    batches = [one.reshape(-1) for one in batches if one.shape[:1] == (one.size,) or one.shape == (one.size, 1)]
    if not read.integer_valued or len(batches) < FEWEST_MIXED or min(map(len, batches)) < SMALLEST_MIXED:
        return None
    values, labels = np.unique(np.concatenate(batches), return_inverse=True)
    if not 2 <= len(values) <= len(labels) / SMALLEST_MIXED:
        return None
    hot = np.eye(len(values))[labels.ravel()]
    parts = np.split(hot, np.cumsum(list(map(len, batches)))[:-1])
    within = sum(np.square(part - part.mean(axis=0)).sum() for part in parts) / (len(hot) - len(batches))
    return float(1.0 - within / (np.square(hot - hot.mean(axis=0)).sum() / (len(hot) - 1)))


def _read(name: str, values: Any, fed: bool, *, target: bool = False, factors: bool = False) -> ArrayReading:
    found = ArrayReading(name, dtype=str(getattr(values, "dtype", type(values).__name__)), feeds_embedding=fed)
    try:
        array, rows = _array(values)
        found = replace(found, shape=tuple(int(size) for size in array.shape[1:]), samples=rows)
        if (why := _why_unreadable(array)) is not None:
            return replace(found, unreadable=why)
        array, dtype = _real(array), found.dtype if hasattr(values, "dtype") else str(array.dtype)
        found = replace(
            found, dtype=dtype, numeric=True, **read_numbers(array, ids=fed and not target, factors=factors)
        )
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
