"""How a training went: broke, diverged, stalled, or learned; and what the variations of its trial show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gradrecipes.core.findings import Evidence
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import (
    AS_IT_IS,
    PlannedRates,
    TrialReading,
    Variation,
    VariationResult,
    variation_of,
)
from gradrecipes.diagnosis.facts.readings import (
    TOLERATED_BY_SCALER,
    middle,
    nonfinite_gradients,
    nonfinite_losses,
    rounded,
)

BROKEN, DIVERGING, STALLED, OSCILLATING, LEARNING, UNKNOWN = (
    "broken",
    "diverging",
    "stalled",
    "oscillating",
    "learning",
    "unknown",
)
SHORTEST = 8  # steps; fewer show no trend
WINDOW_SHARE = 0.25  # of the steps, whose median is the start or the end, where the same batches did not come again
RISE = 2.0  # end over start by which a loss has left for good; batches of sound nets differ by less in the median
NOISES = 5.0  # robust standard deviations of the first losses that a rise exceeds too
FIRST = 3  # steps whose median is the loss before anything happened
PEAK = 10.0  # highest loss over those, and over all at the end, after which a run was thrown away
FIRST_PEAK = 1e3  # the same over the very first loss, where the second step already threw it away
BACK_DOWN = 0.5  # end over first below which it has come back; bumps of sound runs heal
STILL = 0.01  # relative fall over the whole run below which next to nothing was learned
SLOW = 0.1  # relative fall over the whole run of a net that learns, but slowly
FAR_START = 5.0  # first loss over that of a constant prediction; He nets with a cross-entropy begin below 2
LEARNED_AT_ONCE = 0.5  # fall from the first steps to the end of a run that is at rest after its first pass
AT_REST = 0.9  # end over the baseline below which a run that no longer falls has learned before
NOTHING_LEFT = 1e-6  # end over the first loss, where the baseline is not known: ten roundings of float32
SURE = 2.0  # standard errors that a fall exceeds which is no accident
WILD = 1.0  # robust spread of the last losses over their median: a net at rest has .1 to .5


@dataclass(frozen=True)
class Verdict:
    """Say how a run went.

    Args:
        state: `"broken"`, `"diverging"`, `"stalled"`, `"oscillating"`, `"learning"` or `"unknown"`.
        start: Median loss of the first batches.
        end: Median loss of the last ones, of the same batches if they came again.
        fall: (start - end) / |start|.
        baseline: The loss of the best constant prediction; NaN where it is not known.
        step: Where it broke or left its start, or None.
    """

    state: str
    start: float
    end: float
    fall: float
    baseline: float
    step: int | None = None

    @property
    def unhealthy(self) -> bool:
        """Whether the run broke or diverged."""
        return self.state in (BROKEN, DIVERGING)

    @property
    def suspicious(self) -> bool:
        """Whether the run is worth a closer look: not learning, slow, far out at first, or below the baseline."""
        return self.state != LEARNING or self.start_over_baseline >= FAR_START or self.slow or not self.learned

    @property
    def slow(self) -> bool:
        """Whether the loss fell by less than a tenth, or ends so near to the baseline."""
        return self.state == LEARNING and (self.fall < SLOW or self.end_over_baseline > 1.0 - SLOW)

    @property
    def learned(self) -> bool:
        """Whether the net got better, and where the baseline is known, better than that."""
        return self.state == LEARNING and not self.end_over_baseline >= 1.0

    @property
    def course(self) -> str:
        """The way of the loss in words: "went from 2.3 to 0.4", "stayed at 2.3"."""
        start, end = rounded(self.start), rounded(self.end)
        return f"went from {start} to {end}" if start != end else f"stayed at {end}"

    @property
    def start_over_baseline(self) -> float:
        """Start over the baseline; NaN where that is not known."""
        return self.start / self.baseline if self.baseline > 0 else math.nan

    @property
    def end_over_baseline(self) -> float:
        """End over the baseline; NaN where that is not known."""
        return self.end / self.baseline if self.baseline > 0 else math.nan


def verdict(trace: Trace) -> Verdict:
    """Judge a run by its own losses.

    A trial runs the same batches several times, so that each is compared with itself; a fit's first quarter is
    compared with its last.
    """
    trial = trace.probes.trial or TrialReading()
    loss = losses(trace)
    baseline = trial.constant_baseline_loss
    baseline = math.nan if baseline is None or baseline <= 0 else baseline
    bad = nonfinite_losses(trace) | nonfinite_gradients(trace)
    period = trial.batches or 0
    finite = loss[np.isfinite(loss)]
    start, end = _ends(finite, period)
    fall = (start - end) / abs(start) if start else 0.0
    if _broke(trace, bad, trial):
        row = int(np.argmax(bad)) if bad.any() else max(0, len(trace) - 1)
        step = int(trace.steps["step"][row]) if len(trace) else None
        return Verdict(BROKEN, start, end, fall, baseline, step)
    if len(finite) < SHORTEST:
        return Verdict(UNKNOWN, start, end, fall, baseline)
    if (first := _thrown_away_from(finite, end, max(1, period))) is not None:
        peak = int(trace.steps["step"][int(np.nanargmax(np.where(np.isfinite(loss), loss, -np.inf)))])
        return Verdict(DIVERGING, first, end, (first - end) / abs(first), baseline, peak)
    noise = _spread(finite[: max(SHORTEST, period)])
    if end - start > max((RISE - 1.0) * abs(start), NOISES * noise):
        above = loss - start > max((RISE - 1.0) * abs(start), NOISES * noise)
        return Verdict(DIVERGING, start, end, fall, baseline, int(trace.steps["step"][int(np.argmax(above))]))
    if fall < STILL or (fall < SLOW and start - end < SURE * _error_of_fall(finite, period)):
        last = finite[-max(SHORTEST, period, len(finite) // 4) :]
        first = float(np.median(finite[:FIRST]))
        rest = AT_REST * baseline if math.isfinite(baseline) else NOTHING_LEFT * abs(first)
        if end < rest and first - end > max(LEARNED_AT_ONCE * abs(first), NOISES * _spread(last)):
            return Verdict(LEARNING, first, end, (first - end) / abs(first), baseline)  # within the first pass
        wild = _spread(last) > WILD * abs(middle(last)) and _spread(last) > 3.0 * noise
        return Verdict(OSCILLATING if wild else STALLED, start, end, fall, baseline)
    return Verdict(LEARNING, start, end, fall, baseline)


class Falling(NamedTuple):
    """Say how one of several losses went: its ends, and whether it fell, or climbed, beyond its noise."""

    start: float
    end: float
    falls: bool
    climbs: bool


def falling(loss: np.ndarray, trace: Trace) -> Falling:
    """Compare the ends of one of the losses that a train step returns, as `verdict` does with the sum.

    Args:
        loss: Finite values, `[steps]`.
        trace: The record.
    """
    period = (trace.probes.trial or TrialReading()).batches or 0
    start, end = _ends(loss, period)
    fall, accident = start - end, SURE * _error_of_fall(loss, period)
    climbs = -fall > max((RISE - 1.0) * abs(start), accident)
    return Falling(start, end, fall > max(STILL * abs(start), accident), climbs)


def _thrown_away_from(finite: np.ndarray, end: float, period: int) -> float | None:
    """Return the loss at the start of a run that shot up, came down somewhere, and is no better than it was."""
    peak, settled = float(np.max(finite)), float(np.max(finite[-period:]))
    for first, factor in ((float(np.median(finite[:FIRST])), PEAK), (float(finite[0]), FIRST_PEAK)):
        if first > 0 and peak > factor * first and peak > PEAK * settled and end > BACK_DOWN * first:
            return first
    return None


def losses(trace: Trace) -> np.ndarray:
    """Return the loss of each step, float64 `[n]`; that of the logs where a train step of its own computes it."""
    loss = trace.loss.astype(float)
    if len(loss) and np.isnan(loss).all():
        logged = (trace.probes.trial or TrialReading()).logs.get("loss", ())
        if logged and len(logged) == len(loss):
            return np.array([math.nan if value is None else value for value in logged])
    return loss


def _broke(trace: Trace, bad: np.ndarray, trial: TrialReading) -> bool:
    if trial.broken is not None:  # by a loss that only the step's logs tell, too
        return True
    if not bad.any():
        return False
    if trace.description.loss_scaler:
        return bool(bad.mean() > TOLERATED_BY_SCALER)
    return True


def _ends(loss: np.ndarray, period: int) -> tuple[float, float]:
    """Return (start, end): the medians over the first and the last pass, or over a quarter of the steps."""
    if not len(loss):
        return math.nan, math.nan
    count = period if 0 < period <= len(loss) // 2 else max(1, int(len(loss) * WINDOW_SHARE))
    return float(np.median(loss[:count])), float(np.median(loss[-count:]))


def _error_of_fall(loss: np.ndarray, period: int) -> float:
    """Return the standard error of the fall: of each batch against itself, or of two windows of a fit."""
    if 2 < period <= len(loss) // 2:
        last = np.roll(loss[-period:], len(loss) % period)  # each batch in the place that it has in the first pass
        return _spread(loss[:period] - last) / math.sqrt(period)
    count = max(1, int(len(loss) * WINDOW_SHARE))
    return math.hypot(_spread(loss[:count]), _spread(loss[-count:])) / math.sqrt(count)


def _spread(values: np.ndarray) -> float:
    """Return a standard deviation that single batches do not move: that of a normal with the same quartiles."""
    low, high = np.percentile(values, [25, 75]) if len(values) else (0.0, 0.0)
    return float(high - low) / 1.349


UNLEARNED = 0.9  # end over the baseline at which next to nothing is left of what was learned
SLOW_RISE, SLOWEST_RISE = 300, 1200  # steps: over so many a rise is slow for a loss that diverges; for one that forgets


def lost_at_highest(rates: PlannedRates | None, seen: Verdict) -> bool:
    """Say whether steps at the highest rate of the schedule lose the training, however slowly the rate rises.

    A loss that breaks, or ends at twice that of the untrained net, has to do so where the rate was raised over 300
    steps; a net that forgets what it had learned may need a longer warm-up, and has to do so over 1,200. Fewer count
    where the schedule itself takes no more.

    Args:
        rates: The planned rates, with what steps at the highest did.
        seen: How the trial went, at its own rates.
    """
    if rates is None or rates.at_highest is None:
        return False
    over = math.inf if rates.in_full else rates.raised_over or 0
    if _diverges(rates.at_highest, seen):
        return over >= SLOW_RISE
    return over >= SLOWEST_RISE and unlearned_at_highest(rates, seen) is not None


def unlearned_at_highest(rates: PlannedRates | None, seen: Verdict) -> VariationResult | None:
    """Return what steps at the highest rate did where they ended no better than a constant prediction, or broke."""
    result = None if rates is None else rates.at_highest
    if result is None or (not seen.end_over_baseline < UNLEARNED and not _diverges(result, seen)):
        return None
    return result if _diverges(result, seen) or (result.over_baseline or 0.0) >= UNLEARNED else None


def _diverges(result: VariationResult, seen: Verdict) -> bool:
    if result.broken is not None or result.end is None:
        return True
    return result.end - seen.start > (RISE - 1.0) * abs(seen.start)


def learned_at_highest(rates: PlannedRates | None) -> VariationResult | None:
    """Return what steps at the highest rate did, where they ended below the constant prediction, or None.

    It counts only where the training is known to be so long: a schedule may name steps that nobody trains.
    """
    result = None if rates is None else rates.at_highest
    if rates is None or not rates.planned or result is None or result.end is None or result.over_baseline is None:
        return None
    return result if result.over_baseline < UNLEARNED else None


BACK = 1.1  # end over chance, or over its own start, up to which a run that no longer breaks is sound again
HALVED = 0.5  # end over that of the run as it is, where both are numbers
BEGINS, FASTER, LEAST_FALL = 0.05, 20.0, 1e-3  # relative fall of forty steps, and how many times that of a stall it is
NEAR = 2.0  # start over chance of a net whose weights have the usual size, and its inputs too
LEARNS = 0.9  # end over chance, or over its own start, below which a run learns
PROVEN, LIKELY, UNPROVEN = 0.95, 0.8, 0.6  # confidence: the variation fixes the run; was not tried; does not fix it


def variation(trace: Trace, tried: Variation) -> VariationResult | None:
    """Return the result of a variation, or None where it was not tried."""
    return (trace.probes.trial or TrialReading()).variations.get(tried.name)


def fixes(result: VariationResult | None, seen: Verdict) -> bool:
    """Say whether a variation is sound where the run as it is was not.

    Of a run that broke, ran away or ended far above chance, that it no longer does so in forty steps is enough; one
    that stalled must learn.
    """
    if result is None or result.start is None or result.end is None or result.fall is None:
        return False
    start, end, over = result.start, result.end, result.over_baseline
    if _many_times_faster(result, seen):
        return True
    if seen.unhealthy or seen.end_over_baseline > 1.0 / HALVED:
        ended = end <= start + (BACK - 1.0) * abs(start) if over is None else over <= BACK
        better = seen.state == BROKEN or over is None or over <= HALVED * seen.end_over_baseline
        return bool(ended and better)
    if over is not None:
        return bool(over < LEARNS and end < start)
    return bool(start - end > (1.0 - LEARNS) * abs(start))


def halved_by(trace: Trace, seen: Verdict, *variations: Variation) -> bool:
    """Say whether a variation gets to less than half of where the same steps as they are get."""
    as_it_is = (variation(trace, AS_IT_IS) or VariationResult()).end
    own = seen.end if as_it_is is None else as_it_is
    ends = [(variation(trace, one) or VariationResult()).end for one in variations]
    return any(end is not None and own > 0 and end < HALVED * own for end in ends)


def starts_near_baseline(trace: Trace, seen: Verdict, *variations: Variation) -> bool:
    """Say whether a net that begins far above chance and gets nowhere begins near it with one of these variations."""
    if seen.learned or not seen.start_over_baseline >= FAR_START:
        return False
    for result in (variation(trace, one) for one in variations):
        if result is None or result.start is None or result.end is None or not result.over_baseline:
            continue
        chance = result.end / result.over_baseline
        if chance > 0 and result.start < min(NEAR * chance, seen.start / FAR_START):
            return True
    return False


def fixed_by(trace: Trace, *variations: Variation) -> bool:
    """Say whether one of these variations fixes the run."""
    seen = verdict(trace)
    return any(fixes(variation(trace, one), seen) for one in variations)


def fixing_rate(trace: Trace, *, lower: bool) -> float | None:
    """Return the factor of the learning rate, below or above 1, with which the run learns; the nearest to 1.

    A rate does not count where another variation gets to less than half of where the rate gets: a lower rate lets
    many a run fall for a while that has another cause.
    """
    varied = (trace.probes.trial or TrialReading()).variations
    seen = verdict(trace)
    rates = [(variation_of(name).rate, result) for name, result in varied.items()]
    best = min([_over(result) for rate, result in rates if rate is None and fixes(result, seen)], default=math.inf)
    factors = [rate for rate, result in rates if rate is not None and fixes(result, seen) and _over(result) <= 2 * best]
    fitting = [factor for factor in factors if (factor < 1) == lower]
    return (max if lower else min)(fitting, default=None)


def confidence(trace: Trace, *variations: Variation) -> float:
    """Return how sure a cause is, by what its variations did."""
    if fixed_by(trace, *variations) or starts_near_baseline(trace, verdict(trace), *variations):
        return PROVEN
    return LIKELY if all(variation(trace, one) is None for one in variations) else UNPROVEN


def variation_evidence(trace: Trace, *variations: Variation) -> tuple[Evidence, ...]:
    """Return a sentence for each of these variations that was tried: what the same steps did then."""
    seen = verdict(trace)
    found = []
    for one in variations:
        result = variation(trace, one)
        if result is None:
            continue
        as_it_is = "breaks" if seen.state == BROKEN else _moves(seen.start, seen.end)
        if result.end is None:
            then = "it breaks as well" if seen.state == BROKEN else "it breaks"
        else:
            then = f"it {_moves(result.start, result.end)}"
        statement = f"As it is, the loss {as_it_is} in a short trial; {one.words}, {then}."
        found.append(Evidence(statement, result.end, source="this trial"))
    return tuple(found)


def _many_times_faster(result: VariationResult, seen: Verdict) -> bool:
    """Return whether a loss that stalled, or fell slowly, falls many times faster, and ends no higher."""
    if result.fall is None or seen.unhealthy or not (seen.state == STALLED or seen.slow):
        return False
    if _over(result) > max(1.0, seen.end_over_baseline) or (
        math.isinf(_over(result)) and (result.end or 0.0) > seen.end
    ):
        return False
    return result.fall > max(BEGINS, FASTER * max(seen.fall, LEAST_FALL))


def _over(result: VariationResult) -> float:
    return math.inf if result.over_baseline is None else result.over_baseline


def _moves(start: float | None, end: float | None) -> str:
    return (
        (f"goes from {rounded(start)} to {rounded(end)}")
        if rounded(start) != rounded(end)
        else f"stays at {rounded(end)}"
    )
