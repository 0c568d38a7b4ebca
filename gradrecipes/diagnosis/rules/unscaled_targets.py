"""unscaled_targets: a regression on targets far from unit size, and the training suffers from it.

## What it does
Looks at outputs with a loss on differences and an activation that could reach the targets: their root mean square. It
fires only where the run is not finite, diverges, stalls, or does not approach the loss of the best constant prediction,
and is certain where the net learns in the same steps with scaled targets. Targets that the last activation cannot reach
are `loss_output_mismatch`.

## Why it is bad
An untrained net predicts values near 0. The first error is then the target itself, a squared error its square: with
prices of 200,000 the loss starts at 4e10, and plain gradient steps diverge. Adam, which divides by the gradient's size,
moves each weight by the learning rate a step, and needs thousands of steps to get to the mean. With targets of 1e-4 the
first error is the net's own answer, and a step of the usual length is larger than what there is to learn.

## Example
```python
prices = 80_000 + 50_000 * y
regression = keras.Sequential([keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)])
regression.compile("adam", loss="mse")
regression.fit(x, prices)
```

## Remedy
Train on (y - mean) / std, and scale the predictions back; or learn the logarithm.

## References
- LeCun, Bottou, Orr, Mueller, "Efficient BackProp", section 4.3; van Hasselt et al., "Learning values across many
  orders of magnitude", arXiv 1602.07714.
"""

from __future__ import annotations

import math
from typing import Any

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import ArrayReading, Setting
from gradrecipes.core.trace.description import OutputDescription
from gradrecipes.core.trace.probes import OutputReading
from gradrecipes.core.trace.trial_reading import (
    ALL_SCALED,
    BALANCED_TERMS,
    SCALED_TARGETS,
    TrialReading,
    VariationResult,
)
from gradrecipes.diagnosis.facts.data_facts import Head, arrays, heads, held_back_by
from gradrecipes.diagnosis.facts.divergences import at_fault
from gradrecipes.diagnosis.facts.readings import number, rounded
from gradrecipes.diagnosis.judgement import in_the_end, of_columns
from gradrecipes.diagnosis.outcome import LEARNING, PROVEN, Verdict, fixed_by, variation, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import scale_targets
from gradrecipes.diagnosis.registry import FAILED_RUN, LONG_STEPS, rule

MAX_TARGET_RMS = 10.0  # root mean square of the targets, in units of the loss; a new net answers within 1 of 0
UNREACHABLE_TARGET_RMS = 50.0  # the same, which a net that is on its way there does not reach in a reasonable time
LOGARITHMIC_RANGE = 10.0  # largest over smallest target, all of them positive, from which logarithms are advised
FAR_FROM_BASELINE = 2.0  # end over that of a constant prediction, where the same steps on scaled targets get below it
NEARER = 5.0  # distance from the constant prediction, in the loss, over that on scaled targets
BOUNDED = {"sigmoid", "softmax", "tanh", "hard_sigmoid", "hard_tanh", "softsign", "relu6", "log_softmax"}
ON_LABELS = ("crossentropy", "cross_entropy", "hinge", "ctc", "dice", "tversky", "cosine", "kl_div", "circle")


