"""A short trial with the user's own optimizer and batches, and, if it goes wrong, again with one thing changed.

A hundred steps over a few batches, again and again, so that each batch is compared with itself. Where that run breaks,
diverges, stands still or ends no better than chance, the same steps are run from the same start with one thing changed:
the inputs scaled, the targets scaled, the weights of usual size, another learning rate, bad samples replaced, larger
batches. What mends the run is what was wrong with it; that is evidence of another kind than a threshold.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import leaves, optimizers_of
from gradrecipes.core.chance import chance_loss
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import ArrayReading, DataReading
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import Probes, TrialReading, VariationResult
from gradrecipes.diagnosis.varied import mends
from gradrecipes.diagnosis.verdict import BROKEN, DIVERGING, OSCILLATING, STALLED, Verdict, verdict
from gradrecipes.probes.failure import failure
from gradrecipes.probes.pairing import pairs_samples
from gradrecipes.probes.signal import signal
from gradrecipes.probes.variations import fitting_weights, joined, standardized, without
from gradrecipes.training.trial.trial import Trial, finite
from gradrecipes.training.trial.trial_data import TrialData

logger = logging.getLogger(__name__)

STEPS = 100  # of the trial; what breaks later than that breaks for other reasons
BATCHES = 25  # that it runs over, four times
VARIED_STEPS = 40  # of each variation
VARIED_BATCHES = 10  # that it runs over, four times
SECONDS = 8.0  # for all variations together, or twice what the trial took, whichever is more
SMALL_BATCH = 8  # samples; up to that a larger batch is tried
LARGER = 8  # times larger
LOWER, HIGHER = (0.1, 0.01, 0.001), (10.0, 100.0, 1e3, 1e5)  # times the learning rate
FAR_FROM_UNIT = 3.0  # rms or mean of an input beyond which scaling is tried; standardized ones have 1 and 0
SCALES_APART = 30.0  # largest over smallest standard deviation of a column
FAR_TARGET = 3.0  # rms of targets beyond which scaling is tried


def try_out(
    model: keras.Model,
    data: TrialData,
    description: Description,
    probes: Probes,
    *,
    seed: int,
    tell: Callable[[str], None],
) -> Trace:
    """Run the trial and, where it is called for, its variations; return its record, `probes.trial` filled in."""
    suspects = _suspects(probes)
    batches = data.cut(BATCHES, seed=seed, suspects=suspects)
    steps = STEPS // len(batches) * len(batches) if len(batches) < STEPS else STEPS
    sound = _bad_samples(probes.data, batches)
    baseline = _baseline(model, batches if sound is None else without(*sound))  # one absurd target would set it
    with contextlib.ExitStack() as stack:
        outputs = probes.signal.layers
        trial = Trial(model, batches, steps=max(steps, VARIED_STEPS), outputs=outputs)
        try:
            run = stack.enter_context(trial).recorded(steps)
        except Exception as error:
            trace = trial.trace
            trace.description = _described(description, trace)
            trace.probes = replace(probes, failure=failure("step", error, batch=batches[0]))
            return trace
        trace = trial.trace
        trace.description = _described(description, trace)
        reading = TrialReading(
            steps=len(run.loss),
            batches=len(batches),
            constant_baseline_loss=baseline,
            broken=run.broken,
            broken_batch=trial.broken_batch,
            autopsy=trial.autopsy,
            logs={name: tuple(finite(value) for value in values) for name, values in run.logs.items()},
            seconds=run.seconds,
        )
        trace.probes = replace(probes, trial=reading, signal_after=signal(model, batches[0]))
        if description.own_train_step:
            reading = replace(reading, pairs_samples=pairs_samples(trial, probes.loss.outputs))
        seen = verdict(trace)
        odd = bool(fitting_weights(model, probes.signal.weights))
        variations: dict[str, VariationResult] = {}
        if seen.suspicious or odd:
            tell(f"the trial is {seen.state}: varying one thing at a time")
            began = time.monotonic()
            for name, varied in _variations(trial, description, probes, seen, baseline):
                if varied is not None:
                    variations[name] = varied
                if time.monotonic() - began > max(SECONDS, 2.0 * run.seconds):
                    break
        trace.probes = replace(trace.probes, trial=replace(reading, variations=variations))
    return trace


def _described(description: Description, trace: Trace) -> Description:
    """Return the description, with the initial weights that the trial read of the layers that it monitored."""
    return replace(description, layers=trace.description.layers or description.layers)


def _suspects(probes: Probes) -> list[int]:
    arrays = [*probes.data.inputs, *probes.data.targets]
    bad = [sample for array in arrays for sample in array.nonfinite_samples]
    odd = [outlier.sample for array in arrays for outlier in array.outliers]
    passed = probes.forward_pass.nonfinite_samples if probes.forward_pass else ()
    return list(dict.fromkeys([*odd[:2], *bad[:2], *passed[:2], *odd, *bad, *passed]))


def _baseline(model: keras.Model, batches: list[Any]) -> float | None:
    ys = [keras.utils.unpack_x_y_sample_weight(batch)[1] for batch in batches]
    if any(len(keras.tree.flatten(y)) != 1 for y in ys):
        return None
    loss = model.loss
    name = loss if isinstance(loss, str) or loss is None else getattr(loss, "name", getattr(loss, "__name__", None))
    try:
        return chance_loss(name, np.concatenate([np.asarray(keras.tree.flatten(y)[0]) for y in ys]))
    except (TypeError, ValueError):  # targets of different lengths, or that are no numbers
        return None


def _variations(
    trial: Trial, description: Description, probes: Probes, seen: Verdict, baseline: float | None
) -> Iterator[tuple[str, VariationResult | None]]:
    """Yield (name, result) of each variation that is called for, those of the data first; None of one that raises."""
    trial.restart()  # weights and optimizer are looked at below as they were at the start
    batches = trial.batches[:VARIED_BATCHES]
    changes: dict[str, dict[str, Any]] = {"as_it_is": {}}
    if (bad := _bad_samples(probes.data, batches)) is not None:
        changes["sound_data"] = {"batches": without(*bad)}
    inputs = _far_inputs(probes)
    if inputs:
        changes["scaled_inputs"] = {"batches": standardized(batches, inputs=inputs)}
    targets = _far_targets(description, probes)
    if targets:
        changes["scaled_targets"] = {"batches": standardized(batches, targets=True)}
    weights = fitting_weights(trial.model, probes.signal.weights)
    if weights:
        changes["fitting_weights"] = {"weights": weights}
    if len(changes) > 2:
        together = standardized(batches, inputs=inputs, targets=targets) if inputs or targets else batches
        changes["all_scaled"] = {"batches": together, "weights": weights}
    if _has_memory(trial.model):
        changes["fresh_optimizer"] = {"fresh_slots": True}
    for name, change in changes.items():
        yield name, _vary(trial, baseline, **{"batches": batches, **change})
    for factor in _rates(seen):
        varied = _vary(trial, baseline, rate=factor, batches=batches)
        yield f"rate_{factor:g}", varied
        if mends(varied, seen):
            break
    if len(keras.tree.flatten(batches[0])[0]) <= SMALL_BATCH and len(trial.batches) >= 2 * LARGER:
        yield "larger_batch", _vary(trial, baseline, batches=joined(trial.batches, LARGER))


def _rates(seen: Verdict) -> tuple[float, ...]:
    if seen.state in (BROKEN, DIVERGING, OSCILLATING):
        return LOWER
    return (*HIGHER, *LOWER) if seen.state == STALLED else (*LOWER[:2], *HIGHER[:1])


def _vary(trial: Trial, baseline: float | None, **change: Any) -> VariationResult | None:
    batches = change["batches"]
    try:
        run = trial.varied(VARIED_STEPS, **change)
    except Exception:  # a train step of the user's own may ask for something that the change has spoilt
        logger.debug("A variation could not be run.", exc_info=True)
        return None
    if _has_other_targets(batches, trial.batches):
        baseline = _baseline(trial.model, batches)
    loss = run.loss[np.isfinite(run.loss)]
    period = min(len(batches), max(1, len(loss) // 2))
    if run.broken is not None or len(loss) < 2:
        return VariationResult(broken=run.broken)
    start, end = float(np.median(loss[:period])), float(np.median(loss[-period:]))
    fall = (start - end) / abs(start) if start else 0.0
    return VariationResult(start, end, fall, over_baseline=end / baseline if baseline else None)


def _has_other_targets(batches: list[Any], others: list[Any]) -> bool:
    """Say whether the targets were scaled; those of some of the batches are still the same."""
    ys = [keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(part[0])[1]) for part in (batches, others)]
    pairs = zip(*ys, strict=False)
    return any(
        one is not None and one.shape == other.shape and not np.array_equal(np.asarray(one), np.asarray(other))
        for one, other in pairs
    )


def _far_inputs(probes: Probes) -> list[int]:
    """Return which of the flattened inputs are numbers far from unit size."""
    far = []
    for place, array in enumerate(probes.data.inputs):
        largest, smallest = (array.columns.std_max, array.columns.std_min) if array.columns else (None, None)
        apart = (largest or 0) > SCALES_APART * (smallest or 1e-9)
        sized = max(array.rms or 0, abs(array.mean or 0), largest or 0)
        if not array.feeds_embedding and (sized > FAR_FROM_UNIT or (apart and sized > 1.0) or sized < 0.01):
            far.append(place)
    return far


def _far_targets(description: Description, probes: Probes) -> bool:
    outputs, targets = description.outputs, probes.data.targets
    regression = outputs and all(
        (output.activation in (None, "linear") or not output.certain) and "crossentropy" not in str(output.loss)
        for output in outputs
    )
    sized = max((array.rms or 0 for array in targets), default=0)
    numbers = all("float" in array.dtype for array in targets)  # whole ones may be labels, or counts
    return bool(regression and targets and sized > FAR_TARGET and (numbers or all(one.loss for one in outputs)))


def _bad_samples(data: DataReading, batches: list[Any]) -> tuple[list[Any], list[np.ndarray]] | None:
    """Return the batches and which of their samples are not finite or absurd; None where none is, or half are."""
    read = [*data.inputs, *data.targets]
    marks = []
    for batch in batches:
        arrays = [np.asarray(one) for one in keras.tree.flatten(batch) if one is not None]
        bad = np.zeros(len(arrays[0]), bool)
        for array, known in zip(arrays, read, strict=False):
            if array.dtype.kind == "f":
                bad |= _is_bad(array.astype(np.float64), known)
        marks.append(bad)
    return (batches, marks) if 0 < np.concatenate(marks).mean() < 0.5 else None


def _is_bad(array: np.ndarray, known: ArrayReading) -> np.ndarray:
    """Return bool `[samples]`: not finite, or at least half as far out as an outlier of the same column."""
    rows = array.reshape(len(array), -1, array.shape[-1] if array.ndim > 1 else 1)
    bad = ~np.isfinite(rows).all(axis=(1, 2))
    for outlier in known.outliers:
        if outlier.column < rows.shape[-1]:
            bad |= np.abs(np.nan_to_num(rows[..., outlier.column])).max(axis=1) >= 0.5 * abs(outlier.value)
    return bad


def _has_memory(model: keras.Model) -> bool:
    """Say whether the optimizer has already run, so that its state may be what is wrong."""
    return any(
        bool(np.any(np.asarray(variable) != 0))
        for optimizer in optimizers_of(model)
        for leaf in leaves(optimizer)
        for variable in leaf.variables
        if variable is not getattr(leaf, "_learning_rate", None)
    )
