"""Numbers that stand for a missing value, such as -999."""

from __future__ import annotations

import numpy as np

REPEATED = 3  # times that a number has to occur to be a mark; fewer are outliers, ...
ALONE = 100.0  # ... unless they are as many times the range of all others away from these
MANY_VALUES = 20  # other values from which on they are measurements, not codes


def gap_marks(values: np.ndarray, *, alone: float = ALONE) -> tuple[float, ...]:
    """Return the least and the greatest of some numbers where they are further from all others than these differ.

    They have to occur several times, as no measurement does at such a distance, or be further off than any.

    Args:
        values: Real numbers, of any shape; those that are not finite are passed over.
        alone: How many times the range of all others they have to be away from these where they occur less often.

    Example:
        >>> gap_marks(np.array([*range(30), -999, -999, -999]))
        (-999.0,)
    """
    distinct, counts = np.unique(values[np.isfinite(values)].astype(np.float64), return_counts=True)
    if len(distinct) < MANY_VALUES + 2:
        return ()
    low, high = distinct[1], distinct[-2]
    found = []
    for place, gap in ((0, low - distinct[0]), (-1, distinct[-1] - high)):
        least = 1.0 if counts[place] >= REPEATED else alone
        if gap >= least * (high - low) > 0:
            found.append(float(distinct[place]))
    return tuple(found)
