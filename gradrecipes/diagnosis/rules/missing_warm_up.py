"""missing_warm_up: the full learning rate from the first step ruins a net that would learn after a warm-up.

## What it does
Reads the variations of the trial. It fires where the run is not finite, diverges, oscillates or stalls, where the net
learns in the same steps with a learning rate that rises linearly from 0, and where nothing else fixes it: neither
scaled data nor other initial weights.

## Why it is bad
At the start, gradients of the last layers of a post-norm transformer are large, and the variance that an adaptive
optimizer divides by is estimated from a few steps. Full steps in random directions saturate attention and
normalization, and the net does not recover.

## Example
```python
model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="sparse_categorical_crossentropy")  # a post-norm transformer
```

## Remedy
Raise the learning rate over the first hundreds to thousands of steps; or place the normalization before attention and
feed-forward layers (pre-norm), which needs no warm-up.

## References
- Xiong et al., "On layer normalization in the transformer architecture", arXiv 2002.04745: warm-up and post-norm.
- Liu et al., arXiv 1908.03265: the variance of the adaptive learning rate.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import (
    ALL_SCALED,
    FINITE_DATA,
    FITTING_WEIGHTS,
    SCALED_INPUTS,
    SCALED_TARGETS,
    WARM_UP,
)
from gradrecipes.diagnosis.outcome import fixed_by, fixing_rate, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import set_learning_rate, warm_up
from gradrecipes.diagnosis.registry import FAILED_RUN, rule

CERTAIN, WITH_A_RATE = 0.9, 0.7  # confidence where only the warm-up fixes the run; where a lower rate does so too


@rule(
    code="missing_warm_up",
    kind=Kind.CAUSE,
    title="The learning rate is high before the net is ready for it",
    short="no warm-up of the learning rate",
    order=195,
    brings_about=("attention_logit_growth", *FAILED_RUN),
)
def missing_warm_up(trace: Trace) -> Finding | None:
    """Tell whether a learning rate that rises from 0 lets a run learn that fails at the full rate."""
    seen = verdict(trace)
    if not fixed_by(trace, WARM_UP):
        return None
    if fixed_by(trace, SCALED_INPUTS, SCALED_TARGETS, FITTING_WEIGHTS, ALL_SCALED, FINITE_DATA):
        return None
    lower = fixing_rate(trace, lower=True)
    attention = sum(count for kind, count in trace.description.kinds.items() if "Attention" in kind)
    if lower is not None and not attention:
        return None  # the rate is too high; that it rises slowly only hides it for some steps
    held = f" The net has {attention} attention layers." if attention else ""
    statement = f"At the full learning rate the run is {seen.state}; with a rate that rises from 0 the net learns."
    return Finding(
        code="missing_warm_up",
        title="The net learns only if the learning rate rises from 0 at first",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if seen.unhealthy else Severity.WARNING,
        confidence=WITH_A_RATE if lower is not None else CERTAIN,
        explanation=(
            f"{statement}{held} The first steps rest on few gradients, and at the full rate they are long enough "
            f"to saturate later layers. The loss {seen.course}."
        ),
        step=seen.step,
        evidence=(
            Evidence(
                (f"With warm-up the net learns in the same number of steps; without, the run is {seen.state}."),
                source="this trial",
            ),
            *variation_evidence(trace, WARM_UP),
        ),
        prescriptions=(
            warm_up(trace),
            *((set_learning_rate(trace, lower, "A lower rate trains too, but more slowly."),) if lower else ()),
        ),
    )
