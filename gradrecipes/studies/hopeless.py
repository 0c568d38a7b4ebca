"""Give up an arm on which further seeds would be wasted, and only then."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from gradrecipes.core.student import student_tail

LEAST = 3  # seeds, before anything is given up
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
    pairs = len(gains) * (len(gains) - 1) / 2
    looks = max(1, planned - LEAST + 1)
    for count in range(LEAST, planned + 1):
        seen = {arm: np.asarray(values[:count], float) for arm, values in gains.items() if len(values) >= count}
        alive = [arm for arm in seen if arm not in found]
        condemned = {}
        for arm, other in itertools.permutations(alive, 2):
            reason = _why(seen[arm], seen[other], other, FALSE_ALARMS / pairs / looks)
            if reason is not None and arm not in condemned:
                condemned[arm] = (count, reason)
        found |= condemned
    return found


def _why(mine: np.ndarray, theirs: np.ndarray, other: str, level: float) -> str | None:
    lost, sound = np.isnan(mine), ~np.isnan(theirs)
    if lost.all():
        return f"diverged with each of {len(mine)} seeds" if sound.all() else None
    both = ~lost & sound
    if both.sum() < LEAST or (np.isnan(theirs) & ~lost).any():
        return None
    differences = theirs[both] - mine[both]
    spread = max(np.std(values, ddof=1) for values in (differences, mine[both], theirs[both]))
    if spread == 0 or differences.mean() <= 0:
        return None
    p = 2 * student_tail(differences.mean() / spread * math.sqrt(len(differences)), len(differences) - 1)
    return f"far behind {other} after {len(mine)} seeds" if p <= level else None