@rule(
    code="unscaled_targets",
    kind=Kind.CAUSE,
    title="The targets are far from unit size",
    short="targets far from unit size",
    order=90,
    brings_about=("unbalanced_loss_terms", "dead_units", "saturated_units", *LONG_STEPS, *FAILED_RUN),
)
def unscaled_targets(trace: Trace) -> Finding | None:
    """Tell which targets are far from unit size, and what becomes of the run with and without scaling."""
    seen = verdict(trace)
    if (columns := _of_columns(trace)) is not None:
        return columns
    answers = (trace.probes.trial or TrialReading()).answers
    behind = not all(one.learned for one in in_the_end(trace)) or (answers is not None and bool(answers.lost))
    blamed = at_fault(trace, Setting.TARGETS) is not None
    held = blamed or behind or held_back_by(trace, SCALED_TARGETS, seen)
    if not held and not seen.end_over_baseline > FAR_FROM_BASELINE:
        return None
    healed = blamed or fixed_by(trace, SCALED_TARGETS) or _nearer_to_baseline(trace)
    tried = variation(trace, SCALED_TARGETS) is not None
    together = fixed_by(trace, ALL_SCALED)
    head = _far_head(trace, MAX_TARGET_RMS if held else UNREACHABLE_TARGET_RMS, own=healed)
    if head is None or (tried and not healed and not together):
        return None
    target = head.target or ArrayReading("")
    what = f"{target.name} has a root mean square of {rounded(_size(head))}"
    return Finding(
        code="unscaled_targets",
        title=f"The targets are not scaled: {what}",
        kind=Kind.CAUSE,
        severity=_severity(trace, head, seen),
        confidence=0.95 if healed else 0.7,
        explanation=_explanation(trace, head, what),
        step=seen.step,
        evidence=(
            Evidence(
                f"{what}, from {rounded(target.min)} to {rounded(target.max)}, mean {rounded(target.mean or 0.0)}.",
                _size(head),
                1.0,
                "the data; Efficient BackProp, section 4.3",
            ),
            *_first_answers(head),
            *_start(seen),
            *variation_evidence(trace, SCALED_TARGETS, *(() if healed else (ALL_SCALED,))),
        ),
        prescriptions=scale_targets(target.name, positive=_positive(target), units=head.units or 1),
    )


def _of_columns(trace: Trace) -> Finding | None:
    """Tell that columns of the targets differ in size, and that the small ones are learned only where they do not."""
    trial = trace.probes.trial or TrialReading()
    parts, result = trial.outputs, variation(trace, BALANCED_TERMS)
    if not of_columns(trial) or result is None or verdict(trace).unhealthy:
        return None
    lost = [one for one in parts if not one.learned]
    if not lost or (result.outputs_learned or 0) <= len(parts) - len(lost):
        return None
    large = max(parts, key=lambda one: one.baseline or 0.0)
    small = min(lost, key=lambda one: one.baseline or 0.0)
    ratio = (large.baseline or 0.0) / (small.baseline or math.inf)
    statement = (
        f"{small.name!r} ends at {rounded(small.end)}, where a constant prediction has {rounded(small.baseline)}; of "
        f"{large.name!r} that is {rounded(large.baseline)}, {rounded(ratio)} times as much"
    )
    beat = f"{len(parts) - len(lost)} of {len(parts)} columns beat a constant prediction as it is"
    proof = f"{beat}; {SCALED_TARGETS.words}, {result.outputs_learned} do."
    return Finding(
        code="unscaled_targets",
        title=f"The columns of the targets differ in size: {small.name!r} is not learned",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=PROVEN,
        explanation=(
            f"{statement}. The loss is a mean over the columns, and the largest one makes up nearly all of it: its "
            "error hides that the others are not learned."
        ),
        evidence=(
            Evidence(f"{statement}.", small.end, small.baseline, "this trial"),
            Evidence(proof, float(result.outputs_learned or 0), float(len(parts)), "this trial"),
        ),
        prescriptions=scale_targets("y", positive=False, units=len(parts)),
    )


def _nearer_to_baseline(trace: Trace) -> bool:
    """Return whether the only output ends far above its constant prediction, and many times nearer to it on scaled
    targets.

    It is asked of a loss of the user's own, whose baseline may be negative: differences count there, not ratios.
    """
    ended = in_the_end(trace)
    excess = (variation(trace, SCALED_TARGETS) or VariationResult()).excess
    if len(ended) != 1 or excess is None or ended[0].learned or None in (ended[0].end, ended[0].baseline):
        return False
    return (ended[0].end or 0.0) - (ended[0].baseline or 0.0) > NEARER * max(excess, 0.0)


