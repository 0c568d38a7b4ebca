"""learning_rate_too_high: sound weights and moderate gradients, but steps so long that the loss climbs.

## What it does
Fires when the loss rises far above its start within the first 500 steps and does not come back, or becomes NaN or
infinite there, although the run began well: moderate gradients at the first sample and no exploding initialization.
A loss that broke needs a second witness before it: an update as large as the weights, or a loss or gradient that was
already climbing. So neither a bump that heals, nor noise, nor the edge of stability, nor one corrupt batch sets it
off; nor does a run that starts with a giant loss and gradient, whose cause lies in its data or its weights.

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
from dataclasses import dataclass

import numpy as np

from gradrecipes.core.finding import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.keras_lines import recorded_rate
from gradrecipes.diagnosis.prescribe import learning_rate_prescriptions
from gradrecipes.diagnosis.readings import (
    first_sample,
    gradient_to_weight,
    layer_descriptions,
    middle,
    nonfinite_gradients,
    nonfinite_losses,
    number,
    place,
    say,
    smallest_weight_norms,
)
from gradrecipes.diagnosis.rules.exploding_initialization import exploding_initialization
from gradrecipes.diagnosis.varied import PROVEN, UNPROVEN, healing_rate, variation, varied_evidence
from gradrecipes.diagnosis.verdict import BROKEN, OSCILLATING, Verdict, losses, verdict

EARLY_STEPS = 500  # steps within which a rate that is too high shows; later trouble has other causes
SHORTEST_RUN = 5  # steps; fewer show no trend
RISE = 3.0  # loss at the end over loss at the start; noise and Adam's early spikes that heal stay below
HIGH_PEAK = 10.0  # loss at its peak over its start
HEALED = 0.5  # loss at the end over its start; a net killed by a high peak ends at chance, .6 to 1 of a usual start
LAST_SHARE = 0.1  # of the steps, whose median loss is "the end"
GRADIENT_RISE = 100.0  # gradient norm before the break over that of the start
OWN_SIZE = 0.3  # update norm over weight norm: the update is of the weights' own size
USUAL_UPDATE = 1e-3  # update norm over weight norm in sound training
TARGET_UPDATE = 1e-2  # update norm over weight norm that the prescribed rate aims at: lively but safe
LEAST_FACTOR, MOST_FACTOR = 10.0, 1e6  # by which the prescribed rate is lower
GIANT_RATIO = 10.0  # median ||g||/||W|| at the first sample; He nets have .1 to 2, unscaled data 20 and more
GIANT_START = 1e4  # loss and gradient norm of the first step, where the weights were not measured
ABOVE_CHANCE = 6.0  # nats by which a cross-entropy exceeds ln(classes) at a start that is itself sick; He nets: 0 to 5
SHOT_UP = 30.0  # highest loss over the first, of a train step that computes its own; sound GANs stay within ten
LIVELY = 0.02  # update norm over weight norm below which steps are not long, whatever a lower rate does
EASED = 0.5  # share of its loss that a run loses at a lower rate, if not all that it should
FAR_BETTER = 0.5  # end of a run at a lower rate over that of the run as it is, after fewer steps
ALL_BUT_ALL = 0.5  # share of the steps after the break that are lost too


@dataclass(frozen=True)
class Divergence:
    """Hold what the loss did: its start, its peak and end, and where it left for good."""

    step: int
    start: float
    peak: float
    end: float
    broken: bool


def learning_rate_too_high(trace: Trace) -> Finding | None:
    """Tell whether the learning rate is too high, by what factor, and since which step."""
    lower = healing_rate(trace, lower=True)
    eased = lower or _easing_rate(trace)
    heard = bool(np.isfinite(trace.loss).any())
    if len(trace) < SHORTEST_RUN or (eased is None and heard and _started_badly(trace)):
        return None
    update = _largest_early_update(trace)
    divergence = (
        _broken(trace, update) or _risen(trace, update) or (_stuck(trace, update) if lower else _thrown(trace, update))
    )
    if divergence is None or exploding_initialization(trace) is not None:
        return None
    rate = recorded_rate(trace)
    factor = 1.0 / eased if eased else _factor(update)
    held = bool(divergence.broken and trace.skipped[nonfinite_losses(trace) | nonfinite_gradients(trace)].all())
    return Finding(
        code="learning_rate_too_high",
        title="The learning rate" + (f" {say(rate)}" if rate else "") + " is too high: the loss climbs, not falls",
        kind=Kind.CAUSE,
        severity=Severity.WARNING if held else Severity.CRITICAL,
        confidence=_sure(trace, lower, update, heard),
        explanation=_explanation(trace, divergence, update, rate, factor),
        layer=None,
        step=divergence.step,
        evidence=(
            *_evidence(trace, divergence, update),
            *_curvature(trace),
            *(varied_evidence(trace, f"rate_{eased:g}") if eased else ()),
        ),
        prescriptions=learning_rate_prescriptions(trace, rate, factor),
        leads_to=("exploding_gradient", "nonfinite_loss", "diverging_loss", "oscillating_loss", "stalled_loss"),
    )


def _sure(trace: Trace, lower: float | None, update: float, heard: bool) -> float:
    if lower:
        return PROVEN
    if heard and _started_badly(trace):
        return UNPROVEN
    return 0.9 if update >= OWN_SIZE else 0.7 if math.isnan(update) else 0.6


def _easing_rate(trace: Trace) -> float | None:
    """Return the largest lower rate at which a run that broke or ran away has lost half its loss, or None."""
    if not verdict(trace).unhealthy:
        return None
    for factor in (0.1, 0.01, 0.001):
        result = variation(trace, f"rate_{factor:g}") or {}
        if (number(result.get("fall")) or 0.0) >= EASED:
            return factor
    return None


def _started_badly(trace: Trace) -> bool:
    """Say whether the very first step was giant or broken: then the rate is not what is wrong."""
    loss, norm = float(trace.loss[0]), float(trace.gradient_norm[0])
    if not math.isfinite(loss) or math.isinf(norm) or nonfinite_gradients(trace)[0]:
        return True
    if "crossentropy" in str(trace.description.get("loss", "")) and loss > math.log(_classes(trace)) + ABOVE_CHANCE:
        return True  # saturated: the gradient may then be 0, and says nothing
    ratio = middle(gradient_to_weight(trace))
    if math.isfinite(ratio):
        return ratio >= GIANT_RATIO
    return abs(loss) >= GIANT_START and not norm < GIANT_START


def _classes(trace: Trace) -> float:
    """Return the units of the last layer that has any, at least 2; one unit of a binary output decides between two."""
    units = [number(layer.get("units")) for layer in layer_descriptions(trace)]
    return max(2.0, next((count for count in reversed(units) if count is not None), 2.0))


def _broken(trace: Trace, update: float) -> Divergence | None:
    """Return the divergence of a run that broke early and stayed broken, if a witness saw it coming."""
    bad = nonfinite_losses(trace) | nonfinite_gradients(trace)
    if not bad[:EARLY_STEPS].any():
        return None
    row = int(np.argmax(bad))
    if row == 0 or bad[row:].mean() < ALL_BUT_ALL:
        return None
    loss, norm = trace.loss[:row].astype(float), trace.gradient_norm[:row].astype(float)
    start, peak = float(loss[0]), _largest(loss)
    climbing = peak >= HIGH_PEAK * abs(start) and peak > start
    steeper = math.isfinite(norm[0]) and norm[0] > 0 and _largest(norm) >= GRADIENT_RISE * norm[0]
    if not (climbing or steeper or update >= OWN_SIZE):
        return None
    return Divergence(int(trace.steps["step"][row]), start, peak, math.nan, True)


def _risen(trace: Trace, update: float) -> Divergence | None:
    """Return the divergence of a run whose loss left its start early, stayed a number, and did not come back."""
    loss = trace.loss.astype(float)
    finite = np.isfinite(loss)
    if finite.sum() < SHORTEST_RUN or trace.skipped[finite].mean() > ALL_BUT_ALL:
        return None
    start = float(loss[0])
    scale = abs(start)
    end = middle(loss[finite][-max(SHORTEST_RUN, int(LAST_SHARE * finite.sum())) :])
    peak = _largest(loss[:EARLY_STEPS])
    stays_high = end >= start + (RISE - 1.0) * scale and scale > 0
    never_learnt = peak >= start + (HIGH_PEAK - 1.0) * scale and end >= HEALED * start and update >= OWN_SIZE
    if not (stays_high or never_learnt) or peak < start + (RISE - 1.0) * scale:
        return None
    row = int(np.argmax(finite & (loss >= start + (RISE - 1.0) * scale)))
    return Divergence(int(trace.steps["step"][row]), start, _largest(loss), end, False)


def _stuck(trace: Trace, update: float) -> Divergence | None:
    """Return what a run did that stands still, or far out, for its steps are so long that it threw itself there."""
    seen = verdict(trace)
    far_better = update >= LIVELY and any(_far_better(trace, f"rate_{factor:g}", seen) for factor in (0.1, 0.01, 0.001))
    if seen.learnt or not (update >= OWN_SIZE or seen.unhealthy or seen.state == OSCILLATING or far_better):
        return None
    loss = losses(trace)
    step = seen.step if seen.step is not None else int(trace.steps["step"][int(np.argmax(np.nan_to_num(loss)))])
    return Divergence(step, float(loss[0]), _largest(loss), seen.end, seen.state == BROKEN)


def _thrown(trace: Trace, update: float) -> Divergence | None:
    """Return what a run did whose train step computes losses of its own, as a GAN's: one shot up at once."""
    logs = (trace.probes.get("trial") or {}).get("logs") or {}
    if not update >= OWN_SIZE or np.isfinite(trace.loss).any():
        return None
    for told in logs.values():
        values = np.array([value for value in told if value is not None], dtype=float)
        if len(values) >= SHORTEST_RUN and values[0] > 0 and values.max() > SHOT_UP * values[0]:
            step = int(trace.steps["step"][min(int(np.argmax(values)), len(trace) - 1)])
            return Divergence(step, float(values[0]), float(values.max()), float(values[-1]), False)
    return None


