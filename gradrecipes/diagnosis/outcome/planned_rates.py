"""What steps at the highest learning rate of the whole training did, where the trial did not reach it."""

from __future__ import annotations

import math

from gradrecipes.core.trace.trial_reading import PlannedRates, VariationResult
from gradrecipes.diagnosis.outcome.verdict import RISE, Verdict

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
    """Return what steps at the highest rate did where they ended no better than a constant answer, or broke."""
    result = None if rates is None else rates.at_highest
    if result is None or (not seen.end_over_baseline < UNLEARNED and not _diverges(result, seen)):
        return None
    return result if _diverges(result, seen) or (result.over_baseline or 0.0) >= UNLEARNED else None


def _diverges(result: VariationResult, seen: Verdict) -> bool:
    if result.broken is not None or result.end is None:
        return True
    return result.end - seen.start > (RISE - 1.0) * abs(seen.start)


def learned_at_highest(rates: PlannedRates | None) -> VariationResult | None:
    """Return what steps at the highest rate did, where they ended below the constant answer, or None.

    It counts only where the training is known to be so long: a schedule may name steps that nobody trains.
    """
    result = None if rates is None else rates.at_highest
    if rates is None or not rates.planned or result is None or result.end is None or result.over_baseline is None:
        return None
    return result if result.over_baseline < UNLEARNED else None
