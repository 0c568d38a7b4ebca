"""The results of a study as a table, for the eye and for other programs."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradrecipes.core.analysis.intervals import Interval
from gradrecipes.studies.arm import Objective
from gradrecipes.studies.judge import ArmSummary, Comparison, seen_from

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
