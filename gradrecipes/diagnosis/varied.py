"""What the variations of a trial say: the same steps with one thing changed, as evidence for a cause."""

from __future__ import annotations

from gradrecipes.core.finding import Evidence
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import TrialReading, VariationResult
from gradrecipes.diagnosis.readings import say
from gradrecipes.diagnosis.verdict import BROKEN, FAR_START, STALLED, Verdict, verdict

WORDS = {
    "as_it_is": "once more, over fewer batches",
    "sound_data": "without the samples that are not finite or absurd",
    "scaled_inputs": "with inputs of mean 0 and standard deviation 1",
    "scaled_targets": "with targets of mean 0 and standard deviation 1",
    "fitting_weights": "with initial weights of the size that their initializers should give",
    "all_scaled": "with inputs, targets and initial weights of usual size",
    "fresh_optimizer": "with an optimizer that begins from nothing",
    "larger_batch": "with batches eight times larger",
}
BACK = 1.1  # end over chance, or over its own start, up to which a run that no longer breaks is sound again
HALVED = 0.5  # end over that of the run as it is, where both are numbers
BEGINS, FASTER, LEAST_FALL = 0.05, 20.0, 1e-3  # relative fall of forty steps, and how many times that of a stall it is
NEAR = 2.0  # start over chance of a net whose weights have the usual size, and its inputs too
LEARNS = 0.9  # end over chance, or over its own start, below which a run learns
PROVEN, LIKELY, UNPROVEN = 0.95, 0.8, 0.6  # confidence: the variation mends the run; was not tried; does not mend it


def variation(trace: Trace, name: str) -> VariationResult | None:
    """Return the result of a variation, or None where it was not tried."""
    return (trace.probes.trial or TrialReading()).variations.get(name)


def mends(result: VariationResult | None, seen: Verdict) -> bool:
    """Say whether a variation is sound where the run as it is was not.

    Of a run that broke, ran away or ended far above chance, that it no longer does so in forty steps is enough; one
    that stood still must learn.
    """
    if result is None or result.start is None or result.end is None or result.fall is None:
        return False
    start, end, over = result.start, result.end, result.over_baseline
    if seen.unhealthy or seen.end_over_chance > 1.0 / HALVED:
        ended = end <= start + (BACK - 1.0) * abs(start) if over is None else over <= BACK
        better = seen.state == BROKEN or over is None or over <= HALVED * seen.end_over_chance
        return bool(ended and better)
    if seen.state == STALLED and result.fall > max(BEGINS, FASTER * max(seen.fall, LEAST_FALL)):
        return True
    if over is not None:
        return bool(over < LEARNS and end < start)
    return bool(start - end > (1.0 - LEARNS) * abs(start))


def beats(trace: Trace, seen: Verdict, *names: str) -> bool:
    """Say whether a variation gets to less than half of where the same steps as they are get."""
    as_it_is = (variation(trace, "as_it_is") or VariationResult()).end
    own = seen.end if as_it_is is None else as_it_is
    ends = [(variation(trace, name) or VariationResult()).end for name in names]
    return any(end is not None and own > 0 and end < HALVED * own for end in ends)


def starts_near(trace: Trace, seen: Verdict, *names: str) -> bool:
    """Say whether a net that begins far above chance and gets nowhere begins near it with one of these variations."""
    if seen.learnt or not seen.start_over_chance >= FAR_START:
        return False
    for result in (variation(trace, name) for name in names):
        if result is None or result.start is None or result.end is None or not result.over_baseline:
            continue
        chance = result.end / result.over_baseline
        if chance > 0 and result.start < min(NEAR * chance, seen.start / FAR_START):
            return True
    return False


def heals(trace: Trace, *names: str) -> bool:
    """Say whether one of these variations mends the run."""
    seen = verdict(trace)
    return any(mends(variation(trace, name), seen) for name in names)


def healing_rate(trace: Trace, *, lower: bool) -> float | None:
    """Return the factor of the learning rate, below or above 1, with which the run learns; the nearest to 1."""
    varied = (trace.probes.trial or TrialReading()).variations
    seen = verdict(trace)
    rates = {float(name[5:]): result for name, result in varied.items() if name.startswith("rate_")}
    factors = [factor for factor, result in rates.items() if mends(result, seen)]
    fitting = [factor for factor in factors if (factor < 1) == lower]
    return (max if lower else min)(fitting, default=None)


def confidence(trace: Trace, *names: str) -> float:
    """Return how sure a cause is, by what its variations did."""
    if heals(trace, *names) or starts_near(trace, verdict(trace), *names):
        return PROVEN
    return LIKELY if all(variation(trace, name) is None for name in names) else UNPROVEN


def varied_evidence(trace: Trace, *names: str) -> tuple[Evidence, ...]:
    """Return a sentence for each of these variations that was tried: what the same steps did then."""
    seen = verdict(trace)
    found = []
    for name in names:
        result = variation(trace, name)
        if result is None:
            continue
        words = WORDS.get(name) or f"at {float(name[5:]):g} times the learning rate"
        as_it_is = "breaks" if seen.state == BROKEN else f"goes from {say(seen.start)} to {say(seen.end)}"
        if result.end is None:
            then = "it breaks all the same" if seen.state == BROKEN else "it breaks"
        else:
            then = f"it goes from {say(result.start)} to {say(result.end)}"
        statement = f"As it is, the loss {as_it_is} in a short trial; {words}, {then}."
        found.append(Evidence(statement, result.end, seen.end if seen.end == seen.end else None, "this trial"))
    return tuple(found)
