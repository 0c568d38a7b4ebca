"""Read what the optimizer holds and the rates of the whole training, and try steps at the highest of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_optimizers import schedule_of
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.trial_reading import PlannedRates, TrialReading, VariationResult, at_rate
from gradrecipes.diagnosis.facts.divergences import (
    SLOW_RISE,
    SLOWEST_RISE,
    climbs_at_highest,
    lost_at_highest,
    unlearned_at_highest,
)
from gradrecipes.diagnosis.outcome import Verdict, fixes
from gradrecipes.probes.held_back import standard_error
from gradrecipes.probes.varied.variations import LOWER_RATES
from gradrecipes.training.trial import Trial, TrialRun

POINTS = 48  # at which a schedule is read, evenly over the training, beside those that its settings name
FURTHER = 10  # times the steps that are known of, to which a schedule is read that rises without end
OVER = 1e-2  # rate over the highest one of a schedule below which next to nothing is learned any more
OVER_EARLY = 1.5  # planned steps over those of a schedule that leaves a third of the training without a rate
HIGHER = 1.5  # highest rate over that of the trial's steps from which it is tried
RAISED_OVER = (75, SLOW_RISE, SLOWEST_RISE)  # steps over which the rate rises, the next where the loss is lost
HELD = 2  # passes over the trial's batches at the highest rate


def read_planned_rates(
    model: keras.Model, description: Description, *, trial_steps: int, steps: int | None
) -> PlannedRates | None:
    """Return the learning rates of the training, before the trial; None where the optimizer has no single rate.

    Args:
        model: A compiled model, its optimizer where the training begins.
        description: Of the model.
        trial_steps: Steps of the trial.
        steps: Steps of the training that is planned; None to read the schedule over the steps that it names itself.
    """
    rate = description.learning_rate
    found = schedule_of(model)
    if found is None:
        known = rate is not None
        return PlannedRates(steps, steps is not None, rate, rate, rate, 0) if known else None
    schedule, first = found
    named = sorted(set(_steps_named(schedule)))
    last = max(trial_steps, steps if steps is not None else max(named, default=0) + 1 - first)
    if steps is None and _rises_on(schedule, first, last):
        last *= FURTHER
    points = {*np.linspace(0, trial_steps - 1, 9).astype(int), *np.linspace(0, last - 1, POINTS).astype(int)}
    points |= {step - first for step in named if 0 <= step - first < last}
    try:
        rates = {int(point): float(schedule(first + int(point))) for point in sorted(points)}
    except Exception:  # a schedule of the user's own may need more than a number
        return None
    within = [value for point, value in rates.items() if point < trial_steps]
    step = max(rates, key=lambda point: (rates[point], -point))
    read = steps if steps is not None else last if last > trial_steps else None
    known = PlannedRates(read, steps is not None, min(within), max(within), rates[step], step)
    return replace(known, over_step=_over_step(rates))


def _over_step(rates: dict[int, float]) -> int | None:
    """Return the first step from which on the rate stays below a hundredth of the highest before."""
    over = None
    for step in sorted(rates, reverse=True):
        highest = max(rate for before, rate in rates.items() if before <= step)
        if not rates[step] < OVER * highest:
            break
        over = step
    return over


def _rises_on(schedule: Any, first: int, last: int) -> bool:
    """Return whether a schedule goes on rising where its settings name no more steps, as that of a range test does."""
    try:
        rates = [float(schedule(first + step)) for step in (last - 1, FURTHER * last // 2, FURTHER * last - 1)]
    except Exception:  # a schedule of the user's own may need more than a number
        return False
    return rates[1] > HIGHER * rates[0] and rates[2] > HIGHER * rates[1]


def _steps_named(schedule: Any) -> Iterator[int]:
    """Yield the steps at which a schedule's settings say that something changes."""
    with contextlib.suppress(Exception):
        settings = schedule.get_config()
        inner = settings.get("schedule")
        if isinstance(inner, dict):
            inner = keras.optimizers.schedules.deserialize(inner)
        warm_up = int(settings.get("warmup_steps") or settings.get("steps") or 0)
        yield warm_up
        yield from (warm_up + step for step in _steps_named(inner))
        yield warm_up + int(settings.get("decay_steps") or settings.get("first_decay_steps") or 0)
        yield from (int(boundary) + 1 for boundary in settings.get("boundaries") or ())


