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
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import has_own_train_step, leaves, optimizers_of
from gradrecipes.core.chance import chance_loss
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.varied import mends
from gradrecipes.diagnosis.verdict import BROKEN, DIVERGING, OSCILLATING, STALLED, Verdict, verdict
from gradrecipes.probes.failure import failure
from gradrecipes.probes.pairing import pairs_samples
from gradrecipes.probes.signal import signal
from gradrecipes.probes.variations import fitting_weights, joined, standardized, without
from gradrecipes.training.trial.trial import Trial, TrialRun, finite
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
    model: keras.Model, data: TrialData, probes: dict[str, Any], *, seed: int, tell: Callable[[str], None]
) -> Trace:
    """Run the trial and, where it is called for, its variations; return its record with `probes` and more in it.

    `probes["trial"]` holds `steps`, `batches`, `chance`, `broken` (step), `broken_batch`, `autopsy`, `logs`, `seconds`
    and `varied`: a dict for each variation with `start`, `end`, `fall`, `broken` and `over_chance`, by name:
    `"as_it_is"`, `"sound_data"`, `"scaled_inputs"`, `"scaled_targets"`, `"fitting_weights"`, `"all_scaled"`,
    `"fresh_optimizer"`, `"larger_batch"`, `"rate_0.1"` and so on. `pairs_samples`: whether it matters to the loss of
    a train step of the user's own which target belongs to which sample.
    """
    suspects = _suspects(probes)
    batches = data.cut(BATCHES, seed=seed, suspects=suspects)
    steps = STEPS // len(batches) * len(batches) if len(batches) < STEPS else STEPS
    sound = _bad_samples(probes["data"], batches)
    chance = _chance(model, batches if sound is None else without(*sound))  # one absurd target would set it
    held: dict[str, Any] = {"batches": len(batches), "chance": chance, "varied": {}}
    with contextlib.ExitStack() as stack:
        outputs = probes["signal"]["before"]["layers"]
        trial = Trial(model, batches, steps=max(steps, VARIED_STEPS), outputs=outputs)
        try:
            run = stack.enter_context(trial).recorded(steps)
        except Exception as error:
            trial.trace.probes = {**probes, "failure": failure("step", error, batch=batches[0])}
            return trial.trace
        trace = trial.trace
        held |= _told(run, trial)
        trace.probes = {**probes, "trial": held}
        trace.probes["signal"]["after"] = signal(model, batches[0])
        if has_own_train_step(model):
            held["pairs_samples"] = pairs_samples(trial, probes["loss"]["outputs"])
        seen = verdict(trace)
        odd = bool(fitting_weights(model, probes["signal"]["before"]["weights"]))
        if seen.suspicious or odd:
            tell(f"the trial is {seen.state}: varying one thing at a time")
            began = time.monotonic()
            for name, varied in _variations(trial, probes, seen, held):
                if varied is not None:
                    held["varied"][name] = varied
                if time.monotonic() - began > max(SECONDS, 2.0 * run.seconds):
                    break
    return trace


def _told(run: TrialRun, trial: Trial) -> dict[str, Any]:
    return {
        "steps": len(run.loss),
        "broken": run.broken,
        "broken_batch": trial.broken_batch,
        "autopsy": None if trial.autopsy is None else trial.autopsy.to_dict(),
        "logs": {name: [finite(value) for value in values] for name, values in run.logs.items()},
        "seconds": run.seconds,
    }


def _suspects(probes: dict[str, Any]) -> list[int]:
    arrays = [*probes["data"].get("inputs", []), *probes["data"].get("targets", [])]
    bad = [sample for array in arrays for sample in array.get("nonfinite_samples") or []]
    odd = [outlier["sample"] for array in arrays for outlier in array.get("outliers") or []]
    swept = (probes.get("sweep") or {}).get("nonfinite_samples") or []
    return list(dict.fromkeys([*odd[:2], *bad[:2], *swept[:2], *odd, *bad, *swept]))


