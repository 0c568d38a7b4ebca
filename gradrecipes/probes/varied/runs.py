"""Run a trial again from its start with one thing changed, and twice as long where that fixes it."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from gradrecipes.core.trace.trial_reading import (
    AS_IT_IS,
    BALANCED_TERMS,
    LARGER_BATCH,
    OutputTrial,
    Variation,
    VariationResult,
    at_rate,
    variation_of,
)
from gradrecipes.diagnosis.outcome import HALVED_END, fixes, has_heavy_tail
from gradrecipes.probes.held_back import standard_error
from gradrecipes.probes.output_losses import Baselines, OutputLosses
from gradrecipes.probes.varied.variations import CHANGES, Context, have_other_targets, larger_batches, rates_to_try
from gradrecipes.training.trial import Trial

logger = logging.getLogger(__name__)

VARIED_STEPS, VARIED_BATCHES = 40, 10  # of each variation, and the batches that it runs over, four times
MAX_CONFIRMED = 3  # variations that fix the run and are run for twice as many steps
NEARLY_FIXED = 0.98  # end over the baseline of a variation that is worth more steps


def vary_one_at_a_time(context: Context, baselines: Baselines, *, at_most: int) -> dict[str, VariationResult]:
    """Return by name what each variation that is called for does, and again in more steps what fixes the run.

    Args:
        context: The trial, and what the variations may look at.
        baselines: Of its batches.
        at_most: Steps of all variations together, before they are run again: a slow machine judges as a fast one.
    """
    found: dict[str, VariationResult] = {}
    taken = 0
    for name, result in _variations(context, baselines):
        if result is not None:
            found[name] = result
            taken += VARIED_STEPS if result.broken is None else result.broken + 1
        if taken >= at_most:
            break
    return found | dict(_confirmed(context, baselines, found))


def _variations(context: Context, baselines: Baselines) -> Iterator[tuple[str, VariationResult | None]]:
    """Yield (name, result) of each variation that is called for, those of the data first; None of one that raises."""
    trial, batches = context.trial, context.batches
    for one, change in CHANGES:
        trial.restart()  # weights and optimizer are read as they were at the start
        changed = change(context)
        if changed is not None:
            yield one.name, vary(trial, baselines, **{"batches": batches, **changed})
    for factor in rates_to_try(context.seen):
        varied = vary(trial, baselines, rate=factor, batches=batches)
        yield at_rate(factor).name, varied
        if fixes(varied, context.seen):
            break
    if (larger := larger_batches(context)) is not None:
        yield LARGER_BATCH.name, vary(trial, baselines, batches=larger)


def _confirmed(
    context: Context, baselines: Baselines, variations: dict[str, VariationResult]
) -> Iterator[tuple[str, VariationResult]]:
    """Yield (name, result) of the variations that fix the run, run again for twice as many steps.

    Of a run that learned nothing the nearest to a fix is run for four times as many, where none is one yet.
    """
    trial, batches, seen, times = context.trial, context.batches, context.seen, 2
    others = [(name, one) for name, one in variations.items() if name != AS_IT_IS.name]
    others.sort(key=lambda pair: math.inf if pair[1].over_baseline is None else pair[1].over_baseline)
    fixing = [(name, one) for name, one in others if fixes(one, seen)]
    if not fixing and others and seen.end_over_baseline >= 1.0 and (others[0][1].over_baseline or 1.0) < NEARLY_FIXED:
        fixing, times = others[:1], 4
    changes = {one.name: change for one, change in CHANGES}
    for name, _ in fixing[:MAX_CONFIRMED]:
        rate = variation_of(name).rate
        if rate is not None:
            changed: dict[str, Any] | None = {"rate": rate}
        elif name == LARGER_BATCH.name:
            changed = {"batches": larger_batches(context) or batches}
        else:
            trial.restart()
            changed = changes[name](context)
        again = vary(trial, baselines, steps=times * VARIED_STEPS, **{"batches": batches, **(changed or {})})
        if again is not None:
            yield name, again


def vary(trial: Trial, baselines: Baselines, *, steps: int = VARIED_STEPS, **change: Any) -> VariationResult | None:
    """Return what the trial does with one thing changed; None where it raises.

    Args:
        trial: One that was entered.
        baselines: Of its batches.
        steps: How many to run.
        change: Arguments of `Trial.varied`, the batches among them.
    """
    batches = change["batches"]
    try:
        run = trial.varied(steps, **change)
    except Exception:  # a train step of the user's own may need something that the change has altered
        logger.debug("A variation could not be run.", exc_info=True)
        return None
    other = have_other_targets(batches, trial.batches)
    baseline = baselines.of(batches) if other else baselines.of_trial
    fitted = baselines.fit(batches) if other else baselines.fitted
    loss = run.loss[np.isfinite(run.loss)]
    period = min(len(batches), max(1, len(loss) // 2))
    if run.broken is not None or len(loss) < 2:
        return VariationResult(broken=run.broken, steps=steps)
    start, end = float(np.median(loss[:period])), float(np.median(loss[-period:]))
    fall = (start - end) / abs(start) if start else 0.0
    heavy = not baselines.corrupt and has_heavy_tail(loss[-period:])
    baseline = baselines.of(batches) if heavy else baseline  # of a few batches, it may be far from that of all
    over = (float(loss[-period:].mean()) if heavy else end) / baseline if baseline else None
    if fitted is None:
        read = None if baselines.answers is None or over is not None else baselines.answers.compared()
        return VariationResult(start, end, fall, None, over, steps, None if read is None else int(read.depend))
    last = OutputTrial(0, "loss", start, float(loss[-period:].mean()), fitted, standard_error(loss[-period:]))
    return VariationResult(start, end, fall, None, over, steps, int(last.learned), end - fitted)


def balanced(
    trial: Trial, losses: OutputLosses, before: list[Any], penalty: float, *, steps: int
) -> dict[str, VariationResult]:
    """Return by name how many outputs learn in the trial's steps where all terms of the loss begin equally large.

    Args:
        trial: One that was entered.
        losses: Of its outputs.
        before: What these were before the first step.
        penalty: What layers added to the loss then.
        steps: How many to run.
    """
    batches = losses.balanced(before, penalty)
    if batches is None:
        return {}
    try:
        run = trial.varied(steps, batches=batches)
    except Exception:  # a loss that takes no sample weights
        logger.debug("The terms of the loss could not be balanced.", exc_info=True)
        return {}
    if run.broken is not None:
        return {BALANCED_TERMS.name: VariationResult(broken=run.broken, steps=steps)}
    changed = losses.on(batches)
    ended = changed.compared(before, changed.measured())
    if np.isfinite(run.loss).sum() < 2 or not ended:
        return {}
    clearly = [one.learned and (one.end or 0.0) < HALVED_END * (one.baseline or math.inf) for one in ended]
    return {BALANCED_TERMS.name: VariationResult(steps=steps, outputs_learned=sum(clearly))}


def freed(
    variation: Variation,
    free: contextlib.AbstractContextManager[None],
    model: keras.Model,
    batches: list[Any],
    baselines: Baselines,
    steps: int,
) -> dict[str, VariationResult]:
    """Return by name what a variation does while the model is freed of something.

    Args:
        variation: The one that frees it.
        free: Within it, the model is free.
        model: A compiled model.
        batches: To run over.
        baselines: Of these.
        steps: How many to run.
    """
    try:
        with free, Trial(model, batches, steps=steps) as trial:
            found = vary(trial, baselines, steps=steps, batches=batches)
    except Exception:  # an optimizer that cannot be made again, a layer whose settings are fixed
        logger.debug("The variation %r could not be run.", variation.name, exc_info=True)
        return {}
    return {} if found is None else {variation.name: found}
