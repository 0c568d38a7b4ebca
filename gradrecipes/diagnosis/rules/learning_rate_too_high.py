"""learning_rate_too_high: healthy weights and moderate gradients, but steps so long that the loss climbs.

## What it does
Fires when the loss rises far above its start within the first 500 steps and does not come back, or becomes NaN or
infinite there, although the run began well: moderate gradients at the first sample and no exploding initialization.
A loss that broke needs a second witness before it: an update as large as the weights, or a loss or gradient that was
already climbing. So neither a bump that passes, nor noise, nor the edge of stability, nor one corrupt batch sets it
off; nor does a run that starts with a giant loss and gradient, whose cause lies in its data or its weights.

A trial that goes well says nothing of a rate that a schedule reaches later. Where the schedule rises above the rates of
the trial, the trial goes on to its highest rate, and the rule fires where the loss is lost there, or where it climbs
with the rate over the whole training and ends at less than half with the trial's rate held. A schedule that rises on
where its settings name no more steps, as that of a range test does, is read ten times as far. A run that learns in the
trial and is lost in the steps behind it is repeated at lower rates over all of them.

## Why it is bad
On a slope of curvature lambda a gradient step longer than 2 / lambda lands higher on the other side than it began,
and every further step is longer. The ratio of update to weights tells it at a glance: about 1e-3 is usual, and above
0.3 an update is of the weights' own size, so that a step replaces the net rather than improving it.

## Example
```python
model.compile(optimizer=keras.optimizers.SGD(learning_rate=10.0), loss="sparse_categorical_crossentropy")
```

## Remedy
A lower rate, by the factor that brings the update back to a hundredth of the weights; a warm-up, where only the first
steps are too long; clipping by global norm, which bounds each step and so widens the range of rates that work.

## References
- Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability", arXiv 2103.00065.
- Smith, "Cyclical learning rates", arXiv 1506.01186: the range test that finds the highest rate that works.
- Goyal et al., arXiv 1706.02677: warm-up.
"""

from __future__ import annotations

import math

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import Sharpness, TrialReading, VariationResult, at_rate
from gradrecipes.diagnosis.facts.divergences import (
    EARLY_STEPS,
    MIN_RISE,
    OWN_SIZE,
    SHORTEST_RUN,
    Divergence,
    broken,
    largest,
    lost_later,
    replaced,
    risen,
    rising_rate,
    stuck,
    thrown,
)
from gradrecipes.diagnosis.facts.readings import (
    OUT_OF_PROPORTION,
    first_sample,
    gradient_to_weight,
    layer_descriptions,
    middle,
    nonfinite_gradients,
    nonfinite_losses,
    number,
    place,
    rounded,
    smallest_weight_norms,
)
from gradrecipes.diagnosis.keras_lines import recorded_rate
from gradrecipes.diagnosis.outcome import PROVEN, UNPROVEN, fixing_rate, variation, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import learning_rate_prescriptions
from gradrecipes.diagnosis.registry import FAILED_RUN, rule
from gradrecipes.diagnosis.rules.exploding_initialization import exploding_initialization

USUAL_UPDATE = 1e-3  # update norm over weight norm in healthy training
TARGET_UPDATE = 1e-2  # update norm over weight norm that the prescribed rate aims at: lively but safe
LEAST_FACTOR, MOST_FACTOR = 10.0, 1e6  # by which the prescribed rate is lower
GIANT_RATIO = 10.0  # median ||g||/||W|| at the first sample; He nets have .1 to 2, unscaled data 20 and more
GIANT_START = 1e4  # loss and gradient norm of the first step, where the weights were not measured
ABOVE_CHANCE = 6.0  # nats by which a cross-entropy exceeds ln(classes) at a start that is itself sick; He nets: 0 to 5
EASED_SHARE = 0.5  # share of its loss that a run loses at a lower rate, if not all that it should


