"""unbounded_loss: a loss without a minimum, which falls as long as the outputs grow.

## What it does
Evaluates a user's own loss at the outputs of the net, and a hundred, ten thousand and a million times their size away
from them, in the direction in which the loss falls. It fires where the loss falls in proportion to the distance and
nothing limits the outputs: no activation, no constraint and no penalty on weights.

## Why it is bad
Training minimizes the loss: it makes the outputs larger and larger, the loss more and more negative, until numbers
overflow. The loss falls all the time, so it looks like learning.

## Example
```python
def loss(y, p):
    return keras.ops.mean(y - p)  # the absolute value is missing: the larger p, the better
```

## Remedy
Use a loss with a minimum: the square or absolute value of a difference, a hinge with a margin for samples that are to
be far apart, a cross-entropy for a product of label and score; a penalty on the critic's gradient.

## References
- LeCun, Chopra, Hadsell et al., "A tutorial on energy-based learning", 2006: losses without a margin collapse.
- Gulrajani et al., "Improved training of Wasserstein GANs", arXiv 1704.00028.
"""

from __future__ import annotations

import math

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.facts.data_facts import heads
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.outcome import losses, verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

IN_PROPORTION = 10.0  # loss at 1e6 over that at 1e4, at least: 100 where it is linear, 1.5 for a logarithm
MIN_FALL_BELOW_ZERO = 100.0  # loss below 0 over the first one: a log-likelihood of healthy outputs changes by a few
MIN_QUARTER, MIN_QUARTER_OF_BROKEN = 10, 3  # steps in a quarter of a run, and of the part before it broke
FAR_BELOW = 1.0  # below 0 by as much at 1e4 times the answers: no rounding does that


@rule(
    code="unbounded_loss",
    kind=Kind.CAUSE,
    title="The loss has no minimum: it falls as long as the outputs grow",
    short="a loss without a minimum",
    order=52,
    brings_about=(
        "exploding_gradient",
        "runaway_weights",
        "nonfinite_loss",
        "diverging_loss",
        "learning_rate_too_high",
    ),
)
def unbounded_loss(trace: Trace) -> Finding | None:
    """Tell whether a loss has no least value, and whether the run is on its way there."""
    head = next((one for one in heads(trace) if falls_for_ever(one.measured.far_losses)), None)
    if head is None:
        return _of_run(trace)
    seen = verdict(trace)
    run = losses(trace)
    first, last = (float(run[0]), float(run[-1])) if len(run) else (math.nan, math.nan)
    on_its_way = seen.unhealthy or (last < first and last < 0)
    at = head.measured.far_losses or ()
    statement = (
        f"The loss {head.name!r} is {rounded(at[0])} at the net's own outputs, {rounded(at[1])} at a hundred times "
        f"larger ones, and {rounded(at[-1])} at a million times larger ones"
    )
    return Finding(
        code="unbounded_loss",
        title=f"The loss {head.name!r} has no minimum: it falls as long as the outputs grow",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if on_its_way else Severity.WARNING,
        confidence=0.9 if on_its_way else 0.75,
        explanation=(
            f"{statement}. Nothing that was seen limits the outputs: no bounded activation, no constraint, no "
            "penalty on weights. Training makes them larger without end, so a falling loss is not a sign of learning."
        ),
        evidence=(
            Evidence(f"{statement}.", at[-1], 0.0, "the loss on one batch; expected: a loss with a minimum"),
            *_run(first, last),
        ),
        prescriptions=(prescription("bounded_loss", name=repr(head.name)),),
    )


def _of_run(trace: Trace) -> Finding | None:
    """Tell it from a run alone: near a least value the gradient shrinks, while here it grows with the loss below 0."""
    logs = {} if np.isfinite(losses(trace)).any() else (trace.probes.trial or TrialReading()).logs
    several = {repr(name): np.array(values, float) for name, values in logs.items() if "loss" in name.lower()}
    return next(
        (found for one in (several or {"the loss": losses(trace)}).items() if (found := _falls(*one, trace))), None
    )


def _falls(name: str, run: np.ndarray, trace: Trace) -> Finding | None:
    norm = trace.gradient_norm.astype(float)
    finite = np.isfinite(run) & (np.isfinite(norm) if len(norm) == len(run) else True)
    whole = int(np.argmin(finite)) if not finite.all() else len(run)  # steps before it broke, if it did
    run, norm = run[:whole], norm[:whole]
    quarter = len(run) // 4
    if quarter < (MIN_QUARTER if finite.all() else MIN_QUARTER_OF_BROKEN) or not np.isfinite(norm).all():
        return None
    first, before, last = (float(np.median(part)) for part in (run[:3], run[quarter : 2 * quarter], run[-quarter:]))
    grown = float(np.median(norm[-quarter:])) / max(float(np.median(norm[:quarter])), np.finfo(float).tiny)
    further = (trace.probes.trial or TrialReading()).further
    if name == "the loss" and len(further) == 1 and further[0].end is not None and last < before < 0:
        before, last = last, min(last, further[0].end)  # it fell on in the further steps
    if not (last < -MIN_FALL_BELOW_ZERO * max(abs(first), 1.0) and last < 2.0 * before < 0 and grown > IN_PROPORTION):
        return None
    what = "The loss" if name == "the loss" else f"The loss {name}"
    statement = (
        f"{what} fell from {rounded(first)} to {rounded(last)} while the gradient grew {rounded(grown)}-fold; near a "
        "minimum the gradient shrinks"
    )
    return Finding(
        code="unbounded_loss",
        title=f"{what} has no minimum: it is {rounded(last)} and falls faster and faster",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.85,
        explanation=f"{statement}. The outputs grow without end; a falling loss is not a sign of learning.",
        evidence=(Evidence(f"{statement}.", last, first, "this run"),),
        prescriptions=(prescription("bounded_loss", name=name),),
    )


def falls_for_ever(at: tuple[float, ...] | None) -> bool:
    """Return whether a loss falls at least with the tenth part of the distance, from one to the next."""
    if at is None or len(at) < 4 or math.isnan(sum(at)) or math.inf in at:
        return False
    own, near, far, furthest = at
    return near < own and far < near and far < -FAR_BELOW and furthest < IN_PROPORTION * far


def _run(first: float, last: float) -> tuple[Evidence, ...]:
    if not (math.isfinite(first) and math.isfinite(last)):
        return ()
    statement = f"In the trial the loss went from {rounded(first)} to {rounded(last)}."
    return (Evidence(statement, last, None, "this trial"),) if rounded(first) != rounded(last) else ()
