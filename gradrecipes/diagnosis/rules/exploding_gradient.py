"""exploding_gradient: the gradients are out of proportion to the weights, overflow, or jump and stay up.

## What it does
Looks for four signs, the most severe first. (1) A gradient with NaN or infinite entries while the loss was finite. (2)
At the first sample, a layer whose gradient norm is a thousand times its weights' norm. (3) A step whose norm is ten
times the largest of the first 100 steps, together with a loss that rose and did not recover. (4) In shorter runs, a
norm a thousand times that of the first step with a loss that ends above its start. Steps that a guard skipped, and
steps clipped to a tenth or less, are further evidence.

## Why it is bad
A step of gradient descent moves the weights by rate * gradient. A gradient a thousand times the weights moves them by
ten times their own size at a rate of 0.01: everything the layer had learned is lost. Beyond 3.4e38 an entry is
infinite, Inf - Inf is NaN, and one NaN in the weights makes every later output NaN. A large norm alone is not a
problem: healthy nets start with norms of 10 or 100 and train well, so a norm is judged relative to the weights, and a
jump only by its loss.

## Example
A ReLU net of 30 layers and width 64 with sigma_w^2 = 4: ||g||/||W|| is between 1e3 and 1e5 at the first step, where
He initialization has 0.1 to 4.

## Remedy
This is a symptom: treat the cause if one is named. Otherwise clip by global norm, which keeps the direction and bounds
the length; a guard that skips steps with a non-finite gradient preserves the weights.

## References
- Pascanu et al., "On the difficulty of training recurrent neural networks", arXiv 1211.5063.
- Megatron-LM's rule for spikes: ten times the largest of the first 100 steps.
- Brock et al., arXiv 2102.06171: the gradient's size matters against that of the weights.
"""

from __future__ import annotations

import math

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.readings import (
    MIN_PARAMETERS,
    gradient_to_weight,
    layer_descriptions,
    middle,
    nonfinite_gradients,
    nonfinite_losses,
    place,
    rounded,
)
from gradrecipes.diagnosis.outcome import LEARNING, verdict
from gradrecipes.diagnosis.prescriptions import clip_to_repair, prescription
from gradrecipes.diagnosis.registry import rule

FAR_BELOW = 1e-3  # end over the baseline of a run that nothing kept from learning
HUGE_RATIO = (
    1e3  # ||g||/||W|| of a layer; simulated: He <= 4, squared loss of targets near 22 <= 310, sigma_w^2=4 > 1e3
)
USUAL_RATIO = 1.0  # ||g||/||W||; most layers of healthy nets lie below
REFERENCE_STEPS = 100  # steps whose largest norm is the measure of a spike; Megatron-LM
SPIKE_FACTOR = 10.0  # times that largest norm; Megatron-LM
RUNAWAY_FACTOR = 1e3  # times the norm of the first step: grown within a run too short for Megatron-LM's measure
LOSS_RISE = 1.5  # loss after over loss before: less is noise of batches
LOSS_WINDOW = 50  # steps before and after a spike whose median losses are compared
SHORTEST_WINDOW = 5  # steps after a spike without which "did not come back" cannot be said
STRONG_CLIP = 0.1  # clip factor: the step was shortened to a tenth or less


@rule(
    code="exploding_gradient",
    kind=Kind.SYMPTOM,
    title="The gradients are out of proportion, overflow, or jump and stay up",
    order=230,
)
def exploding_gradient(trace: Trace) -> Finding | None:
    """Tell whether the gradients explode, since which step, and by which mark."""
    marks = (_overflow(trace), _disproportion(trace), _spike(trace), _runaway(trace))
    found = [mark for mark in marks if mark is not None]
    if not found:
        return None
    first = found[0]
    return Finding(
        code="exploding_gradient",
        title=first.title,
        kind=Kind.SYMPTOM,
        severity=first.severity,
        confidence=max(mark.confidence for mark in found),
        explanation=first.explanation,
        layer=first.layer,
        step=min(mark.step for mark in found if mark.step is not None),
        evidence=tuple(item for mark in found for item in mark.evidence) + _interventions(trace),
        prescriptions=(*clip_to_repair(trace), prescription("guard")),
    )