@rule(
    code="learning_rate_too_high",
    kind=Kind.CAUSE,
    title="The steps are too long: the loss climbs instead of falling",
    short="learning rate too high",
    order=200,
    brings_about=(
        "dead_units",
        "saturated_units",
        "attention_logit_growth",
        "batch_too_small",
        "runaway_weights",
        *FAILED_RUN,
    ),
)
def learning_rate_too_high(trace: Trace) -> Finding | None:
    """Tell whether the learning rate is too high, by what factor, and since which step."""
    lower = fixing_rate(trace, lower=True)
    eased = lower or _easing_rate(trace)
    loss_seen = bool(np.isfinite(trace.loss).any())
    if (later := rising_rate(trace)) is not None:
        return later
    if (lower is None and len(trace) < SHORTEST_RUN) or (eased is None and loss_seen and _started_badly(trace)):
        return None
    update = _largest_early_update(trace)
    divergence = (
        broken(trace, update)
        or risen(trace, update)
        or (lost_later(trace) or stuck(trace, update) if lower else thrown(trace, update) or replaced(trace, update))
    )
    if divergence is None or exploding_initialization(trace) is not None or _may_rise(trace):
        return None
    rate = recorded_rate(trace)
    factor = 1.0 / eased if eased else _factor(update)
    held = bool(divergence.broken and trace.skipped[nonfinite_losses(trace) | nonfinite_gradients(trace)].all())
    return Finding(
        code="learning_rate_too_high",
        title="The learning rate"
        + (f" {rounded(rate)}" if rate else "")
        + f" is too high: the {'loss climbs instead of falling' if loss_seen else 'gradients grow'}",
        kind=Kind.CAUSE,
        severity=Severity.WARNING if held else Severity.CRITICAL,
        confidence=_sure(trace, lower, update, loss_seen),
        explanation=_explanation(trace, divergence, update, rate, factor),
        layer=None,
        step=divergence.step,
        evidence=(
            *_evidence(trace, divergence, update),
            *_curvature(trace),
            *(variation_evidence(trace, at_rate(eased)) if eased else ()),
        ),
        prescriptions=learning_rate_prescriptions(trace, rate, factor),
    )


def _may_rise(trace: Trace) -> bool:
    """Return whether the loss follows the values of the net itself, and rises no further than these may grow."""
    return (trace.probes.trial or TrialReading()).moving_target and not verdict(trace).unhealthy


def _sure(trace: Trace, lower: float | None, update: float, loss_seen: bool) -> float:
    if lower:
        return PROVEN
    if loss_seen and _started_badly(trace):
        return UNPROVEN
    return 0.9 if update >= OWN_SIZE else 0.7 if math.isnan(update) else 0.6


def _easing_rate(trace: Trace) -> float | None:
    """Return the largest lower rate at which a run that broke or ran away has lost half its loss, or None."""
    if not verdict(trace).unhealthy:
        return None
    for factor in (0.1, 0.01, 0.001):
        result = variation(trace, at_rate(factor)) or VariationResult()
        if (number(result.fall) or 0.0) >= EASED_SHARE:
            return factor
    return None


def _started_badly(trace: Trace) -> bool:
    """Say whether the very first step was giant or broken: then the rate is not what is wrong."""
    loss, norm = float(trace.loss[0]), float(trace.gradient_norm[0])
    if not math.isfinite(loss) or math.isinf(norm) or nonfinite_gradients(trace)[0]:
        return True
    if "crossentropy" in str(trace.description.loss or "") and loss > math.log(_classes(trace)) + ABOVE_CHANCE:
        return True  # saturated: the gradient may then be 0, and says nothing
    ratio = middle(gradient_to_weight(trace))
    if math.isfinite(ratio):
        return ratio >= GIANT_RATIO
    return abs(loss) >= GIANT_START and not norm < GIANT_START


def _classes(trace: Trace) -> float:
    """Return the units of the last layer that has any, at least 2; one unit of a binary output decides between two."""
    units = [number(layer.units) for layer in layer_descriptions(trace)]
    return max(2.0, next((count for count in reversed(units) if count is not None), 2.0))


def _largest_early_update(trace: Trace) -> float:
    """Return the largest update ratio of a typical layer (the median) before the run broke; NaN if not measured."""
    bad = nonfinite_losses(trace) | nonfinite_gradients(trace)
    limit = trace.steps["step"][int(np.argmax(bad))] if bad.any() else math.inf
    early = (trace.samples["step"] < min(limit, trace.steps["step"][0] + EARLY_STEPS)).nonzero()[0]
    measurable = ~(first_sample(trace, "weight_norm") <= smallest_weight_norms(trace))
    medians = [middle(np.where(measurable, trace.samples["update_ratio"][row], np.nan)) for row in early]
    return largest(np.array(medians)) if np.isfinite(medians).any() else math.nan


