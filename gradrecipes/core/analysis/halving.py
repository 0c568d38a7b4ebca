"""When a trial is hopeless beside those before it: not among the better ones each time its cost doubles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST_TRIALS = 3  # earlier trials that a verdict must rest on
KEPT = 0.4  # share of the earlier trials among which a trial has to be


def is_hopeless(values: Sequence[float], earlier: Sequence[Sequence[float]], *, maximize: bool) -> bool:
    """Say whether a trial's best value so far is not among the best two in five of those that got so far.

    That is asked after 1, 2, 4, 8, ... epochs, and never in between: so each doubling of what a trial costs has to be
    earned. This is successive halving, without waiting for the others.

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
    length = len(values)
    if not length or length & (length - 1):
        return False
    reached = [_best(curve[:length], maximize) for curve in earlier if len(curve) >= length]
    return len(reached) >= FEWEST_TRIALS and bool(_best(values, maximize) > np.quantile(reached, KEPT))


def _best(values: Sequence[float], maximize: bool) -> float:
    finite = [-value if maximize else value for value in values if np.isfinite(value)]
    return min(finite, default=np.inf)