def _far_better(trace: Trace, name: str, seen: Verdict) -> bool:
    end = (variation(trace, name) or {}).get("end")
    return end is not None and seen.end > 0 and end < FAR_BETTER * seen.end


def _largest_early_update(trace: Trace) -> float:
    """Return the largest update ratio of a typical layer (the median) before the run broke; NaN if not measured."""
    bad = nonfinite_losses(trace) | nonfinite_gradients(trace)
    limit = trace.steps["step"][int(np.argmax(bad))] if bad.any() else math.inf
    early = (trace.samples["step"] < min(limit, trace.steps["step"][0] + EARLY_STEPS)).nonzero()[0]
    measurable = ~(first_sample(trace, "weight_norm") <= smallest_weight_norms(trace))
    medians = [middle(np.where(measurable, trace.samples["update_ratio"][row], np.nan)) for row in early]
    return _largest(np.array(medians)) if np.isfinite(medians).any() else math.nan


def _factor(update: float) -> float:
    """Return by how much lower the rate should be, rounded to 1, 2 or 5 times a power of ten."""
    wanted = min(max(update / TARGET_UPDATE, LEAST_FACTOR), MOST_FACTOR) if math.isfinite(update) else LEAST_FACTOR
    power = 10.0 ** math.floor(math.log10(wanted))
    return power * min((1.0, 2.0, 5.0, 10.0), key=lambda digit: abs(math.log(digit * power / wanted)))


