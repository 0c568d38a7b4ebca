"""What steps at the highest rate of a schedule showed: whether the training diverges there, forgets, or learns."""

from __future__ import annotations

import math

from gradrecipes.core.trace.trial_reading import PlannedRates, VariationResult
from gradrecipes.diagnosis.outcome import DIVERGING_RISE, Verdict

UNLEARNED_END = 0.9  # end over the baseline from which a net has forgotten what it learned
SLOW_RISE, SLOWEST_RISE = 300, 1200  # steps of a slow rise of the rate: for a loss that diverges, a net that forgets


def lost_at_highest(rates: PlannedRates | None, seen: Verdict) -> bool:
    """Return whether the training diverges at the highest rate of the schedule, however slowly the rate rises.

    A loss that breaks, or ends at twice that of the untrained net, counts where the rate was raised over 300 steps. A
    net that forgets what it learned may need a longer warm-up: it counts where the rate was raised over 1,200. Where
    the schedule itself rises in fewer steps, these suffice.

    Args:
        rates: The planned rates, with the result of steps at the highest.
        seen: The verdict on the trial at its own rates.
    """
    if rates is None or rates.at_highest is None:
        return False
    over = math.inf if rates.in_full else rates.raised_over or 0
    if _diverges(rates.at_highest, seen):
        return over >= SLOW_RISE
    return over >= SLOWEST_RISE and unlearned_at_highest(rates, seen) is not None


def unlearned_at_highest(rates: PlannedRates | None, seen: Verdict) -> VariationResult | None:
    """Return the result of steps at the highest rate if they broke or ended no better than a constant prediction."""
    result = None if rates is None else rates.at_highest
    if result is None or (not seen.end_over_baseline < UNLEARNED_END and not _diverges(result, seen)):
        return None
    return result if _diverges(result, seen) or (result.over_baseline or 0.0) >= UNLEARNED_END else None


def _diverges(result: VariationResult, seen: Verdict) -> bool:
    if result.broken is not None or result.end is None:
        return True
    return result.end - seen.start > (DIVERGING_RISE - 1.0) * abs(seen.start)


def learned_at_highest(rates: PlannedRates | None) -> VariationResult | None:
    """Return the result of steps at the highest rate if they ended below the constant prediction, else None.

    It counts only where the length of the training is known: a schedule may name steps that are never run.
    """
    result = None if rates is None else rates.at_highest
    if rates is None or not rates.planned or result is None or result.end is None or result.over_baseline is None:
        return None
    return result if result.over_baseline < UNLEARNED_END else None
