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

import math

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.divergences import lost_later
from gradrecipes.diagnosis.facts.readings import place, rounded
from gradrecipes.diagnosis.outcome import DIVERGING, verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule


@rule(
    code="diverging_loss",
    kind=Kind.SYMPTOM,
    title="The loss climbs away from where it began",
    order=250,
)
def diverging_loss(trace: Trace) -> Finding | None:
    """Tell whether the loss climbs away."""
    seen, later = verdict(trace), lost_later(trace)
    if later is not None and math.isfinite(later.end):
        end, step, when = later.end, later.step, f"after {later.step:,} steps"
    elif seen.state == DIVERGING and seen.step is not None:
        end, step, when = seen.end, seen.step, f"at the end; it began to climb at {place(trace, seen.step)}"
    else:
        return None
    statement = f"The loss was {rounded(seen.start)} at the start and is {rounded(end)} {when}."
    return Finding(
        code="diverging_loss",
        title=f"The loss climbs from {rounded(seen.start)} to {rounded(end)}",
        kind=Kind.SYMPTOM,
        severity=Severity.CRITICAL,
        confidence=0.95,
        explanation=f"{statement} Every further step makes the net worse, until the loss is infinite.",
        step=step,
        evidence=(Evidence(statement, end, seen.start, "this run"),),
        prescriptions=(prescription("guard"),),
    )