def _largest(values: np.ndarray) -> float:
    return float(np.max(values, where=np.isfinite(values), initial=-math.inf))


def _explanation(trace: Trace, divergence: Divergence, update: float, rate: float | None, factor: float) -> str:
    where = place(trace, divergence.step)
    at_rate = f" at a learning rate of {say(rate)}" if rate else ""
    story = (
        f"The run began at a loss of {say(divergence.start)} with gradients of a moderate size, and broke at {where}"
        f"{at_rate}; the highest loss before was {say(divergence.peak)}."
        if divergence.broken
        else f"The run began at a loss of {say(divergence.start)} with gradients of a moderate size. By {where} the "
        f"loss had climbed beyond {say(divergence.start + (RISE - 1) * abs(divergence.start))}{at_rate}; it reached "
        f"{say(divergence.peak)} and ended at {say(divergence.end)}."
    )
    size = (
        f"One update changes a typical layer by up to {say(update)} times the size of its weights; "
        f"{say(USUAL_UPDATE)} is usual, and from {say(OWN_SIZE)} on a step replaces the weights instead of "
        "improving them."
        if update >= OWN_SIZE
        else "Steps that overshoot the valley land higher on its other side, where the slope is steeper, so that the "
        "next step is longer still."
    )
    return (
        f"{story} {size} Weights and gradients at the start were sound, so it is the length of the steps that is "
        f"wrong, not their direction: a rate about {factor:,.0f} times lower is the first thing to try."
    )


def _curvature(trace: Trace) -> tuple[Evidence, ...]:
    sharp = trace.probes.get("sharpness") or {}
    ratio, rate = number(sharp.get("ratio")), recorded_rate(trace)
    guessed = sharp.get("preconditioner") == "gradients"  # an adaptive optimizer knows no sizes before its first step
    if ratio is None or rate is None or ratio <= 1.0 or guessed:
        return ()
    return (
        Evidence(
            f"Before training the loss curves so much that the optimizer bears a rate of {say(rate / ratio)} at most; "
            f"this one is {say(ratio)} times above that.",
            ratio,
            1.0,
            "largest eigenvalue of the Hessian, arXiv 2103.00065; of Adam: arXiv 2207.14484",
        ),
    )


def _evidence(trace: Trace, divergence: Divergence, update: float) -> tuple[Evidence, ...]:
    statement = (
        f"The loss was {say(divergence.start)} at the start and at most {say(divergence.peak)} before it broke."
        if divergence.broken
        else f"The loss went from {say(divergence.start)} over {say(divergence.peak)} to {say(divergence.end)}."
    )
    evidence = [Evidence(statement, divergence.peak, divergence.start, "this run; a loss should fall from its start")]
    if math.isfinite(update):
        evidence.append(
            Evidence(
                f"The largest update of a typical layer was {say(update)} times its weights; "
                f"{say(USUAL_UPDATE)} is usual.",
                update,
                USUAL_UPDATE,
                "update norm over weight norm, first 500 steps",
            )
        )
    ratio = middle(gradient_to_weight(trace))
    if math.isfinite(ratio):
        evidence.append(
            Evidence(
                f"The gradients were moderate at the start: {say(ratio)} times the weights in the median layer.",
                ratio,
                1.0,
                "gradient norm over weight norm at the first sample",
            )
        )
    return tuple(evidence)