def _finding(
    title: str,
    severity: Severity,
    confidence: float,
    explanation: str,
    step: int,
    evidence: Evidence,
    layer: str | None = None,
) -> Finding:
    return Finding(
        "exploding_gradient", title, Kind.SYMPTOM, severity, confidence, explanation, layer, step, (evidence,)
    )


def _overflow(trace: Trace) -> Finding | None:
    rows = np.flatnonzero(nonfinite_gradients(trace) & ~nonfinite_losses(trace) & np.isfinite(trace.loss))
    if not len(rows):
        return None
    row, step = int(rows[0]), int(trace.steps["step"][rows[0]])
    held = bool(trace.skipped[rows].all())
    layer = _first_nonfinite_layer(trace, step)
    where = f" It appeared in {layer!r}." if layer else ""
    end = (
        "The guard skipped these steps, so the weights did not change."
        if held
        else "The step was applied: from then on the weights hold NaN or infinite entries, and so does every output."
    )
    before = trace.gradient_norm[:row][np.isfinite(trace.gradient_norm[:row])]
    history = f" The norm before it was {rounded(float(before[-1]))}." if len(before) else ""
    return _finding(
        f"The gradient overflows at {place(trace, step)} while the loss is still finite",
        Severity.WARNING if held else Severity.CRITICAL,
        0.98,
        f"At {place(trace, step)} the loss was finite, {rounded(float(trace.loss[row]))}, but its gradient was not: an "
        f"entry had overflowed, or Inf - Inf had become NaN.{history}{where} {end}",
        step,
        Evidence(
            f"{len(rows)} of {len(trace)} steps had a finite loss and a gradient with NaN or infinite entries.",
            float(len(rows)),
            0.0,
            "this run",
        ),
        layer,
    )


def _disproportion(trace: Trace) -> Finding | None:
    ratio = gradient_to_weight(trace)
    sizes = np.array([layer.parameters or math.inf for layer in layer_descriptions(trace)])
    ratio = np.where(sizes >= MIN_PARAMETERS, ratio, np.nan)  # a net of a few weights has no proportion to keep
    if not np.isfinite(ratio).any() or np.nanmax(ratio) < HUGE_RATIO:
        return None
    seen = verdict(trace)
    divided = trace.description.optimizer is not None and trace.description.optimizer.adaptive
    if (seen.learned and seen.end_over_baseline < FAR_BELOW) or (divided and seen.state == LEARNING):
        return None  # an adaptive optimizer divides the size away
    worst, step = int(np.nanargmax(ratio)), int(trace.samples["step"].min())
    layer, size = trace.layers[worst], float(ratio[worst])
    return _finding(
        f"The gradient of {layer!r} is {rounded(size)} times the size of its weights",
        Severity.CRITICAL,
        0.9,
        f"At the first step the gradient of {layer!r} has a norm {rounded(size)} times that of the layer's weights; "
        f"the median layer has a ratio of {rounded(middle(ratio))}, and healthy nets are mostly below "
        f"{rounded(USUAL_RATIO)}. Plain gradient descent would need a learning rate of about {rounded(1e-2 / size)} to "
        "change that layer by one percent a step, and every other layer may not learn at that rate. Adam "
        "normalizes the size, but not the noise that comes with it.",
        step,
        Evidence(
            f"||g||/||W|| of {layer!r} is {rounded(size)} at the first sample; it is usually below "
            f"{rounded(USUAL_RATIO)}.",
            size,
            USUAL_RATIO,
            "gradient over weight norm, arXiv 2102.06171",
        ),
        layer,
    )


def _spike(trace: Trace) -> Finding | None:
    norm = np.asarray(trace.gradient_norm, dtype=np.float64)
    if len(norm) <= REFERENCE_STEPS or not np.isfinite(norm[:REFERENCE_STEPS]).any():
        return None
    largest = float(np.max(norm[:REFERENCE_STEPS], where=np.isfinite(norm[:REFERENCE_STEPS]), initial=0.0))
    high = np.isfinite(norm) & (norm >= SPIKE_FACTOR * largest) & (largest > 0) & ~trace.skipped
    high[:REFERENCE_STEPS] = False
    for row in np.flatnonzero(high):
        before, after = _around(trace, int(row))
        if _stays_up(before, after, trace, int(row)):
            return _jump(trace, int(row), largest, f"the largest of the first {REFERENCE_STEPS} steps", before, after)
    return None


