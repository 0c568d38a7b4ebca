"""Intervals and paired tests for a few runs: how sure a handful of seeds can make one."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_ENUMERATED_VALUES = 8  # values: 6,435 different resamples; beyond that they are drawn
LEVEL = 0.95  # share of intervals that hold the true value
POWER = 0.8  # chance to decide, of a number of seeds that is called enough
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
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def width(self) -> float:
        """The distance from end to end."""
        return self.high - self.low


def bootstrap_interval(values: Sequence[float]) -> Interval:
    """Say where the mean of all seeds lies, from the few that were run, without assuming a distribution.

    The percentiles of the means of resamples. Taken as they are they are too narrow for a few values: five normal
    ones hold the truth in 83% of the cases, not in 95%, and the bias-corrected bootstrap is no better. So they are
    taken further out, by the factor that separates Student's t with the unbiased variance from the normal
    distribution with the biased one:

        tail = Φ(-√(n / (n - 1)) · t(n - 1))

    Up to eight values every resample is counted; for more, `RESAMPLES` are drawn, always the same.

    Args:
        values: float `[n]`, finite.

    Returns:
        The interval; without ends for a single value.

    Raises:
        ValueError: No values, or values that are not finite.

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
    count = len(known)
    if count == 1:
        return Interval(-math.inf, math.inf)
    reach = math.sqrt(count / (count - 1)) * t.ppf((1 + LEVEL) / 2, count - 1)
    tail = float(norm.cdf(-reach))
    if count <= MAX_ENUMERATED_VALUES:
        chosen, weights = _all_resamples(count)
        means = known[chosen].mean(1)
    else:
        drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
        means, weights = known[drawn].mean(1), np.full(RESAMPLES, 1.0 / RESAMPLES)
    order = np.argsort(means, kind="stable")
    means, below = means[order], np.cumsum(weights[order])
    low = means[min(np.searchsorted(below, tail), len(means) - 1)]
    high = means[min(np.searchsorted(below, 1 - tail), len(means) - 1)]
    return Interval(float(low), float(high))


def wilson_interval(events: int, count: int) -> Interval:
    """Say what share of all seeds would diverge, when `events` of `count` did.

    Unlike the share ± its standard error it keeps within 0 and 1, and does not shrink to a point at none or all.

    Args:
        events: How many did.
        count: How many were run.

    Raises:
        ValueError: Counts out of range.

    Example:
        >>> interval = wilson_interval(0, 5)
        >>> round(interval.low, 2), round(interval.high, 2)
        (0.0, 0.43)

    References:
        Wilson 1927, Probable inference. Brown, Cai, DasGupta 2001, Interval estimation for a binomial proportion.
    """
    if not 0 <= events <= count:
        raise ValueError(f"Of `count` runs `events` had it. Received: events={events!r}, count={count!r}.")
    if count == 0:
        return Interval(0.0, 1.0)
    from scipy.stats import binomtest

    found = binomtest(events, count).proportion_ci(LEVEL, method="wilson")
    return Interval(float(found.low), float(found.high))


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


MAX_ENUMERATED_PAIRS = 14  # pairs: 16,384 patterns of signs; beyond that they are drawn
PATTERNS = 20_000  # drawn; a p of 0.05 then has a standard error of 0.0015
SAME = 1e-12  # relative difference below which two sums are the same one, summed in another order
SEEDS_AT_MOST = 1000  # beyond it the answer is "too many"


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return how often chance alone makes a mean difference at least this far from zero, two-sided.

    If two ways of training are equal, each difference between paired runs might as well have the other sign. All
    patterns of signs are counted (of more than fourteen differences some are drawn, always the same), so the result is
    exact for few seeds and assumes no distribution: for that reason it cannot fall below 2/2^n (`smallest_p`), however
    clear the case. A run that diverged where the other did not makes an infinite difference: then the differences are
    replaced by their signed ranks, which makes it Wilcoxon's test.

    Args:
        differences: float `[n]`, one for each seed: the outcome of the one minus that of the other; ±inf where only
            one of them diverged, 0 where both did.

    Raises:
        ValueError: No differences, or NaN among them.

    Example:
        >>> sign_flip_test([0.02, 0.03, 0.01, 0.04, 0.02])
        0.0625

    References:
        Fisher 1935, The design of experiments, section 21. Wilcoxon 1945, Individual comparisons by ranking methods.
    """
    from scipy.stats import permutation_test

    values = _scores(differences)
    if len(values) == 1:
        return 1.0  # scipy asks for two
    unit = SAME * np.abs(values).sum() or 1.0  # scipy's own tolerance vanishes with the sum that was observed
    test = permutation_test(
        (values,),
        lambda part, axis: np.round(np.sum(part, axis=axis) / unit),
        permutation_type="samples",
        n_resamples=2**MAX_ENUMERATED_PAIRS if len(values) <= MAX_ENUMERATED_PAIRS else PATTERNS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def smallest_p(count: int) -> float:
    """Return the least that `sign_flip_test` can give for so many pairs.

    Example:
        >>> smallest_p(5), smallest_p(8)
        (0.0625, 0.0078125)
    """
    return min(1.0, 2.0 ** (1 - count))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values as they are to be read when all of the tests are looked at together.

    The chance that any of them is below the level by chance alone then stays below the level, whatever depends on
    what.

    scipy has the adjustment of Benjamini and Hochberg, but not this one.

    Args:
        p_values: float `[tests]`.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    References:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def seeds_needed(differences: Sequence[float], *, tests: int = 1, level: float = 0.05) -> int | None:
    """Return with how many seeds `sign_flip_test` would decide, if the difference is what it has been so far.

    Args:
        differences: float `[n]`, as for `sign_flip_test`.
        tests: How many are looked at together.
        level: Chance of a false alarm in any of them.

    Returns:
        The whole number of seeds, or None where more than a thousand would be needed, or where nothing is known.

    Example:
        >>> seeds_needed([0.02, 0.03, 0.01, 0.04, 0.02])
        6
        >>> seeds_needed([0.02, -0.03, 0.01, -0.01, 0.02]) > 100
        True
    """
    from scipy.stats import norm, t

    values = _scores(differences)
    least = 1 + math.ceil(math.log2(tests / level) - 1e-9)  # 2 / 2^n <= level / tests
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    mean = abs(values.mean())
    if len(values) < 2 or mean == 0:
        return None
    if spread <= SAME * mean:
        return least
    reach = float(norm.ppf(POWER))

    def decides(count: int) -> bool:
        return mean / spread * math.sqrt(count) >= t.ppf(1 - level / tests / 2, count - 1) + reach

    counts = range(max(2, least), SEEDS_AT_MOST + 1)
    place = bisect.bisect_left(counts, True, key=decides)
    return counts[place] if place < len(counts) else None


def _scores(differences: Sequence[float]) -> np.ndarray:
    """Return the differences, or their signed ranks if any is infinite."""
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ValueError(
            f"`differences` must be one or more numbers. Received: {values.tolist()!r}. "
            "Where only one of a pair diverged the difference is infinite, where both did it is 0."
        )
    if np.isfinite(values).all():
        return values
    from scipy.stats import rankdata

    return np.sign(values) * rankdata(np.abs(values))
