"""What the variations of a trial say: the same steps with one thing changed, as evidence for a cause."""

from __future__ import annotations

import math

from gradrecipes.core.findings import Evidence
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import TrialReading, VariationResult
from gradrecipes.core.trace.variation import AS_IT_IS, Variation, variation_of
from gradrecipes.diagnosis.facts.readings import say
from gradrecipes.diagnosis.outcome.verdict import BROKEN, FAR_START, STALLED, Verdict, verdict

BACK = 1.1  # end over chance, or over its own start, up to which a run that no longer breaks is sound again
HALVED = 0.5  # end over that of the run as it is, where both are numbers
BEGINS, FASTER, LEAST_FALL = 0.05, 20.0, 1e-3  # relative fall of forty steps, and how many times that of a stall it is
NEAR = 2.0  # start over chance of a net whose weights have the usual size, and its inputs too
LEARNS = 0.9  # end over chance, or over its own start, below which a run learns
PROVEN, LIKELY, UNPROVEN = 0.95, 0.8, 0.6  # confidence: the variation mends the run; was not tried; does not fix it


def variation(trace: Trace, tried: Variation) -> VariationResult | None:
    """Return the result of a variation, or None where it was not tried."""
    return (trace.probes.trial or TrialReading()).variations.get(tried.name)


def fixes(result: VariationResult | None, seen: Verdict) -> bool:
    """Say whether a variation is sound where the run as it is was not.

    Of a run that broke, ran away or ended far above chance, that it no longer does so in forty steps is enough; one
    that stood still must learn.
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
    if seen.learnt or not seen.start_over_baseline >= FAR_START:
        return False
    for result in (variation(trace, one) for one in variations):
        if result is None or result.start is None or result.end is None or not result.over_baseline:
            continue
        chance = result.end / result.over_baseline
        if chance > 0 and result.start < min(NEAR * chance, seen.start / FAR_START):
            return True
    return False


def fixed_by(trace: Trace, *variations: Variation) -> bool:
    """Say whether one of these variations mends the run."""
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
            then = "it breaks all the same" if seen.state == BROKEN else "it breaks"
        else:
            then = f"it {_moves(result.start, result.end)}"
        statement = f"As it is, the loss {as_it_is} in a short trial; {one.words}, {then}."
        found.append(Evidence(statement, result.end, source="this trial"))
    return tuple(found)


def _many_times_faster(result: VariationResult, seen: Verdict) -> bool:
    """Return whether a loss that stood still, or fell slowly, falls many times faster, and ends no higher."""
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
    return f"goes from {say(start)} to {say(end)}" if say(start) != say(end) else f"stays at {say(end)}"