def far_target(trace: Trace) -> ArrayReading | None:
    """Return the targets of a regression that are furthest from unit size, or None where none are far."""
    head = _far_head(trace, MAX_TARGET_RMS, own=False)
    return None if head is None else head.target


def _far_head(trace: Trace, size: float, *, own: bool) -> Head | None:
    judged = heads(trace) or (_own_heads(trace) if own else [])
    regressions = [head for head in judged if _regression(head)]
    large = [head for head in regressions if _size(head) > size]
    tiny = [head for head in regressions if own and 0.0 < _size(head) < 1.0 / size]  # Adam learns many of these
    return max(large, key=_size, default=None) or min(tiny, key=_size, default=None)


def _severity(trace: Trace, head: Head, seen: Verdict) -> Severity:
    """Return a notice where an adaptive optimizer is on its way to targets of moderate size all the same."""
    adaptive = trace.description.optimizer is not None and trace.description.optimizer.adaptive
    learns = seen.state == LEARNING and all(one.learned for one in in_the_end(trace))
    return Severity.NOTICE if adaptive and learns and _size(head) < UNREACHABLE_TARGET_RMS else Severity.CRITICAL


def _own_heads(trace: Trace) -> list[Head]:
    """Return the targets of a train step of the user's own, which compares them with what it likes."""
    if not trace.description.own_train_step:
        return []
    own = OutputDescription(loss="the loss of the train step", custom=True)
    targets = arrays(trace, parts=("targets",))
    return [Head(own, target, OutputReading(), (), place) for place, target in enumerate(targets)]


def _size(head: Head) -> float:
    """Return the root mean square of the targets, without outliers."""
    return (None if head.target is None else head.target.rms_without_outliers) or 0.0


def _positive(target: ArrayReading) -> bool:
    """Return whether all targets are positive and span more than an order of magnitude."""
    return target.min is not None and target.max is not None and 0 < LOGARITHMIC_RANGE * target.min < target.max


def _regression(head: Head) -> bool:
    if head.target is None or any(word in head.loss.lower() for word in ON_LABELS):
        return False
    percentage = "percentage" in head.loss or "logarithmic" in head.loss  # the loss scales by itself
    return head.activation not in BOUNDED and not percentage


def _explanation(trace: Trace, head: Head, what: str) -> str:
    if _size(head) < 1.0:
        return (
            f"An untrained net predicts values of about 1, and {what}: the first error is the net's own answer, "
            "and the steps that take it away are as large as all there is to learn."
        )
    optimizer, rate = trace.description.optimizer, trace.description.learning_rate
    if optimizer is not None and optimizer.adaptive and rate:
        steps = (
            f" {optimizer.name} changes each weight by about {rounded(rate)} a step, so it needs many steps to reach "
            "outputs of that size."
        )
    else:
        steps = " Plain gradient steps are proportional to the gradient, and so that many times too long."
    return (
        f"An untrained net predicts values near 0, and {what}: the first error is the target itself, and with "
        f"{head.loss} the last layer's gradient grows with it, far beyond what initial weights and learning rates "
        f"are made for.{steps}"
    )


def _first_answers(head: Head) -> tuple[Evidence, ...]:
    rms = number(head.measured.rms)
    if rms is None:
        return ()
    return (
        Evidence(
            f"The untrained net's outputs have a root mean square of {rounded(rms)}.",
            rms,
            _size(head),
            "one batch before the trial; expected: that of the targets",
        ),
    )


def _start(seen: Any) -> tuple[Evidence, ...]:
    if not seen.start_over_baseline >= 2.0:
        return ()
    statement = (
        f"The run began at a loss of {rounded(seen.start)}; a constant prediction gives {rounded(seen.baseline)}."
    )
    return (Evidence(statement, seen.start, seen.baseline, "this trial, and the targets alone"),)