def _factor(update: float) -> float:
    """Return by how much lower the rate should be, rounded to 1, 2 or 5 times a power of ten."""
    wanted = min(max(update / TARGET_UPDATE, LEAST_FACTOR), MOST_FACTOR) if math.isfinite(update) else LEAST_FACTOR
    power = 10.0 ** math.floor(math.log10(wanted))
    return power * min((1.0, 2.0, 5.0, 10.0), key=lambda digit: abs(math.log(digit * power / wanted)))


def _explanation(trace: Trace, divergence: Divergence, update: float, rate: float | None, factor: float) -> str:
    where = place(trace, divergence.step)
    at_rate = f" at a learning rate of {rounded(rate)}" if rate else ""
    story = (
        f"The run began at a loss of {rounded(divergence.start)} with gradients of a moderate size, and broke at "
        f"{where}{at_rate}; the highest loss before was {rounded(divergence.peak)}."
        if divergence.broken
        else f"The run began at a loss of {rounded(divergence.start)} with gradients of a moderate size. By {where} "
        "the loss had climbed beyond "
        f"{rounded(divergence.start + (MIN_RISE - 1) * abs(divergence.start))}{at_rate}; it reached "
        f"{rounded(divergence.peak)} and ended at {rounded(divergence.end)}."
    )
    size = (
        f"One update changes a typical layer by up to {rounded(update)} times the size of its weights; "
        f"{rounded(USUAL_UPDATE)} is usual, and from {rounded(OWN_SIZE)} on a step replaces the weights instead of "
        "improving them."
        if update >= OWN_SIZE
        else "Steps that overshoot the valley land higher on its other side, where the slope is steeper, so that the "
        "next step is longer still."
    )
    return (
        f"{story} {size} Weights and gradients were healthy at the start, so the length of the steps is wrong, not "
        f"their direction: first try a learning rate about {factor:,.0f} times lower."
    )


def _curvature(trace: Trace) -> tuple[Evidence, ...]:
    sharp = trace.probes.sharpness or Sharpness()
    ratio, rate = number(sharp.ratio), recorded_rate(trace)
    guessed = sharp.preconditioner == "gradients"  # an adaptive optimizer knows no sizes before its first step
    if ratio is None or rate is None or ratio <= 1.0 or guessed:
        return ()
    return (
        Evidence(
            "With the curvature of the loss before training, the optimizer is stable up to a learning rate of "
            f"{rounded(rate / ratio)}; this one is {rounded(ratio)} times that.",
            ratio,
            1.0,
            "largest eigenvalue of the Hessian, arXiv 2103.00065; of Adam: arXiv 2207.14484",
        ),
    )


def _evidence(trace: Trace, divergence: Divergence, update: float) -> tuple[Evidence, ...]:
    statement = (
        f"The loss was {rounded(divergence.start)} at the start and at most {rounded(divergence.peak)} before it broke."
        if divergence.broken
        else (
            f"The loss went from {rounded(divergence.start)} up to {rounded(divergence.peak)} and ended at "
            f"{rounded(divergence.end)}."
        )
    )
    evidence = [Evidence(statement, divergence.peak, divergence.start, "this run; a loss should fall from its start")]
    if math.isfinite(update):
        evidence.append(
            Evidence(
                f"The largest update of a typical layer was {rounded(update)} times its weights; "
                f"{rounded(USUAL_UPDATE)} is usual.",
                update,
                USUAL_UPDATE,
                "update norm over weight norm, first 500 steps",
            )
        )
    ratio = middle(gradient_to_weight(trace))
    if ratio < OUT_OF_PROPORTION:  # else the gradients speak against it
        evidence.append(
            Evidence(
                f"The gradients were moderate at the start: {rounded(ratio)} times the weights in the median layer.",
                ratio,
                1.0,
                "gradient norm over weight norm at the first sample",
            )
        )
    return tuple(evidence)
