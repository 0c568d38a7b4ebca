"""Which setting of a search decides: how much of the outcome each one explains by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

FEWEST = 8  # trials that say anything
BINS = 4  # groups that the values of a number are cut into; more leave too few trials in each


def explained_share(values: Sequence[Any], outcome: Sequence[float], *, bins: int = BINS) -> float:
    """Return how much of an outcome's spread one setting explains by itself, 0 to 1, or NaN with too few trials.

    The trials are grouped by the setting, numbers into quarters of equal size, and the spread within groups is
    compared with that over all: the correlation ratio, adjusted for the number of groups, so that a setting without
    effect gets about 0 rather than something. Unlike a correlation it sees an optimum in the middle. What only two
    settings together explain it does not see.

    Args:
        values: The setting of each trial; None where it was not active.
        outcome: float `[trials]`.
        bins: Groups of a number.

    Example:
        >>> explained_share([1, 1, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 1, 1, 1, 1])
        1.0

    References:
        Kelley 1935, "An unbiased correlation ratio measure", PNAS 21(9).
    """
    outcomes = np.asarray(outcome, np.float64)
    groups = _groups(values, bins)
    count, kinds = len(outcomes), len(set(groups))
    total = float(np.square(outcomes - outcomes.mean()).sum()) if count else 0.0
    if count < FEWEST or count <= kinds or not total > 0:
        return math.nan
    if kinds == 1:
        return 0.0
    members = [outcomes[[group == one for group in groups]] for one in dict.fromkeys(groups)]
    within = sum(float(np.square(part - part.mean()).sum()) for part in members)
    return max(0.0, 1.0 - (within / (count - kinds)) / (total / (count - 1)))


def _groups(values: Sequence[Any], bins: int) -> list[Any]:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(set(numbers)) <= bins:
        return list(values)
    edges = np.quantile(numbers, np.linspace(0, 1, bins + 1)[1:-1])
    return [
        int(np.searchsorted(edges, value, side="right"))
        if isinstance(value, int | float) and not isinstance(value, bool)
        else value
        for value in values
    ]
