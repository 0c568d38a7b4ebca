"""What the runs of a study say: how each arm did, which is better, and how sure that is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradrecipes.core.analysis.intervals import Interval, bootstrap_interval, wilson_interval
from gradrecipes.core.analysis.paired import holm, seeds_needed, sign_flip_test
from gradrecipes.studies.hopeless import without_hope
from gradrecipes.studies.objective import Objective
from gradrecipes.studies.run import Run

LEVEL = 0.05  # chance that any two equal arms of a study are called different


@dataclass(frozen=True)
class ArmSummary:
    """How one arm did.

    Args:
        arm: Its name.
        values: The objective by seed; NaN where the run diverged.
        mean: Over the runs that did not diverge; NaN if all did.
        interval: Where the mean over all seeds lies, at 95%; None without a run that survived.
        diverged: Runs that diverged.
        divergence: Where the share of diverging runs lies, at 95%.
        seconds: Median wall time of a run.
        hopeless: Why it was given up, or would have been; or None.
    """

    arm: str
    values: dict[int, float]
    mean: float
    interval: Interval | None
    diverged: int
    divergence: Interval
    seconds: float
    hopeless: str | None = None

    @property
    def runs(self) -> int:
        """How many were run."""
        return len(self.values)


@dataclass(frozen=True)
class Comparison:
    """How two arms compare over the seeds that both were run with.

    Args:
        one: Name of the first arm.
        other: Name of the second arm.
        pairs: Seeds that both were run with.
        difference: Mean of the first minus that of the second over the seeds with which neither diverged; NaN if
            there are none.
        interval: Where that difference lies, at 95%, or None.
        p: Of the exact paired test, in which a run that diverged is worse than any that did not.
        adjusted_p: The same, for all comparisons of the study together.
        verdict: `"better"` or `"worse"`, of the first, or `"undecided"`.
        more_seeds: How many more of them would probably decide it; 0 if it is decided, None if nobody can tell or
            more than a thousand.
    """

    one: str
    other: str
    pairs: int
    difference: float
    interval: Interval | None
    p: float
    adjusted_p: float
    verdict: str
    more_seeds: int | None


def summarize(runs: Mapping[str, Sequence[Run]], objective: Objective, *, planned: int) -> list[ArmSummary]:
    """Return how each arm did, in the order in which they were given."""
    values = {arm: {run.seed: value_of(run, objective) for run in done} for arm, done in runs.items()}
    gains = {arm: [objective.gain(value, 0.0) for value in by_seed.values()] for arm, by_seed in values.items()}
    hopeless = without_hope(gains, planned=planned)
    summaries = []
    for arm, by_seed in values.items():
        finite = [value for value in by_seed.values() if math.isfinite(value)]
        diverged = len(by_seed) - len(finite)
        summaries.append(
            ArmSummary(
                arm,
                by_seed,
                mean=float(np.mean(finite)) if finite else math.nan,
                interval=bootstrap_interval(finite) if finite else None,
                diverged=diverged,
                divergence=wilson_interval(diverged, len(by_seed)),
                seconds=float(np.median([run.seconds for run in runs[arm]])) if by_seed else math.nan,
                hopeless=hopeless.get(arm),
            )
        )
    return summaries


def compare(summaries: Sequence[ArmSummary], objective: Objective) -> list[Comparison]:
    """Return the comparison of every two arms that have hope, adjusted for their number."""
    alive = [one for one in summaries if one.hopeless is None and one.runs]
    pairs = [pair for pair in itertools.combinations(alive, 2) if pair[0].values.keys() & pair[1].values.keys()]
    found = [_compare(one, other, objective, len(pairs)) for one, other in pairs]
    adjusted = holm([comparison.p for comparison in found])
    return [_judged(comparison, p) for comparison, p in zip(found, adjusted, strict=True)]


def leader(summaries: Sequence[ArmSummary], objective: Objective) -> str | None:
    """Return the arm with the best mean rank over the seeds, a diverged run being last; None without any run."""
    alive = [one for one in summaries if one.hopeless is None and one.runs] or [one for one in summaries if one.runs]
    if not alive:
        return None
    seeds = set.intersection(*(set(one.values) for one in alive)) or set(alive[0].values)

    def mean_rank(one: ArmSummary) -> tuple[float, float]:
        gains = [[_gain(each.values.get(seed, math.nan), objective) for each in alive] for seed in seeds]
        mine = [_gain(one.values.get(seed, math.nan), objective) for seed in seeds]
        better = [np.sum(np.array(row) > gain) for row, gain in zip(gains, mine, strict=True)]
        return float(np.mean(better)), -_gain(one.mean, objective)

    return min(alive, key=mean_rank).arm


def value_of(run: Run, objective: Objective) -> float:
    """Return the objective of a run, NaN if it diverged."""
    return math.nan if run.diverged else objective.of(run.history, run.test)


def seen_from(comparison: Comparison, arm: str) -> Comparison:
    """Return a comparison with that arm as the first."""
    if comparison.one == arm:
        return comparison
    interval = comparison.interval
    turned = {"better": "worse", "worse": "better"}
    return replace(
        comparison,
        one=comparison.other,
        other=comparison.one,
        difference=-comparison.difference,
        interval=None if interval is None else Interval(-interval.high, -interval.low, interval.level),
        verdict=turned.get(comparison.verdict, comparison.verdict),
    )


def _compare(one: ArmSummary, other: ArmSummary, objective: Objective, tests: int) -> Comparison:
    seeds = [seed for seed in one.values if seed in other.values]
    gains = []
    for seed in seeds:
        mine, theirs = _gain(one.values[seed], objective), _gain(other.values[seed], objective)
        gains.append(0.0 if mine == theirs else mine - theirs)  # both may have diverged
    both = [one.values[s] - other.values[s] for s, gain in zip(seeds, gains, strict=True) if math.isfinite(gain)]
    both = [difference for difference in both if math.isfinite(difference)]
    wanted = seeds_needed(gains, tests=tests, level=LEVEL)
    signed = np.sign(gains).sum() if not all(map(math.isfinite, gains)) else np.mean(gains)
    return Comparison(
        one.arm,
        other.arm,
        pairs=len(seeds),
        difference=float(np.mean(both)) if both else math.nan,
        interval=bootstrap_interval(both) if both else None,
        p=sign_flip_test(gains),
        adjusted_p=math.nan,
        verdict="better" if signed > 0 else "worse",
        more_seeds=None if wanted is None else max(1, wanted - len(seeds)),
    )


def _judged(comparison: Comparison, adjusted: float) -> Comparison:
    if adjusted <= LEVEL:
        return replace(comparison, adjusted_p=adjusted, more_seeds=0)
    return replace(comparison, adjusted_p=adjusted, verdict="undecided")


def _gain(value: float, objective: Objective) -> float:
    return objective.gain(value, 0.0) if math.isfinite(value) else -math.inf