def _runaway(trace: Trace) -> Finding | None:
    norm, lost = np.asarray(trace.gradient_norm, dtype=np.float64), nonfinite_losses(trace)
    started = np.flatnonzero(np.isfinite(norm) & (norm > 0))  # a saturated softmax has gradients of exactly 0
    if len(norm) < SHORTEST_WINDOW or not len(started) or not math.isfinite(trace.loss[0]):
        return None
    usual = float(norm[started[0]])
    high = np.flatnonzero(np.isfinite(norm) & (norm >= RUNAWAY_FACTOR * usual) & ~trace.skipped)
    before, after = float(trace.loss[0]), middle(trace.loss[-SHORTEST_WINDOW:])
    ends_lost = bool(lost[-SHORTEST_WINDOW:].any())
    if not len(high) or not (ends_lost or after > before + (LOSS_RISE - 1.0) * abs(before)):
        return None
    return _jump(trace, int(high[0]), usual, "that of the first step", before, math.nan if ends_lost else after)


def _around(trace: Trace, row: int) -> tuple[float, float]:
    before = middle(trace.loss[max(0, row - LOSS_WINDOW) : row])
    after = trace.loss[row + 1 : row + 1 + LOSS_WINDOW]
    rest = trace.loss[row + 1 :]
    # Two looks, soon after and at the end of the record: a loss that came back by then was only a bump.
    return before, min(middle(after), middle(rest[-LOSS_WINDOW:])) if len(rest) >= SHORTEST_WINDOW else math.nan


def _stays_up(before: float, after: float, trace: Trace, row: int) -> bool:
    lost = bool((nonfinite_losses(trace) & ~trace.skipped)[row + 1 :].any())
    return lost or (math.isfinite(before) and after > before + (LOSS_RISE - 1.0) * abs(before))


def _jump(trace: Trace, row: int, usual: float, usual_name: str, before: float, after: float) -> Finding:
    step, size = int(trace.steps["step"][row]), float(trace.gradient_norm[row])
    end = f"{rounded(after)} after" if math.isfinite(after) else "not finite after"
    return _finding(
        f"The gradient norm jumps to {rounded(size)} at {place(trace, step)} and the loss does not recover",
        Severity.CRITICAL,
        0.85,
        f"At {place(trace, step)} the gradient norm was {rounded(size)}, {rounded(size / usual)} times {usual_name}. A "
        f"jump by itself is common and often harmless; this one was not: the loss was {rounded(before)} before and "
        f"{end}. The step moved the weights to a region from which the training did not recover.",
        step,
        Evidence(
            f"Gradient norm {rounded(size)} against {rounded(usual)}, {usual_name}; loss {rounded(before)} before, "
            f"{end}.",
            size,
            usual,
            "Megatron-LM's rule for spikes, and the losses of this run",
        ),
    )


def _interventions(trace: Trace) -> tuple[Evidence, ...]:
    skipped, factor = int(nonfinite_gradients(trace)[trace.skipped].sum()), trace.steps["clip_factor"]
    clipped, evidence = int(np.sum(factor <= STRONG_CLIP)), []
    if skipped:
        statement = f"The guard skipped {skipped} of {len(trace)} steps because of their gradient."
        evidence.append(Evidence(statement, float(skipped), 0.0, "this run"))
    if clipped:
        statement = (
            f"{clipped} of {len(trace)} steps were clipped to a tenth or less of their length, the hardest to "
            f"{rounded(float(np.nanmin(factor)))} of it."
        )
        evidence.append(Evidence(statement, float(clipped), 0.0, "this run"))
    return tuple(evidence)


def _first_nonfinite_layer(trace: Trace, step: int) -> str | None:
    rows = np.flatnonzero(trace.samples["step"] == step)
    if not len(rows):
        return None
    bad = np.flatnonzero(np.nan_to_num(trace.samples["nonfinite_share"][rows[0]], nan=0.0) > 0)
    return trace.layers[int(bad[-1])] if len(bad) else None  # backwards, the last layer is reached first
