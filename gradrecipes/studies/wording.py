"""The verdict of a study, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradrecipes.core.analysis.paired import smallest_p
from gradrecipes.studies.judge import LEVEL, ArmSummary, Comparison, seen_from
from gradrecipes.studies.objective import Objective
from gradrecipes.studies.table import interval, more_seeds, number


def verdict(
    summaries: Sequence[ArmSummary], comparisons: Sequence[Comparison], *, best: str | None, objective: Objective
) -> str:
    """Return what the runs so far say, one sentence a line.

    Args:
        summaries: How each arm did.
        comparisons: How any two of them compare.
        best: Name of the arm with the best mean rank; None before any run.
        objective: What is compared.
    """
    if best is None:
        return "No run has been made yet."
    lines = [_best(next(one for one in summaries if one.arm == best), objective)]
    for comparison in (seen_from(one, best) for one in comparisons if best in (one.one, one.other)):
        lines.append(_against(comparison))
    lines += [f"{one.arm}: no hope, {one.hopeless}." for one in summaries if one.hopeless is not None]
    lines += [_divergence(one) for one in summaries if one.diverged and one.hopeless is None]
    pairs = min((one.pairs for one in comparisons), default=0)
    if comparisons and smallest_p(pairs) > LEVEL / len(comparisons):
        lines.append(
            f"With {pairs} seeds nothing here can be beyond doubt: the exact test of {pairs} pairs cannot fall below "
            f"p = {smallest_p(pairs):.3g}, and for a level of {LEVEL:g} over {len(comparisons)} "
            f"comparison{'s' if len(comparisons) > 1 else ''} it has to reach {LEVEL / len(comparisons):.3g}."
        )
    return "\n".join(lines)


def _best(one: ArmSummary, objective: Objective) -> str:
    if math.isnan(one.mean):
        return f"Every run diverged; {one.arm} stands for all of them."
    where = f" (95% interval {interval(one.interval)})" if interval(one.interval) else ""
    return f"Best so far: {one.arm}, {objective.name} {number(one.mean)}{where} over {one.runs} seeds."


def _against(comparison: Comparison) -> str:
    told = f"{comparison.one} against {comparison.other}: {number(comparison.difference, sign=True) or 'no pair'}"
    if interval(comparison.interval):
        told += f" (95% interval {interval(comparison.interval)})"
    told += f", p = {comparison.adjusted_p:.3g} after Holm's correction: "
    return told + (
        f"{comparison.verdict}." if comparison.verdict != "undecided" else f"undecided, {more_seeds(comparison)}."
    )


def _divergence(one: ArmSummary) -> str:
    ends = f"{one.divergence.low:.0%} to {one.divergence.high:.0%}"
    return f"{one.arm}: {one.diverged} of {one.runs} runs diverged (95% interval of the share: {ends})."
