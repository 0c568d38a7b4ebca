"""When a trial is hopeless beside those before it: the median stopping rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST_TRIALS = 3  # earlier trials that the median must rest on
FEWEST_VALUES = 2  # values of the trial itself: the first says more of the start than of the settings


def is_hopeless(values: Sequence[float], earlier: Sequence[Sequence[float]], *, maximize: bool) -> bool:
    """Say whether a trial's best value so far is worse than the median of what earlier trials had on average by then.

    Args:
        values: The objective after each epoch of the trial.
        earlier: The same of trials that did not fail, of any length.
        maximize: Whether more is better.

    Example:
        >>> is_hopeless([2.3, 2.3], [[1.0, 0.5], [1.2, 0.4], [2.0, 1.8]], maximize=False)
        True

    References:
        Golovin et al. 2017, "Google Vizier: a service for black-box optimization", section 3.2.1.
    """
    length = len(values)
    reached = [curve[:length] for curve in earlier if len(curve) >= length]
    if length < FEWEST_VALUES or len(reached) < FEWEST_TRIALS:
        return False
    sign = -1.0 if maximize else 1.0
    best = np.nanmin(sign * np.asarray(values, np.float64)) if np.isfinite(values).any() else np.inf
    averages = [float(np.mean(sign * np.asarray(curve, np.float64))) for curve in reached]
    return bool(best > np.median(averages))
