"""Student's t: how far a mean of a few runs strays when its spread is estimated from the same few."""

from __future__ import annotations

import math

ENOUGH = 200  # halvings of an interval; a float64 is exhausted before


def student_tail(t: float, freedom: int) -> float:
    """Return the probability that Student's t lies above a value.

    Args:
        t: The value; may be infinite.
        freedom: Degrees of freedom, at least 1.

    Raises:
        ValueError: No degree of freedom.

    Example:
        >>> round(student_tail(2.776, 4), 4)
        0.025

    References:
        Abramowitz and Stegun, 26.7.3 and 26.7.4: the finite series for whole degrees of freedom.
    """
    if freedom < 1:
        raise ValueError(f"`freedom` must be at least 1. Received: freedom={freedom!r}. Two values leave one.")
    if math.isnan(t):
        return math.nan
    if t < 0:
        return 1.0 - student_tail(-t, freedom)
    angle = math.atan2(math.sqrt(freedom), t)  # from the far end: cos and sin of the textbook's angle change places
    term = math.cos(angle) * math.sin(angle) if freedom % 2 else math.cos(angle)
    square, total = math.sin(angle) ** 2, 0.0
    for index in range(3 if freedom % 2 else 2, freedom + 2, 2):
        total += term
        term *= square * (index - 1) / index
    within = 2 / math.pi * (math.pi / 2 - angle + total) if freedom % 2 else total
    return max(0.0, (1.0 - within) / 2)


def student_quantile(probability: float, freedom: int) -> float:
    """Return the value that Student's t stays below with a probability.

    Args:
        probability: Between 0 and 1.
        freedom: Degrees of freedom, at least 1.

    Raises:
        ValueError: A probability of 0 or 1, or no degree of freedom.

    Example:
        >>> round(student_quantile(0.975, 4), 3)
        2.776
    """
    if not 0 < probability < 1:
        raise ValueError(f"`probability` must lie between 0 and 1. Received: probability={probability!r}.")
    if probability < 0.5:
        return -student_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > 1 - probability and high < 1e300:
        low, high = high, 2 * high
    for _ in range(ENOUGH):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if student_tail(middle, freedom) > 1 - probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2
