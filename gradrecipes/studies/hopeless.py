"""Give up an arm on which further seeds would be wasted, and only then."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import t as student

LEAST = 3  # seeds, before anything is given up
SAME = 1e-9  # of the largest difference: a spread below it is rounding
FALSE_ALARMS = 0.01  # chance that a study gives up any arm as behind another though they are equal


def hopeless_arms(gains: Mapping[str, Sequence[float]], *, planned: int) -> dict[str, tuple[int, str]]:
    """Return the arms that have no hope, each with the number of seeds after which that was clear, and why.

    An arm is given up when it has diverged with every seed so far, at least three, while another never did; or
    when another is so far ahead that Student's paired test says so at a level of 1%, shared out over all pairs of
    arms and all looks. The spread it is held against is not only that of the differences but at least that of
    either arm, so that a coarse metric, whose differences happen to be equal, condemns nobody.

    Args:
        gains: For each arm float `[seeds so far]`, larger is better; NaN where the run diverged. Where an arm was
            given up, its list may be shorter.
        planned: Seeds that the study was to run.

    Example:
        >>> nan = float("nan")
        >>> hopeless_arms({"fast": [nan, nan, nan], "slow": [0.7, 0.8, 0.7]}, planned=5)
        {'fast': (3, 'diverged with each of 3 seeds')}
    """
    found: dict[str, tuple[int, str]] = {}
    for count in range(LEAST, planned + 1):
        seen = {arm: values for arm, values in gains.items() if len(values) >= count and arm not in found}
        found |= {arm: (count, why) for arm, why in _condemned(seen, count, len(gains), planned).items()}
    return found


def without_hope(gains: Mapping[str, Sequence[float]], *, planned: int) -> dict[str, str]:
    """Return the arms that all runs together leave without hope, and why.

    Of an arm that was given up, that is what was clear then. An arm that ran with every seed all the same is judged by
    all of them: a lead after four seeds may be gone by the eighth.

    Args:
        gains: As for `hopeless_arms`.
        planned: Seeds that the study was to run.
    """
    whole = {arm: values for arm, values in gains.items() if len(values) >= planned}
    given_up = hopeless_arms(gains, planned=planned)
    early = {arm: why for arm, (_, why) in given_up.items() if arm not in whole}
    return early | (_condemned(whole, planned, len(gains), planned) if planned >= LEAST else {})


def _condemned(gains: Mapping[str, Sequence[float]], count: int, arms: int, planned: int) -> dict[str, str]:
    """Return the arms that the first `count` seeds leave without hope."""
    seen = {arm: np.asarray(values[:count], float) for arm, values in gains.items()}
    level = FALSE_ALARMS / max(1, arms * (arms - 1) // 2) / max(1, planned - LEAST + 1)
    found: dict[str, str] = {}
    for arm, other in itertools.permutations(seen, 2):
        reason = None if arm in found else _why(seen[arm], seen[other], other, level)
        if reason is not None:
            found[arm] = reason
    return found


def _why(mine: np.ndarray, theirs: np.ndarray, other: str, level: float) -> str | None:
    diverged, finite = np.isnan(mine), ~np.isnan(theirs)
    if diverged.all():
        return f"diverged with each of {len(mine)} seeds" if finite.all() else None
    both = ~diverged & finite
    if both.sum() < LEAST or (np.isnan(theirs) & ~diverged).any():
        return None
    differences = theirs[both] - mine[both]
    spread = max(np.std(values, ddof=1) for values in (differences, mine[both], theirs[both]))
    if spread <= SAME * np.abs(differences).max() or differences.mean() <= 0:
        return None
    p = 2 * student.sf(differences.mean() / spread * math.sqrt(len(differences)), len(differences) - 1)
    return f"far behind {other} after {len(mine)} seeds" if p <= level else None