def try_highest_rate(
    trial: Trial, rates: PlannedRates | None, seen: Verdict, *, trial_steps: int, tell: Callable[[str], None]
) -> PlannedRates | None:
    """Go on from the end of the trial to the highest rate that is planned, and stay there for two passes.

    The rate rises linearly, over 75 steps or as many as the schedule takes. Where the training is lost by then, the
    same is run from the trial's end again, up to twice, each time four times slower: the longer a rate takes to rise,
    the higher it may be.

    Args:
        trial: The trial after its recorded run.
        rates: What `read_planned_rates` returned before that.
        seen: How the trial went.
        trial_steps: How many steps it had.
        tell: Called with a few words.
    """
    if rates is None or rates.highest is None or not (rates.trial_highest or 0.0) > 0 or seen.unhealthy:
        return rates
    if rates.highest < HIGHER * rates.trial_highest or rates.highest_step < trial_steps:
        return rates
    tell("training at the highest learning rate of the schedule")
    schedule, _ = schedule_of(trial.model) or (None, 0)
    saved, gap = trial.save(), rates.highest_step - trial_steps + 1
    for number, longest in enumerate(RAISED_OVER):
        over = min(longest, gap)
        if number and over <= rates.raised_over:
            break
        trial.load(saved)
        rates = _raised(trial, schedule, rates, seen, over, in_full=over == gap)
        if lost_at_highest(rates, seen) or unlearned_at_highest(rates, seen) is None:
            break
    trial.load(saved)
    return rates


def _raised(
    trial: Trial, schedule: Any, rates: PlannedRates, seen: Verdict, over: int, *, in_full: bool
) -> PlannedRates:
    begin = float(schedule(schedule_of(trial.model)[1]))
    wanted = np.r_[np.linspace(begin, rates.highest, over), np.full(HELD * len(trial.batches), rates.highest)]
    if not begin > 0:
        return rates
    run = trial.continued(list(-wanted))
    result = _result(run, seen, len(trial.batches), len(wanted))
    broken_rate = None if run.broken is None else float(wanted[run.broken])
    return replace(rates, at_highest=result, raised_over=over, in_full=in_full, broken_rate=broken_rate)


def rate_to_hold(rates: PlannedRates | None) -> float | None:
    """Return a rate beside which a planned training is to be seen whose schedule may spoil it; None for others.

    That is the highest one of a schedule that leaves a third of the training without a rate to speak of, and that of
    the trial where the loss climbs as the rate does.
    """
    planned = rates.steps if rates is not None and rates.planned else None
    if rates is None or planned is None or not rates.highest:
        return None
    if rates.over_step is not None and planned >= OVER_EARLY * rates.over_step:
        return rates.highest
    return rates.trial_highest if climbs_at_highest(rates) else None


def hold_rate(
    trial: Trial,
    ended: Sequence[Any],
    rates: PlannedRates,
    seen: Verdict,
    *,
    rate: float,
    steps: int,
    unseen: Callable[[], Any],
) -> PlannedRates:
    """Go on from the end of the trial at one rate, beside a training whose schedule may spoil it.

    Args:
        trial: The trial at the end of the same steps at the rates that are planned.
        ended: What it was at the end of its recorded run.
        rates: What `try_highest_rate` returned.
        seen: How the trial went.
        rate: The one that is held.
        steps: How many more.
        unseen: Returns the loss of each row that it was not trained on, of the weights as they are, or None.
    """
    own = unseen()
    trial.load(ended)
    run = trial.continued([-rate] * steps)
    rates, held = replace(rates, held=_result(run, seen, len(trial.batches), steps)), unseen()
    if own is None or held is None or run.broken is not None:
        return rates
    return replace(rates, unseen=(float(own.mean()), float(held.mean()), standard_error(own - held)))


def try_lower_rates(trial: Trial, reading: TrialReading, seen: Verdict) -> dict[str, VariationResult]:
    """Return by name what lower rates do in all the steps of a run that is lost late, up to the first that trains.

    Args:
        trial: One that was entered.
        reading: Of it, with its further steps.
        seen: How its recorded steps went.
    """
    found, period = {}, len(trial.batches)
    steps = reading.steps + reading.further_steps if reading.further_broken is None else reading.further_broken + period
    for rate in LOWER_RATES:
        trial.restart()
        run = trial.continued([rate] * steps)
        start = float(np.median(run.loss[:period])) if len(run.loss) else math.nan
        found[at_rate(rate).name] = result = _result(run, replace(seen, end=start), period, steps)
        if fixes(result, seen):
            break
    return found


def _result(run: TrialRun, seen: Verdict, period: int, steps: int) -> VariationResult:
    loss = run.loss[np.isfinite(run.loss)]
    if run.broken is not None or not len(loss):
        return VariationResult(start=seen.end, broken=run.broken, steps=steps)
    end = float(np.median(loss[-period:]))
    over = end / seen.baseline if seen.baseline > 0 else None
    fall = (seen.end - end) / abs(seen.end) if seen.end else 0.0
    return VariationResult(seen.end, end, fall, over_baseline=over, steps=steps)


SLOTS_NAMED = 5


def nonfinite_slots(model: keras.Model) -> tuple[str, ...]:
    """Return the paths of up to five optimizer variables that hold a NaN or infinity.

    Args:
        model: A compiled model.
    """
    optimizer = getattr(model, "optimizer", None)
    slots = [] if optimizer is None else optimizer.variables
    return tuple(slot.path for slot in slots if not _is_finite(slot))[:SLOTS_NAMED]


def _is_finite(variable: Any) -> bool:
    value = tf.convert_to_tensor(variable)
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))
