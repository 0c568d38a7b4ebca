"""diverging_loss: the loss is finite, but climbs above its start.

## What it does
Fires where the loss at the end is more than twice that at the start, and higher than its noise explains. A bump from
which the run recovers does not count.

## Why it is bad
Every step makes the net worse, the weights saved since then are useless, and in the end the loss is infinite.

## Example
SGD at a rate of 10; targets in the thousands under a squared loss and SGD.

## Remedy
This is a symptom: treat the cause. Until then a `GradientGuard` restores healthy weights and lowers the learning rate.

## References
- Cohen et al., arXiv 2103.00065: beyond the edge of stability the loss climbs.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.readings import place, rounded
from gradrecipes.diagnosis.outcome import DIVERGING, verdict
from gradrecipes.diagnosis.prescriptions.prescribe import prescription
from gradrecipes.diagnosis.registry import rule


@rule(
    code="diverging_loss",
    kind=Kind.SYMPTOM,
    title="The loss climbs away from where it began",
    order=250,
)
def diverging_loss(trace: Trace) -> Finding | None:
    """Tell whether the loss climbs away."""
    seen = verdict(trace)
    if seen.state != DIVERGING or seen.step is None:
        return None
    where = place(trace, seen.step)
    statement = (
        f"The loss was {rounded(seen.start)} at the start and is {rounded(seen.end)} at the end; it began to climb "
        f"at {where}."
    )
    return Finding(
        code="diverging_loss",
        title=f"The loss climbs from {rounded(seen.start)} to {rounded(seen.end)}",
        kind=Kind.SYMPTOM,
        severity=Severity.CRITICAL,
        confidence=0.95,
        explanation=f"{statement} Every further step makes the net worse, until the loss is infinite.",
        step=seen.step,
        evidence=(Evidence(statement, seen.end, seen.start, "this run"),),
        prescriptions=(prescription("guard"),),
    )
