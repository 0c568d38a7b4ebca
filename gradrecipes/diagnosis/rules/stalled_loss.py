"""stalled_loss: the loss does not fall.

## What it does
Compares the loss of the last batches with that of the same batches, or of the first ones, and fires where it fell by
less than a hundredth. By itself that is not a problem: a net may have learned all it can, or may need more steps. So
the diagnosis reports it only together with a cause that explains it.

## Why it is bad
Nothing is learned, and a training that stalls looks like one that only needs more time.

## Example
Twelve sigmoid layers; a learning rate of 1e-7; a last layer whose ReLU is dead.

## Remedy
This is a symptom: treat the cause that is reported with it.

## References
- Smith, arXiv 1506.01186: the range test tells at which rates a loss falls at all.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.words import counted
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.outcome import STALLED, verdict
from gradrecipes.diagnosis.prescriptions.prescribe import prescription
from gradrecipes.diagnosis.registry import rule


@rule(
    code="stalled_loss",
    kind=Kind.SYMPTOM,
    title="The loss does not fall",
    order=270,
    explained_by=(
        "loss_output_mismatch",
        "loss_without_gradient",
        "corrupt_batch",
        "unsafe_loss",
        "unbalanced_loss_terms",
        "frozen_weights",
        "float16_overflow",
        "optimizer_state",
        "unscaled_inputs",
        "unscaled_targets",
        "unscaled_loss_weights",
        "exploding_initialization",
        "unbounded_activation",
        "recurrent_gain",
        "embedding_spike",
        "exploding_batch_normalization",
        "missing_normalization",
        "excessive_regularization",
        "vanishing_initialization",
        "dead_units",
        "saturated_units",
        "plain_depth",
        "attention_logit_growth",
        "learning_rate_too_high",
        "missing_warm_up",
        "learning_rate_too_low",
        "batch_too_small",
    ),
    needs_cause=True,
)
def stalled_loss(trace: Trace) -> Finding | None:
    """Tell whether the loss stalls; the engine drops it where no cause explains it."""
    seen = verdict(trace)
    if seen.state != STALLED:
        return None
    beside = f"; a constant prediction has {rounded(seen.baseline)}" if seen.baseline > 0 else ""
    after = counted(len(trace), "step")
    statement = f"The loss was {rounded(seen.start)} at the start and is {rounded(seen.end)} after {after}{beside}."
    return Finding(
        code="stalled_loss",
        title="The loss does not fall",
        kind=Kind.SYMPTOM,
        severity=Severity.WARNING,
        confidence=0.9,
        explanation=f"{statement} Nothing is learned; the cause that is reported with this symptom says why.",
        evidence=(Evidence(statement, seen.end, seen.start, "this run"),),
        prescriptions=(prescription("find_the_range"),),
    )
