"""What the runs of a study say: how each arm did, which is better, and how sure that is."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from gradrecipes.core.analysis.intervals import (
    Interval,
    bootstrap_interval,
    holm,
    seeds_needed,
    sign_flip_test,
    wilson_interval,
)
from gradrecipes.studies.arm import Objective, Run

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


HEADINGS = ("arm", "runs", "diverged", "mean", "95% interval", "against the best", "p", "verdict", "s/run")
MANY = 1000  # seeds; more are not counted


@dataclass(frozen=True)
class StudyTable:
    """Hold one row for each arm; `print` it, show it in a notebook, or take `rows`.

    Args:
        rows: For each arm a dictionary with the keys of `HEADINGS`: texts and numbers.
        title: What is compared.
    """

    rows: list[dict[str, Any]]
    title: str

    @classmethod
    def of(
        cls, summaries: Sequence[ArmSummary], comparisons: Sequence[Comparison], *, best: str | None, what: Objective
    ) -> StudyTable:
        """Return the table of a study."""
        rows = []
        for one in summaries:
            pair = next((c for c in comparisons if {c.one, c.other} == {one.arm, best}), None)
            pair = None if pair is None else seen_from(pair, one.arm)
            rows.append(
                {
                    "arm": one.arm,
                    "runs": one.runs,
                    "diverged": one.diverged,
                    "mean": number(one.mean),
                    "95% interval": interval(one.interval),
                    "against the best": "" if pair is None else number(pair.difference, sign=True),
                    "p": "" if pair is None else f"{pair.adjusted_p:.3g}",
                    "verdict": _verdict(one, pair, best),
                    "s/run": number(one.seconds),
                }
            )
        order = "larger is better" if what.direction == "max" else "smaller is better"
        return cls(rows, f"{what.name} ({what.epoch} epoch, {order})" if rows else "no arms")

    def __str__(self) -> str:
        cells = [list(HEADINGS), *([str(row[name]) for name in HEADINGS] for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([self.title, lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADINGS)
        body = ["".join(f"<td>{html.escape(str(row[name]))}</td>" for name in HEADINGS) for row in self.rows]
        rows = "".join(f"<tr>{cells}</tr>" for cells in body)
        return f"<table><caption>{html.escape(self.title)}</caption><tr>{head}</tr>{rows}</table>"


def more_seeds(comparison: Comparison) -> str:
    """Return in words what an undecided comparison still needs."""
    if comparison.more_seeds is None:
        return f"not to be told apart with {MANY} seeds"
    return f"about {comparison.more_seeds} more seed{'s' if comparison.more_seeds > 1 else ''} needed"


def number(value: float, *, sign: bool = False) -> str:
    """Return a number for a cell; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:{'+' if sign else ''}.4g}"


def interval(value: Interval | None) -> str:
    """Return an interval for a cell; nothing for none, or for one without ends."""
    if value is None or not math.isfinite(value.low):
        return ""
    return f"{value.low:.4g} to {value.high:.4g}"


def _verdict(one: ArmSummary, pair: Comparison | None, best: str | None) -> str:
    if one.hopeless is not None:
        return f"no hope: {one.hopeless}"
    if one.arm == best:
        return "best so far"
    if pair is None:
        return ""
    return pair.verdict if pair.verdict != "undecided" else f"undecided: {more_seeds(pair)}"
