"""runaway_weights: the weights of a layer, or the steps, grow by the same factor again and again.

## What it does
Looks at a long record: at the size of each layer's weights, and at the typical update over the weights, in the later
half of the run. It fires where one of them grew at least fourfold there, no slower at the end than at the beginning of
that half, and is by now beyond what healthy runs have: weights twice as large as any initializer draws them, updates of
three thousandths of the weights. The loss may still look well. Steps that grew a thousandfold since the first are a
notice only: that is what a learning-rate range test does, which is meant to end too high.

## Why it is bad
What grows in proportion to itself ends beyond what float32 holds, and the loss breaks long before. Weights of healthy
runs do not do that: those of a classifier that becomes more and more certain grow with the logarithm of the steps,
those under Adam at most with the steps, under a warm-up with their square: ever more slowly in proportion.

## Example
A learning-rate schedule that rises without end; a weight decay with the wrong sign; a weight that multiplies itself.

## Remedy
Bound the learning rate, and let weight decay pull the weights back.

## References
- Smith, "Cyclical learning rates for training neural networks", arXiv 1506.01186, section 3.3: the range test.
- Wortsman et al., arXiv 2309.14322, section 3: growth that announces an instability long before the loss shows it.
"""

from __future__ import annotations

import math

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.readings import middle, rounded
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

MIN_SAMPLES, MIN_STEPS = 8, 200  # of a record in which the pace of a growth can be told
QUADRATIC_GROWTH = 4.0  # growth over the later half of a run: what grows with the square of the steps reaches just that
KEEPS_PACE = 0.9  # ln(growth) of the last third over that of the first: 0.58 where it is linear in the steps
LARGE_WEIGHTS = 2.0  # times sqrt(2 / fan_in), the largest spread that initializers draw
RANGE_TEST_GROWTH = 1e3  # of a step over the first: a test of learning rates goes from far too low to far too high
LARGE_UPDATE = 3e-3  # update over weights, three times the usual: where it grows on, it is twelve in as many steps


@rule(
    code="runaway_weights",
    kind=Kind.SYMPTOM,
    title="The weights, or the steps, grow by the same factor again and again",
    order=235,
)
def runaway_weights(trace: Trace) -> Finding | None:
    """Tell what grows in proportion to itself, before the loss shows it."""
    steps = trace.samples["step"].astype(float)
    if len(trace) < MIN_STEPS or len(steps) < MIN_SAMPLES:
        return None
    with np.errstate(all="ignore"):
        updates = np.array([middle(row) for row in trace.samples["update_ratio"].astype(float)])
        found = [("update", *_pace(steps, updates), LARGE_UPDATE)]
        for place, name in enumerate(trace.layers):
            described = trace.description.layers[place] if place < len(trace.description.layers) else None
            if described is None or not described.fan_in or not described.parameters:
                continue
            spread = trace.samples["weight_norm"][:, place].astype(float) / math.sqrt(described.parameters)
            usual = math.sqrt(2.0 / described.fan_in)
            found.append((name, *_pace(steps, spread / usual), LARGE_WEIGHTS))
    running = [one for one in found if one[1] >= QUADRATIC_GROWTH and one[2] >= one[3]]
    if not running:
        return None
    name, growth, size, usual = max(running, key=lambda one: one[1])
    of_steps = name == "update"
    what = "The size of a typical update, over its weights," if of_steps else f"The size of the weights of {name!r}"
    half = f"the last {rounded(steps[-1] - steps[-1] / 2)} steps"
    statement = f"{what} grew {rounded(growth)}-fold over {half}, no slower at their end than at their beginning"
    unit = "of the weights" if of_steps else "times what initializers draw"
    spanned = _growth_since_first(updates) if of_steps else 1.0
    range_test = (
        f" The steps grew {rounded(spanned)}-fold since the first: a learning-rate range test is meant to do that."
        if spanned >= RANGE_TEST_GROWTH
        else ""
    )
    return Finding(
        code="runaway_weights",
        title=f"{what} grows {rounded(growth)}-fold in {half}, without slowing down",
        kind=Kind.SYMPTOM,
        severity=Severity.NOTICE if range_test else Severity.WARNING,
        confidence=0.8,
        explanation=(
            f"{statement}; it is {rounded(size)} {unit} by now. The weights of a healthy run grow ever more slowly. "
            "Growth without end makes the loss infinite, even if the loss looks well now."
            f"{range_test}"
        ),
        layer=None if of_steps else name,
        evidence=(Evidence(f"{statement}.", growth, QUADRATIC_GROWTH, "samples of the run, arXiv 2309.14322"),),
        prescriptions=(prescription("bound_the_growth"),),
    )


def _growth_since_first(values: np.ndarray) -> float:
    known = values[np.isfinite(values) & (values > 0)]
    return float(known[-1] / known[0]) if len(known) else 1.0


def _pace(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return (growth over the later half, last value); a growth of 1 where it slows down, or is not known."""
    known = np.isfinite(values) & (values > 0)
    steps, values = steps[known], values[known]
    if len(steps) < MIN_SAMPLES:
        return 1.0, 0.0
    marks = np.linspace(steps[-1] / 2.0, steps[-1], 4)
    logs = np.interp(marks, steps, np.log(values))
    first, _, last = np.diff(logs)
    steady = bool((np.diff(logs) > 0).all() and last >= KEEPS_PACE * first)
    return (float(np.exp(logs[-1] - logs[0])) if steady else 1.0), float(values[-1])
