"""What a trial changes, one thing at a time, to see whether that is what was wrong: one entry a variation."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_optimizers import rate_variable
from gradrecipes.compat.keras_private import leaves, optimizers_of, replaced, sublayers
from gradrecipes.core.trace.data_reading import ArrayReading, DataReading
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import Probes, SignalReading, WeightScale
from gradrecipes.core.trace.trial_reading import (
    ALL_SCALED,
    AS_IT_IS,
    FINITE_DATA,
    FITTING_WEIGHTS,
    FRESH_OPTIMIZER,
    LARGER_BATCH_FACTOR,
    SCALED_INPUTS,
    SCALED_TARGETS,
    WARM_UP,
    Variation,
)
from gradrecipes.diagnosis.facts.readings import MIN_INPUT_RMS, behind_scaling
from gradrecipes.diagnosis.outcome import BROKEN, DIVERGING, OSCILLATING, STALLED, Verdict
from gradrecipes.training.description.describe import switched_off
from gradrecipes.training.trial import Trial

LOWER_RATES, HIGHER_RATES = (0.1, 0.01, 0.001), (10.0, 100.0, 1e3, 1e5)  # times the learning rate
MAX_SPREAD_RATIO = 1.6  # spread of a kernel over the largest that an initializer gives: above, it is shrunk to that
MIN_SPREAD_RATIO = 0.4  # over the smallest: below, it is enlarged to that
LARGEST_EMBEDDING = 0.5  # spread of an embedding; 1 is N(0, 1), as some libraries draw it, .03 is Keras' own
USUAL_EMBEDDING = 0.05
LARGEST_BIAS = 0.5  # magnitude of a constant bias; forget gates have 1 and are let be
MAX_RECURRENT_RADIUS = 1.6  # spectral radius of a recurrent kernel: above, it is shrunk to 1
WARM_UP_DEPTH = 10  # weighted layers in a row from which on warm-up is tried
SMALL_BATCH = 8  # samples; up to that a larger batch is tried
FAR_FROM_UNIT = 3.0  # rms or mean of an input beyond which scaling is tried; standardized ones have 1 and 0
SCALES_APART = 30.0  # largest over smallest standard deviation of a column
FAR_TARGET = 3.0  # rms of targets beyond which scaling is tried
SPREAD_FLOOR = 1e-6  # standard deviation over the mean below which a column is constant


def standardized(batches: Sequence[Any], *, inputs: Iterable[int] = (), targets: Iterable[int] = ()) -> list[Any]:
    """Return the batches with inputs, or targets, brought to mean 0 and standard deviation 1.

    Columns are the entries of the last axis, measured over all the batches; what is not finite becomes the mean.

    Args:
        batches: What `train_step` gets.
        inputs: Which of the flattened inputs.
        targets: Which of the flattened targets.
    """
    parts = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
    wanted = set(inputs)
    xs = [keras.tree.flatten(part[0]) for part in parts]
    for place in wanted:
        changed = _standardized([np.asarray(arrays[place]) for arrays in xs])
        for arrays, array in zip(xs, changed, strict=True):
            arrays[place] = array
    ys = [part[1] for part in parts]
    flat = [keras.tree.flatten(y) for y in ys]
    for place in set(targets):
        changed = _standardized([np.asarray(arrays[place]) for arrays in flat])
        for arrays, array in zip(flat, changed, strict=True):
            arrays[place] = array
    ys = [keras.tree.pack_sequence_as(y, arrays) for y, arrays in zip(ys, flat, strict=True)]
    return [
        keras.utils.pack_x_y_sample_weight(keras.tree.pack_sequence_as(part[0], x), y, part[2])
        for part, x, y in zip(parts, xs, ys, strict=True)
    ]


def _standardized(arrays: list[np.ndarray]) -> list[tf.Tensor]:
    whole = np.concatenate(arrays).astype(np.float64)
    whole[~np.isfinite(whole)] = np.nan
    axes = tuple(range(whole.ndim - 1)) if whole.ndim > 1 else None
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a column without a single number
        mean = np.nan_to_num(np.nanmedian(whole, axis=axes))
        spread = np.nan_to_num(np.nanstd(_clipped(whole, axes), axis=axes))
    spread = np.where(spread > SPREAD_FLOOR * np.abs(mean) + np.finfo(np.float32).tiny, spread, 1.0)
    dtype = arrays[0].dtype if arrays[0].dtype.kind == "f" else keras.config.floatx()
    changed = [np.clip(np.nan_to_num((array.astype(np.float64) - mean) / spread), -10.0, 10.0) for array in arrays]
    return [tf.convert_to_tensor(array.astype(dtype)) for array in changed]


def _clipped(values: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """Return the values without the hundredth at either end, so that one absurd entry does not set the scale."""
    low, high = np.nanpercentile(values, [1, 99], axis=axes)
    return np.clip(values, low, high)


def without(batches: Sequence[Any], bad: Sequence[np.ndarray]) -> list[Any]:
    """Return the batches with bad samples replaced by valid ones of the same batch; a batch without one is left out.

    Args:
        batches: What `train_step` gets.
        bad: For each batch bool `[samples]`, which are bad.
    """
    kept = []
    for batch, marks in zip(batches, bad, strict=True):
        valid = np.flatnonzero(~marks)
        if not len(valid):
            continue
        index = np.where(marks, valid[np.arange(len(marks)) % len(valid)], np.arange(len(marks)))
        kept.append(
            keras.tree.map_structure(
                lambda array, index=index: None if array is None else tf.gather(array, index), batch
            )
        )
    return kept


def joined(batches: Sequence[Any], times: int) -> list[Any]:
    """Return batches that are so many times larger."""
    groups = [batches[start : start + times] for start in range(0, len(batches) - times + 1, times)]
    return [
        keras.tree.map_structure(lambda *arrays: None if arrays[0] is None else tf.concat(arrays, axis=0), *group)
        for group in groups
    ]


def fitting_weights(model: keras.Model, scales: Sequence[WeightScale]) -> dict[str, np.ndarray]:
    """Return other values for the kernels, embeddings and biases whose size no initializer would give, by path.

    The draw stays, its spread changes. A recurrent kernel is shrunk to a spectral radius of 1.

    Args:
        model: The model.
        scales: What `weight_scales` says of it.
    """
    by_path = {variable.path: variable for variable in model.variables}
    changed = {}
    for scale in scales:
        value = by_path.get(scale.path)
        if value is None:
            continue
        factor, shift = _correction(scale, np.asarray(value))
        if factor != 1.0 or shift:
            array = np.asarray(value).astype(np.float64)
            changed[scale.path] = ((array - shift) * factor).astype(np.asarray(value).dtype)
    return changed


def _correction(scale: WeightScale, value: np.ndarray) -> tuple[float, float]:
    """Return (factor, shift) that bring a weight to a usual size; (1, 0) for one that has it."""
    spread, mean = scale.std, scale.mean
    if scale.most is not None and scale.least is not None and (rms := scale.rms) > 0:
        if rms > MAX_SPREAD_RATIO * scale.most:
            return (scale.most / spread, mean) if spread > 0.1 * rms else (scale.most / rms, 0.0)
        small = scale.role == "kernel" and rms < MIN_SPREAD_RATIO * scale.least
        return (scale.least / rms, 0.0) if small else (1.0, 0.0)
    if scale.role == "recurrent" and value.ndim == 2:
        radius = spectral_radius(value)
        return (1.0 / radius, 0.0) if radius > MAX_RECURRENT_RADIUS else (1.0, 0.0)
    if scale.role == "embedding":
        return (USUAL_EMBEDDING / scale.rms, 0.0) if scale.rms > LARGEST_EMBEDDING else (1.0, 0.0)
    if scale.role == "bias" and "LSTM" not in scale.kind and abs(mean) > LARGEST_BIAS and spread < abs(mean):
        return 1.0, mean
    return 1.0, 0.0


def spectral_radius(kernel: np.ndarray) -> float:
    """Return the largest magnitude of an eigenvalue; of gates side by side, the largest of theirs."""
    units = kernel.shape[0]
    if kernel.ndim != 2 or units == 0 or kernel.shape[1] % units or not np.isfinite(kernel).all():
        return math.nan
    blocks = np.split(kernel.astype(np.float64), kernel.shape[1] // units, axis=1)
    return max(float(np.abs(np.linalg.eigvals(block)).max()) for block in blocks)


@contextlib.contextmanager
def unregularized(model: keras.Model) -> Iterator[None]:
    """Train without dropout, noise, penalties and constraints meanwhile."""
    held: list[tuple[Any, str, Any]] = []
    try:
        for layer in [model, *sublayers(model)]:
            held += switched_off(layer)
        yield
    finally:
        for one, attribute, value in held:
            setattr(one, attribute, value)


@contextlib.contextmanager
def usual_optimizer(model: keras.Model, settings: Mapping[str, Any]) -> Iterator[None]:
    """Train with other settings of the optimizer meanwhile.

    Args:
        model: A compiled model with one optimizer.
        settings: By Keras' names, each with the value that it has meanwhile.
    """
    with contextlib.ExitStack() as stack:
        for leaf in (leaf for optimizer in optimizers_of(model) for leaf in leaves(optimizer)):
            for name, value in settings.items():
                stack.enter_context(replaced(leaf, name, value))
        yield


# -- the table ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Context:
    """What a variation may look at.

    Args:
        trial: The trial, at its start.
        description: Of the model.
        probes: What was measured before the trial.
        seen: How the trial went.
        batches: The batches that a variation goes over.
    """

    trial: Trial
    description: Description
    probes: Probes
    seen: Verdict
    batches: Sequence[Any]


Change = Callable[[Context], dict[str, Any] | None]


def _finite_data(context: Context) -> dict[str, Any] | None:
    marks = bad_samples(context.probes.data or DataReading(), context.batches)
    return None if marks is None else {"batches": without(context.batches, marks)}


def scaled_inputs(context: Context) -> dict[str, Any] | None:
    """Return the batches with inputs of unit size, where those of the only input or of several are far from it."""
    behind = behind_scaling(context.description, context.probes.signal)
    if behind is not None and 0 < behind < MIN_INPUT_RMS:
        return {"batches": multiplied(context.batches, 1.0 / behind)}
    inputs = _far_inputs(context)
    return {"batches": standardized(context.batches, inputs=inputs)} if inputs else None


def _scaled_targets(context: Context) -> dict[str, Any] | None:
    targets = _far_targets(context)
    return {"batches": standardized(context.batches, targets=targets)} if targets else None


def _fitting_weights(context: Context) -> dict[str, Any] | None:
    weights = fitting_weights(context.trial.model, (context.probes.signal or SignalReading()).weights)
    return {"weights": weights} if weights else None


def _all_scaled(context: Context) -> dict[str, Any] | None:
    """Join the changes of data and weights, where there is more than one."""
    changes = [change(context) for change in (_finite_data, scaled_inputs, _scaled_targets, _fitting_weights)]
    if sum(change is not None for change in changes) < 2:
        return None
    inputs, targets, weights = _far_inputs(context), _far_targets(context), changes[-1] or {}
    scaled = standardized(context.batches, inputs=inputs, targets=targets) if inputs or targets else context.batches
    return {"batches": scaled, **weights}


def _fresh_optimizer(context: Context) -> dict[str, Any] | None:
    return {"fresh_slots": True} if _has_state(context.trial.model) else None


def _warm_up(context: Context) -> dict[str, Any] | None:
    """Warm up where the run broke, diverged or stalls, and nets with attention or normalization may need it."""
    attention = any("Attention" in kind for kind in context.description.kinds)
    deep = (context.description.plain_depth or 0) >= WARM_UP_DEPTH
    suspicious = context.seen.unhealthy or context.seen.state in (STALLED, OSCILLATING) or not context.seen.learned
    return {"warm_up": True} if suspicious and (attention or deep or context.description.normalizations) else None


# What is worth trying returns arguments of `Trial.varied`, and None otherwise.
CHANGES: tuple[tuple[Variation, Change], ...] = (
    (AS_IT_IS, lambda context: {}),
    (FINITE_DATA, _finite_data),
    (SCALED_INPUTS, scaled_inputs),
    (SCALED_TARGETS, _scaled_targets),
    (FITTING_WEIGHTS, _fitting_weights),
    (ALL_SCALED, _all_scaled),
    (FRESH_OPTIMIZER, _fresh_optimizer),
    (WARM_UP, _warm_up),
)


def rates_to_try(seen: Verdict) -> tuple[float, ...]:
    """Return what to multiply the learning rate by."""
    if seen.state in (BROKEN, DIVERGING, OSCILLATING):
        return LOWER_RATES
    if seen.state != STALLED:
        return (*LOWER_RATES[:2], *HIGHER_RATES[:1])
    pairs = zip_longest(HIGHER_RATES, LOWER_RATES)  # a deep net may stall at a rate that is too high, too
    return tuple(rate for pair in pairs for rate in pair if rate is not None)


def larger_batches(context: Context) -> list[Any] | None:
    """Return batches eight times larger, where they are small and there are enough of them."""
    small = len(keras.tree.flatten(context.batches[0])[0]) <= SMALL_BATCH
    return (
        joined(context.trial.batches, LARGER_BATCH_FACTOR)
        if small and len(context.trial.batches) >= 2 * LARGER_BATCH_FACTOR
        else None
    )


def multiplied(batches: Sequence[Any], factor: float) -> list[Any]:
    """Return the batches with the only input multiplied by a factor."""
    parts = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
    scaled = [keras.tree.map_structure(lambda one: tf.cast(one, tf.float32) * factor, x) for x, _, _ in parts]
    return [keras.utils.pack_x_y_sample_weight(x, *part[1:]) for x, part in zip(scaled, parts, strict=True)]


def _far_inputs(context: Context) -> list[int]:
    """Return which of the flattened inputs are numbers far from unit size."""
    far = []
    for place, array in enumerate((context.probes.data or DataReading()).inputs):
        largest, smallest = (array.columns.std_max, array.columns.std_min) if array.columns else (None, None)
        apart = (largest or 0) > SCALES_APART * (smallest or 1e-9)
        sized = max(array.rms or 0, abs(array.mean or 0), largest or 0)
        if not array.feeds_embedding and (sized > FAR_FROM_UNIT or (apart and sized > 1.0) or sized < 0.01):
            far.append(place)
    return far


def _far_targets(context: Context) -> list[int]:
    """Return which of the flattened targets are numbers far from unit size, compared by a loss of regression."""
    outputs = context.description.outputs
    far = []
    for place, array in enumerate((context.probes.data or DataReading()).targets):
        judged = [one for one in outputs if one.target == place] or [one for one in outputs if one.target is None]
        regression = judged and all(
            (one.activation in (None, "linear") or not one.certain) and "crossentropy" not in str(one.loss)
            for one in judged
        )
        numbers = "float" in array.dtype or all(one.loss for one in judged)  # whole ones may be labels, or counts
        if regression and numbers and (array.rms or 0) > FAR_TARGET:
            far.append(place)
    return far


def bad_samples(data: DataReading, batches: Sequence[Any]) -> list[np.ndarray] | None:
    """Return for each batch which samples are not finite or outlying; None where none is, or half are."""
    read = [*data.inputs, *data.targets]
    marks = []
    for batch in batches:
        arrays = [np.asarray(one) for one in keras.tree.flatten(batch) if one is not None]
        bad = np.zeros(len(arrays[0]), bool)
        for array, known in zip(arrays, read, strict=False):
            if array.dtype.kind == "f":
                bad |= _is_bad(array.astype(np.float64), known)
        marks.append(bad)
    return marks if 0 < np.concatenate(marks).mean() < 0.5 else None


def suspects(probes: Probes) -> dict[str, Sequence[int]]:
    """Return what the batches of a trial should hold: outlying samples, bad ones, those or the batch that break it."""
    arrays = [*probes.data.inputs, *probes.data.targets]
    bad = [sample for array in arrays for sample in array.nonfinite_samples]
    odd = [outlier.sample for array in arrays for outlier in array.outliers]
    passed, whole = (one.nonfinite_samples, one.nonfinite_batch) if (one := probes.forward_pass) else ((), ())
    return {"suspects": list(dict.fromkeys([*odd[:2], *bad[:2], *passed[:2], *odd, *bad, *passed])), "whole": whole}


def have_other_targets(batches: list[Any], others: list[Any]) -> bool:
    """Say whether the targets were scaled; those of some of the batches are still the same."""
    ys = [keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(part[0])[1]) for part in (batches, others)]
    pairs = zip(*ys, strict=False)
    return any(
        one is not None and one.shape == other.shape and not np.array_equal(np.asarray(one), np.asarray(other))
        for one, other in pairs
    )


def _is_bad(array: np.ndarray, known: ArrayReading) -> np.ndarray:
    """Return bool `[samples]`: not finite, or at least half as far out as an outlier of the same column."""
    rows = array.reshape(len(array), -1, array.shape[-1] if array.ndim > 1 else 1)
    bad = ~np.isfinite(rows).all(axis=(1, 2))
    for outlier in known.outliers:
        if outlier.column < rows.shape[-1]:
            bad |= np.abs(np.nan_to_num(rows[..., outlier.column])).max(axis=1) >= 0.5 * abs(outlier.value)
    return bad


def _has_state(model: keras.Model) -> bool:
    """Return whether the optimizer has already run, so that its state may be what is wrong."""
    return any(
        bool(np.any(np.asarray(variable) != 0))
        for optimizer in optimizers_of(model)
        for leaf in leaves(optimizer)
        for variable in leaf.variables
        if variable is not rate_variable(leaf)
    )
