"""Intervals for means of a few runs and for shares of them: how sure a handful of seeds can make one."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ENUMERATED_AT_MOST = 8  # values: 6,435 different resamples; beyond that they are drawn
RESAMPLES = 20_000  # drawn; the ends of a 95% interval then move by less than 2% of its width from seed to seed


@dataclass(frozen=True)
class Interval:
    """What a value may be, as far as the data tell.

    Args:
        low: Lower end; -inf where the data set none.
        high: Upper end.
        level: Share of such intervals that hold the true value, between 0 and 1.
    """

    low: float
    high: float
    level: float = 0.95

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def width(self) -> float:
        """The distance from end to end."""
        return self.high - self.low


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, expanded: bool = True, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Say where the mean of all seeds lies, from the few that were run, without assuming a distribution.

    The percentiles of the means of resamples. Taken as they are they are too narrow for a few values: five normal
    ones hold the truth in 83% of the cases, not in 95%, and the bias-corrected bootstrap is no better. So they are
    taken further out, by the factor that separates Student's t with the unbiased variance from the normal
    distribution with the biased one:

        tail = Φ(-√(n / (n - 1)) · t(n - 1))

    Up to eight values every resample is counted; for more, `resamples` are drawn.

    Args:
        values: float `[n]`, finite.
        level: Share of intervals that shall hold the mean, between 0 and 1.
        expanded: Whether to take the percentiles further out; False for the plain percentile bootstrap.
        resamples: How many are drawn, where not all are counted.
        seed: Of the draws.

    Returns:
        The interval; without ends for a single value.

    Raises:
        ValueError: No values, values that are not finite, or a level out of range.

    Example:
        >>> interval = bootstrap_interval([0.91, 0.93, 0.92, 0.95, 0.94])
        >>> round(interval.low, 3), round(interval.high, 3)
        (0.912, 0.948)

    References:
        Efron 1979, Bootstrap methods: another look at the jackknife. Hesterberg 2015, What teachers should know
        about the bootstrap, arXiv 1411.5279, section 5.3: the expanded percentiles.
    """
    from scipy.stats import norm, t  # its bootstrap draws resamples, and has no expanded percentiles

    known = _finite(values)
    _check_level(level)
    count = len(known)
    if count == 1:
        return Interval(-math.inf, math.inf, level)
    tail = (1 - level) / 2
    if expanded:
        reach = math.sqrt(count / (count - 1)) * t.ppf(1 - tail, count - 1)
        tail = float(norm.cdf(-reach))
    if count <= ENUMERATED_AT_MOST:
        chosen, weights = _all_resamples(count)
        means = known[chosen].mean(1)
    else:
        drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
        means, weights = known[drawn].mean(1), np.full(resamples, 1.0 / resamples)
    order = np.argsort(means, kind="stable")
    means, below = means[order], np.cumsum(weights[order])
    low = means[min(np.searchsorted(below, tail), len(means) - 1)]
    high = means[min(np.searchsorted(below, 1 - tail), len(means) - 1)]
    return Interval(float(low), float(high), level)


def wilson_interval(events: int, count: int, *, level: float = 0.95) -> Interval:
    """Say what share of all seeds would diverge, when `events` of `count` did.

    Unlike the share ± its standard error it keeps within 0 and 1, and does not shrink to a point at none or all.

    Args:
        events: How many did.
        count: How many were run.
        level: Share of intervals that shall hold the true share.

    Raises:
        ValueError: Counts or a level out of range.

    Example:
        >>> interval = wilson_interval(0, 5)
        >>> round(interval.low, 2), round(interval.high, 2)
        (0.0, 0.43)

    References:
        Wilson 1927, Probable inference. Brown, Cai, DasGupta 2001, Interval estimation for a binomial proportion.
    """
    _check_level(level)
    if not 0 <= events <= count:
        raise ValueError(f"Of `count` runs `events` had it. Received: events={events!r}, count={count!r}.")
    if count == 0:
        return Interval(0.0, 1.0, level)
    from scipy.stats import binomtest

    found = binomtest(events, count).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high), level)


@functools.cache
def _all_resamples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places that each different resample takes its values from, and its probability."""
    chosen = np.array(list(itertools.combinations_with_replacement(range(count), count)))
    times = (chosen[:, :, None] == np.arange(count)).sum(1)  # [resamples, values]
    factorial = np.array([math.factorial(number) for number in range(count + 1)])
    return chosen, factorial[count] / factorial[times].prod(1) / float(count) ** count


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(
            f"`values` must be one or more finite numbers. Received: {array.tolist()!r}. "
            "Count runs that diverged apart from the others."
        )
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1. Received: level={level!r}. 0.95 is usual.")
