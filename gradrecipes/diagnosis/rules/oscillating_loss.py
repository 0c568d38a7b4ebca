"""oscillating_loss: the loss jumps up and down by its own size and gets nowhere.

## What it does
Fires where the last losses vary by more than their median, three times as much as the first ones, and their median is
no lower than at the start.

## Why it is bad
Each step overshoots, or the batches contradict each other: no progress lasts.

## Example
A learning rate just above what the curvature allows; batches of two samples.

## Remedy
This is a symptom: treat the cause if one is named; otherwise a lower rate or larger batches.

## References
- McCandlish et al., arXiv 1812.06162: noise and batch size.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.outcome import OSCILLATING, verdict
from gradrecipes.diagnosis.prescriptions import set_learning_rate
from gradrecipes.diagnosis.registry import rule


@rule(
    code="oscillating_loss",
    kind=Kind.SYMPTOM,
    title="The loss jumps up and down and gets nowhere",
    order=260,
    needs_cause=True,
)
def oscillating_loss(trace: Trace) -> Finding | None:
    """Tell whether the loss jumps up and down and gets nowhere."""
    seen = verdict(trace)
    if seen.state != OSCILLATING:
        return None
    statement = (
        f"The median loss was {rounded(seen.start)} at the start and is {rounded(seen.end)} at the end, and the last "
        "losses vary by more than that."
    )
    return Finding(
        code="oscillating_loss",
        title="The loss jumps up and down and gets nowhere",
        kind=Kind.SYMPTOM,
        severity=Severity.WARNING,
        confidence=0.8,
        explanation=f"{statement} Each step overshoots, or the batches contradict each other.",
        evidence=(Evidence(statement, seen.end, seen.start, "this run"),),
        prescriptions=(set_learning_rate(trace, 0.1, "Shorter steps do not overshoot."),),
    )