def _chance(model: keras.Model, batches: list[Any]) -> float | None:
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
    trial: Trial, probes: dict[str, Any], seen: Verdict, held: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield (name, result) of each variation that is called for, those of the data first; None of one that raises."""
    trial.restart()  # weights and optimizer are looked at below as they were at the start
    batches = trial.batches[:VARIED_BATCHES]
    changes: dict[str, dict[str, Any]] = {"as_it_is": {}}
    if (bad := _bad_samples(probes["data"], batches)) is not None:
        changes["sound_data"] = {"batches": without(*bad)}
    inputs = _far_inputs(probes)
    if inputs:
        changes["scaled_inputs"] = {"batches": standardized(batches, inputs=inputs)}
    targets = _far_targets(probes)
    if targets:
        changes["scaled_targets"] = {"batches": standardized(batches, targets=True)}
    weights = fitting_weights(trial.model, probes["signal"]["before"]["weights"])
    if weights:
        changes["fitting_weights"] = {"weights": weights}
    if len(changes) > 2:
        together = standardized(batches, inputs=inputs, targets=targets) if inputs or targets else batches
        changes["all_scaled"] = {"batches": together, "weights": weights}
    if _has_memory(trial.model):
        changes["fresh_optimizer"] = {"fresh_slots": True}
    for name, change in changes.items():
        yield name, _vary(trial, held, **{"batches": batches, **change})
    for factor in _rates(seen):
        varied = _vary(trial, held, rate=factor, batches=batches)
        yield f"rate_{factor:g}", varied
        if mends(varied, seen):
            break
    if len(keras.tree.flatten(batches[0])[0]) <= SMALL_BATCH and len(trial.batches) >= 2 * LARGER:
        yield "larger_batch", _vary(trial, held, batches=joined(trial.batches, LARGER))


def _rates(seen: Verdict) -> tuple[float, ...]:
    if seen.state in (BROKEN, DIVERGING, OSCILLATING):
        return LOWER
    return (*HIGHER, *LOWER) if seen.state == STALLED else (*LOWER[:2], *HIGHER[:1])


def _vary(trial: Trial, held: dict[str, Any], **change: Any) -> dict[str, Any] | None:
    batches = change["batches"]
    try:
        run = trial.varied(VARIED_STEPS, **change)
    except Exception:  # a train step of the user's own may ask for something that the change has spoilt
        logger.debug("A variation could not be run.", exc_info=True)
        return None
    chance = held["chance"]
    if _has_other_targets(batches, trial.batches):
        chance = _chance(trial.model, batches)
    loss = run.loss[np.isfinite(run.loss)]
    period = min(len(batches), max(1, len(loss) // 2))
    if run.broken is not None or len(loss) < 2:
        return {"start": None, "end": None, "fall": None, "broken": run.broken, "over_chance": None}
    start, end = float(np.median(loss[:period])), float(np.median(loss[-period:]))
    fall = (start - end) / abs(start) if start else 0.0
    return {"start": start, "end": end, "fall": fall, "broken": None, "over_chance": end / chance if chance else None}


def _has_other_targets(batches: list[Any], others: list[Any]) -> bool:
    """Say whether the targets were scaled; those of some of the batches are still the same."""
    ys = [keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(part[0])[1]) for part in (batches, others)]
    pairs = zip(*ys, strict=False)
    return any(
        one is not None and one.shape == other.shape and not np.array_equal(np.asarray(one), np.asarray(other))
        for one, other in pairs
    )


def _far_inputs(probes: dict[str, Any]) -> list[int]:
    """Return which of the flattened inputs are numbers far from unit size."""
    far = []
    for place, array in enumerate(probes["data"].get("inputs", [])):
        columns = array.get("columns") or {}
        apart = (columns.get("std_max") or 0) > SCALES_APART * (columns.get("std_min") or 1e-9)
        sized = max(array.get("rms") or 0, abs(array.get("mean") or 0), columns.get("std_max") or 0)
        if not array.get("feeds_embedding") and (sized > FAR_FROM_UNIT or (apart and sized > 1.0) or sized < 0.01):
            far.append(place)
    return far


def _far_targets(probes: dict[str, Any]) -> bool:
    outputs, targets = probes["structure"].get("outputs") or [], probes["data"].get("targets") or []
    regression = outputs and all(
        (output.get("activation") in (None, "linear") or not output.get("certain"))
        and "crossentropy" not in str(output.get("loss"))
        for output in outputs
    )
    sized = max((array.get("rms") or 0 for array in targets), default=0)
    numbers = all("float" in str(array.get("dtype")) for array in targets)  # whole ones may be labels, or counts
    return bool(regression and targets and sized > FAR_TARGET and (numbers or all(one.get("loss") for one in outputs)))


def _bad_samples(data: dict[str, Any], batches: list[Any]) -> tuple[list[Any], list[np.ndarray]] | None:
    """Return the batches and which of their samples are not finite or absurd; None where none is, or half are."""
    read = [*data.get("inputs", []), *data.get("targets", [])]
    marks = []
    for batch in batches:
        arrays = [np.asarray(one) for one in keras.tree.flatten(batch) if one is not None]
        bad = np.zeros(len(arrays[0]), bool)
        for array, known in zip(arrays, read, strict=False):
            if array.dtype.kind == "f":
                bad |= _is_bad(array.astype(np.float64), known)
        marks.append(bad)
    return (batches, marks) if 0 < np.concatenate(marks).mean() < 0.5 else None


def _is_bad(array: np.ndarray, known: dict[str, Any]) -> np.ndarray:
    """Return bool `[samples]`: not finite, or at least half as far out as an outlier of the same column."""
    rows = array.reshape(len(array), -1, array.shape[-1] if array.ndim > 1 else 1)
    bad = ~np.isfinite(rows).all(axis=(1, 2))
    for outlier in known.get("outliers") or []:
        column = outlier.get("column") or 0
        if column < rows.shape[-1] and outlier.get("value") is not None:
            bad |= np.abs(np.nan_to_num(rows[..., column])).max(axis=1) >= 0.5 * abs(outlier["value"])
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
