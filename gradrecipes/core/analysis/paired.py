"""Tests of two ways of training by runs that share their seeds, and what several such tests are worth together."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np

ENUMERATED_AT_MOST = 14  # pairs: 16,384 patterns of signs; beyond that they are drawn
PATTERNS = 20_000  # drawn; a p of 0.05 then has a standard error of 0.0015
SAME = 1e-12  # relative difference below which two sums are the same one, summed in another order
SEEDS_AT_MOST = 1000  # beyond it the answer is "too many"


def sign_flip_test(differences: Sequence[float], *, seed: int = 0) -> float:
    """Return how often chance alone makes a mean difference at least this far from zero, two-sided.

    If two ways of training are equal, each difference between paired runs might as well have the other sign. All
    patterns of signs are counted, so the result is exact for few seeds and assumes no distribution: for that reason
    it cannot fall below 2/2^n (`smallest_p`), however clear the case. A run that diverged where the other did not
    makes an infinite difference: then the differences are replaced by their signed ranks, which makes it Wilcoxon's
    test.

    Args:
        differences: float `[n]`, one for each seed: the outcome of the one minus that of the other; ±inf where only
            one of them diverged, 0 where both did.
        seed: Of the patterns, which are drawn when there are more than fourteen differences.

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
        n_resamples=2**ENUMERATED_AT_MOST if len(values) <= ENUMERATED_AT_MOST else PATTERNS,
        vectorized=True,
        rng=np.random.default_rng(seed),
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


def seeds_needed(
    differences: Sequence[float], *, tests: int = 1, level: float = 0.05, power: float = 0.8
) -> int | None:
    """Return with how many seeds `sign_flip_test` would decide, if the difference is what it has been so far.

    Args:
        differences: float `[n]`, as for `sign_flip_test`.
        tests: How many are looked at together.
        level: Chance of a false alarm in any of them.
        power: Chance to decide, between `level` and 1.

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
    reach = float(norm.ppf(power))

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
