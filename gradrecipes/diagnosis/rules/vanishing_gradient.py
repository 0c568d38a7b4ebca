"""vanishing_gradient: hardly any gradient reaches the first layers.

## What it does
Compares, on one real batch before any update, the gradient with respect to the first weighted layer's output with that
at the last, and fires where less than a hundred-thousandth is left and the loss stalls.

## Why it is bad
Layers without a gradient keep their random weights. The last layers then learn from the output of random layers, which
after many of them is nearly constant.

## Example
Twelve sigmoid layers under Glorot's weights: a factor of four is lost in each, a millionth is left after ten.

## Remedy
This is a symptom: treat the cause if one is named. Otherwise: ReLU with He weights, normalization, skip connections.

## References
- Hochreiter, 1991; Pascanu et al., "On the difficulty of training recurrent neural networks", arXiv 1211.5063.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.readings import rounded, span, weighted
from gradrecipes.diagnosis.outcome import STALLED, verdict
from gradrecipes.diagnosis.prescriptions import add_residual_blocks, normalize_before_the_activation
from gradrecipes.diagnosis.registry import rule

MIN_GRADIENT_RATIO = 1e-5  # output gradient of the first weighted layer over that of the last


@rule(
    code="vanishing_gradient",
    kind=Kind.SYMPTOM,
    title="Hardly any gradient reaches the first layers",
    order=280,
    needs_cause=True,
)
def vanishing_gradient(trace: Trace) -> Finding | None:
    """Tell whether the gradient dies out on its way back."""
    read = weighted(trace)
    ends = span(read, "output_gradient_norm")
    if ends is None or verdict(trace).state != STALLED or not ends[0] < MIN_GRADIENT_RATIO * ends[1]:
        return None
    left = ends[0] / ends[1]
    statement = (
        f"The gradient at the first of {len(read)} weighted layers has {rounded(left)} times the norm of that at the "
        "last."
    )
    return Finding(
        code="vanishing_gradient",
        title=f"Only {rounded(left)} of the gradient reaches the first layer",
        kind=Kind.SYMPTOM,
        severity=Severity.WARNING,
        confidence=0.95,
        explanation=f"{statement} The first layers are hardly updated, and the loss does not fall.",
        layer=read[0].name,
        evidence=(Evidence(statement, left, 1.0, "this batch, before any update"),),
        prescriptions=(normalize_before_the_activation(trace), add_residual_blocks(trace)),
    )
