"""When a trial is hopeless beside those before it: not among the better half, or too far behind to catch up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST_TRIALS = 3  # earlier trials that a verdict must rest on


def is_hopeless(values: Sequence[float], earlier: Sequence[Sequence[float]], *, maximize: bool) -> bool:
    """Say whether a trial's best value so far is worse than the median by then, or out of reach of the best trial.

    The median is asked for after 1, 2, 4, 8, ... epochs, and never in between: so each doubling of what a trial costs
    has to be earned by being among the better half of those that got so far. This is successive halving, without
    waiting for the others. And after every epoch: a trial that would not reach the best value there is, though it
    gained from here on as much as the one of the earlier trials that gained most, can go.

    Args:
        values: The objective after each epoch of the trial.
        earlier: The same of trials that did not fail, of any length.
        maximize: Whether more is better.

    Example:
        >>> is_hopeless([2.3, 2.3], [[1.0, 0.5], [1.2, 0.4], [2.0, 1.8]], maximize=False)
        True

    References:
        Li et al. 2020, "A system for massively parallel hyperparameter tuning", arXiv 1810.05934; the median rule of
        Golovin et al. 2017, "Google Vizier: a service for black-box optimization", section 3.2.1.
    """
    length, best = len(values), _best(values, maximize)
    if not length:
        return False
    reached = [_best(curve[:length], maximize) for curve in earlier if len(curve) >= length]
    if not length & (length - 1) and len(reached) >= FEWEST_TRIALS and best > np.median(reached):
        return True
    longer = [curve for curve in earlier if len(curve) > length]
    if len(longer) < FEWEST_TRIALS:
        return False
    ends = [_best(curve, maximize) for curve in longer]
    gains = [_best(curve[:length], maximize) - end for curve, end in zip(longer, ends, strict=True)]
    return bool(best - max(gains) > min(ends))


def _best(values: Sequence[float], maximize: bool) -> float:
    finite = [-value if maximize else value for value in values if np.isfinite(value)]
    return min(finite, default=np.inf)
