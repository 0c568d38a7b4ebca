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

from gradrecipes.core.analysis.baseline import constant_baseline_loss
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import Probes, TrialReading, VariationResult
from gradrecipes.core.trace.variation import LARGER_BATCH, at_rate
from gradrecipes.diagnosis.outcome.variation_facts import fixes
from gradrecipes.diagnosis.outcome.verdict import BROKEN, DIVERGING, OSCILLATING, STALLED, Verdict, verdict
from gradrecipes.probes.failure import failure
from gradrecipes.probes.pairing import pairs_samples
from gradrecipes.probes.signal import signal
from gradrecipes.probes.variations import CHANGES, Context, bad_samples, fitting_weights, larger_batches, without
from gradrecipes.training.trial.trial import Trial, finite
from gradrecipes.training.trial.trial_data import TrialData

logger = logging.getLogger(__name__)

STEPS = 100  # of the trial; what breaks later than that breaks for other reasons
BATCHES = 25  # that it runs over, four times
VARIED_STEPS = 40  # of each variation
VARIED_BATCHES = 10  # that it runs over, four times
SECONDS = 8.0  # for all variations together, or twice what the trial took, whichever is more
LOWER_RATES, HIGHER_RATES = (0.1, 0.01, 0.001), (10.0, 100.0, 1e3, 1e5)  # times the learning rate


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
    marks = bad_samples(probes.data, batches)
    baseline = _baseline(model, batches if marks is None else without(batches, marks))  # one absurd target would set it
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
            trial.restart()  # weights and optimizer are read as they were at the start
            context = Context(trial, description, probes, seen, trial.batches[:VARIED_BATCHES])
            for name, varied in _variations(context, baseline):
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
        return constant_baseline_loss(name, np.concatenate([np.asarray(keras.tree.flatten(y)[0]) for y in ys]))
    except (TypeError, ValueError):  # targets of different lengths, or that are no numbers
        return None


def _variations(context: Context, baseline: float | None) -> Iterator[tuple[str, VariationResult | None]]:
    """Yield (name, result) of each variation that is called for, those of the data first; None of one that raises."""
    trial, batches = context.trial, context.batches
    for one, change in CHANGES:
        changed = change(context)
        if changed is not None:
            yield one.name, _vary(trial, baseline, **{"batches": batches, **changed})
    for factor in _rates(context.seen):
        varied = _vary(trial, baseline, rate=factor, batches=batches)
        yield at_rate(factor).name, varied
        if fixes(varied, context.seen):
            break
    if (larger := larger_batches(context)) is not None:
        yield LARGER_BATCH.name, _vary(trial, baseline, batches=larger)


def _rates(seen: Verdict) -> tuple[float, ...]:
    if seen.state in (BROKEN, DIVERGING, OSCILLATING):
        return LOWER_RATES
    return (*HIGHER_RATES, *LOWER_RATES) if seen.state == STALLED else (*LOWER_RATES[:2], *HIGHER_RATES[:1])


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
