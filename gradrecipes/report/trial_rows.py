"""What a diagnosis tried, in rows: the run as it is, then the same steps with one thing changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import OutputTrial, VariationResult
from gradrecipes.core.trace.variation import variation_of
from gradrecipes.diagnosis.outcome.variation_facts import fixes
from gradrecipes.diagnosis.outcome.verdict import BROKEN, verdict
from gradrecipes.report.wording import number


@dataclass(frozen=True)
class TrialRow:
    """One run of a trial.

    Args:
        name: What was changed; "as it is" for nothing.
        start: Median loss of the first pass, for people.
        end: Median loss of the last one.
        over_baseline: End over the loss of the best constant guess.
        outcome: What came of it, in words.
        fixes: Whether it fixes what was wrong with the run as it is.
    """

    name: str
    start: str
    end: str
    over_baseline: str
    outcome: str
    fixes: bool


def trial_rows(trace: Trace) -> list[TrialRow]:
    """Return a row for the run as it is and one for each variation; none where nothing was tried."""
    trial = trace.probes.trial
    if trial is None or not trial.steps:
        return []
    seen = verdict(trace)
    ended = seen.state == BROKEN and trial.broken is not None
    as_it_is = TrialRow(
        "as it is",
        number(_known(seen.start)),
        "–" if ended else number(_known(seen.end)),
        "–" if ended else number(_known(seen.end_over_baseline)),
        f"breaks at step {trial.broken}" if ended else seen.state,
        False,
    )
    return [as_it_is, *(_row(name, one, seen, trial.outputs) for name, one in trial.variations.items())]


def _row(name: str, result: VariationResult, seen: Any, outputs: tuple[OutputTrial, ...]) -> TrialRow:
    if result.outputs_learned is not None:
        before, count = sum(one.learned for one in outputs), len(outputs)
        words = f"{result.outputs_learned} of {count} outputs {'learns' if result.outputs_learned == 1 else 'learn'}"
        mended = result.outputs_learned > before
        return TrialRow(variation_of(name).label, "–", "–", "–", words, mended)
    if result.end is None:
        where = "" if result.broken is None else f" at step {result.broken}"
        return TrialRow(variation_of(name).label, "–", "–", "–", f"breaks{where}", False)
    mended = fixes(result, seen)
    return TrialRow(
        variation_of(name).label,
        number(result.start),
        number(result.end),
        number(result.over_baseline),
        "fixes it" if mended else "does not fix it",
        mended,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
