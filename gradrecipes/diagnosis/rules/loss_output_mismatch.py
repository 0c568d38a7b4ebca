"""loss_output_mismatch: the loss, the last activation and the labels do not belong together.

## What it does
Compares what the loss expects with what it gets, from the structure, the output of the untrained net, and the targets:
probabilities or logits, one unit or several, class numbers or one-hot rows, 0 and 1 or -1 and 1, shapes that are
silently broadcast, targets that the last activation cannot reach; of a few such targets it is asked whether the same
net with a linear last layer ends at less than half the loss. What Keras converts by itself (the logits before a
softmax, `(n,)` against `(n, 1)`, 0 and 1 with a hinge) is taken into account, and measured where it may fail. In a
train step of one's own, the values tell that each binary cross-entropy gets, and those that a discriminator gets. A
loss of one's own that is 0 at the targets and below 0 beyond them, as an overlap is, needs outputs that are bounded;
one that is larger at the targets than at those of other samples has the wrong sign. A loss of Keras' that is the same
for both, as one with a label smoothing of 1, tells the net nothing.

## Why it is bad
Most of these run without an error, and the loss even falls. The net then learns another task than intended, with a
fraction of the gradient, towards minus infinity, or nothing.

## Example
```python
keras.layers.Dense(10)                                 # logits
model.compile("adam", "sparse_categorical_crossentropy")  # expects probabilities
```

## Remedy
A linear last layer with `from_logits=True`, or a softmax (sigmoid) without; labels in the form the loss takes.

## References
- https://keras.io/api/losses/probabilistic_losses/ and the source, keras/src/backend/tensorflow/nn.py.
- Goodfellow, Bengio, Courville, "Deep Learning", section 6.2.2: output units and their losses.
"""

from __future__ import annotations

from dataclasses import replace

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import DataReading, Setting
from gradrecipes.core.trace.probes import LossReading
from gradrecipes.core.trace.trial_reading import LINEAR_HEAD, TrialReading, VariationResult
from gradrecipes.diagnosis.facts.activation_mismatches import PROBABILITIES, activation_mismatches, reaches_partly
from gradrecipes.diagnosis.facts.data_facts import Head, heads, is_held_back
from gradrecipes.diagnosis.facts.divergences import at_fault, end_over_baseline, left_of_error
from gradrecipes.diagnosis.facts.label_mismatches import all_with_all, label_mismatches, one_label
from gradrecipes.diagnosis.facts.mismatch import Mismatch, class_of, compile_with, from_logits
from gradrecipes.diagnosis.facts.readings import number, rounded
from gradrecipes.diagnosis.outcome import HALVED_END, Verdict, variation, verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import FAILED_RUN, LONG_STEPS, rule
from gradrecipes.diagnosis.rules.unbounded_loss import falls_for_ever

AT_TARGETS = 0.01  # loss at the targets over that at the net's own answers, of a loss that measures a difference
REWARD_OF_WRONG = 0.01  # loss at the targets above that at other answers, over the largest of them
AS_GOOD = 1e-6  # relative difference of the loss at right answers from that at wrong ones: float32 rounding
CHANGE_TARGETS = ("label_smoothing", "axis", "ignore_class")  # settings that are named where they are not 0
MIN_COST = 0.05  # loss that a last activation costs, over the baseline: the share of the targets that is asked about
BELOW_TARGETS = 0.1  # loss at twice the targets, below 0, over the same; the smoothing of an overlap changes less


@rule(
    code="loss_output_mismatch",
    kind=Kind.CAUSE,
    title="Loss, last activation and labels do not fit together",
    short="loss, output and labels that do not fit together",
    order=30,
    brings_about=(
        "failing_step",
        "unsafe_loss",
        "unbounded_loss",
        "frozen_weights",
        "unscaled_targets",
        "unscaled_loss_weights",
        "unbalanced_loss_terms",
        "excessive_regularization",
        "dead_units",
        "attention_logit_growth",
        "broken_validation",
        "vanishing_gradient",
        *LONG_STEPS,
        *FAILED_RUN,
    ),
)
def loss_output_mismatch(trace: Trace) -> Finding | None:
    """Tell what the loss expects and what it gets instead."""
    seen = verdict(trace)
    structure = trace.description
    own = structure.own_train_step or structure.own_loss
    held_back = is_held_back(trace, seen) or trace.probes.failure is not None
    reached = _reached_by_linear(trace, seen)
    found = []
    if not own or held_back:  # else the compiled loss is used in a way of its own, and it works
        found = [
            misfit
            for head in heads(trace)
            for misfit in (*label_mismatches(head), *activation_mismatches(head))
            if held_back or not misfit.only_if_held_back or (reached is not None and reaches_partly(head))
        ]
    found += [misfit for head in heads(trace) if (misfit := _better_than_right(head)) is not None]
    found += [misfit for head in heads(trace) if (misfit := _worse_when_right(head)) is not None]
    found += [misfit for head in heads(trace) if (misfit := _no_better_when_right(head)) is not None]
    if not any(layer.kernel for layer in structure.frozen):  # a generator is trained for the one label of real data
        found += [misfit for head in heads(trace) if (misfit := one_label(head)) is not None]
    found += _outdone(trace) or _of_own_step(trace) or _of_cross_entropies(trace)
    found += _of_rivals(trace)
    if (trace.probes.trial or TrialReading()).pairs_samples is False:
        found.append(all_with_all("The loss of the model's own train step", "y"))
    if not found:
        return None
    found.sort(key=lambda misfit: (misfit.severity.rank, -misfit.sure))
    first = found[0]
    return Finding(
        code="loss_output_mismatch",
        title=first.title,
        kind=Kind.CAUSE,
        severity=first.severity,
        confidence=first.sure if not own else min(first.sure, 0.8),
        explanation=" ".join(f"{misfit.statement} {misfit.consequence}" for misfit in found[:2]),
        evidence=(*map(_evidence, found), *_failure(trace), *([] if reached is None else [reached])),
        prescriptions=tuple({misfit.prescription.title: misfit.prescription for misfit in found}.values()),
    )


def _reached_by_linear(trace: Trace, seen: Verdict) -> Evidence | None:
    """Return the evidence that a last activation costs a net that learns the better part of its loss, or None."""
    linear, own = (variation(trace, LINEAR_HEAD) or VariationResult()).end, end_over_baseline(trace) * seen.baseline
    if linear is None or not own - linear > MIN_COST * seen.baseline or not linear < HALVED_END * own:
        return None
    words = f"In as many steps the loss ends at {rounded(own)}, and at {rounded(linear)} {LINEAR_HEAD.words}."
    return Evidence(words, own, linear, "this trial")


def _better_than_right(head: Head) -> Mismatch | None:
    """Return the mismatch of a loss that is 0 at the targets, and below that beyond them, where nothing bounds answers.

    An overlap, such as Dice, is a share only of answers between 0 and 1.
    """
    own, right, twice = head.measured.beyond or (0.0, 0.0, 0.0)
    if not own > 0 or abs(right) > AT_TARGETS * own or not twice < -BELOW_TARGETS * own:
        return None
    return Mismatch(
        title=f"The loss {head.name!r} rewards outputs beyond the targets, and nothing bounds them",
        statement=(
            f"The loss {head.name!r} is {rounded(own)} at the net's own outputs, {rounded(right)} at the targets, and "
            f"{rounded(twice)} at twice the targets; the output is linear."
        ),
        consequence="It is made for answers between 0 and 1: outputs that leave that range are rewarded for being "
        "wrong, and the loss falls below that of the right answer.",
        measured=twice,
        expected=right,
        prescription=prescription("bounded_output", units=head.units or 1),
        sure=0.9,
    )


def _worse_when_right(head: Head) -> Mismatch | None:
    """Return the mismatch of a loss that is larger at the targets than at those of other samples: its sign is wrong."""
    own, right, wrong = head.measured.mispaired or (0.0, 0.0, 0.0)
    if falls_for_ever(head.measured.far_losses) or head.of_keras:
        return None  # the rule of unbounded losses tells more
    if not right - max(own, wrong) > REWARD_OF_WRONG * max(abs(own), abs(right), abs(wrong)):
        return None
    return Mismatch(
        title=f"The loss {head.name!r} is larger for right answers than for wrong ones",
        statement=(
            f"The loss {head.name!r} is {rounded(right)} where each answer is its target, {rounded(wrong)} where it is "
            f"the target of another sample, and {rounded(own)} at the net's own outputs."
        ),
        consequence="Training lowers the loss, and so makes the answers worse: a score was taken for a loss, or a sign "
        "is missing.",
        measured=right,
        expected=wrong,
        prescription=prescription("turned_loss"),
        sure=0.9,
    )


def _no_better_when_right(head: Head) -> Mismatch | None:
    """Return the mismatch of a loss of Keras' that is set so that right answers are no better than wrong ones."""
    if not head.of_keras or head.measured.mispaired is None:
        return None
    _, right, wrong = head.measured.mispaired
    if not abs(right - wrong) <= AS_GOOD * abs(wrong):
        return None
    usual = f"keras.losses.{class_of(head.loss)}()"
    given = {name: value for name, value in head.output.config.items() if name in CHANGE_TARGETS and value}
    settings = "".join(f", with {name}={value}" for name, value in given.items())
    return Mismatch(
        title=f"The loss {head.name!r} is the same for right answers and for wrong ones",
        statement=(
            f"The loss {head.name!r}{settings} is {rounded(right)} where each answer is its target, and "
            f"{rounded(wrong)} where it is the target of another sample."
        ),
        consequence="Training lowers the loss, and no answer is better for being right: nothing can be learned.",
        measured=right,
        expected=wrong,
        prescription=compile_with(
            from_logits(head.loss, head.from_logits) if "crossentropy" in head.loss else usual,
            "Use the loss with its usual settings",
            "With them a right answer has a lower loss than a wrong one.",
        ),
        sure=0.9,
    )


def _outdone(trace: Trace) -> list[Mismatch]:
    """Return that the same net learns far more under the loss that fits its targets, and a linear last layer."""
    twin = at_fault(trace, Setting.LOSS)
    added = (trace.probes.trial or TrialReading()).penalties is not None  # what layers add may be at fault as well
    if twin is None or not twin.loss or added:
        return []
    return [
        Mismatch(
            title="The same net learns far more under the usual loss of its targets",
            statement=(
                f"In the end {left_of_error(twin)}, and with this loss, last activation and train step it falls behind "
                "as well."
            ),
            consequence="What is minimized does not lead to the targets.",
            measured=twin.own,
            expected=twin.own_linear,
            prescription=compile_with(
                twin.loss,
                "Use the usual loss of these targets on a linear last layer",
                "With it the same net learns them in as many steps.",
            ),
            sure=0.85,
        )
    ]


def _of_own_step(trace: Trace) -> list[Mismatch]:
    """Return what does not fit in a train step of the user's own, whose loss equals one of Keras' in value."""
    outputs, measured = trace.description.outputs, (trace.probes.loss or LossReading()).outputs
    arrays = (trace.probes.data or DataReading()).targets
    if not trace.description.own_train_step or len(outputs) != 1 or len(measured) != 1 or outputs[0].loss is not None:
        return []
    output, last = outputs[0], next((layer for layer in reversed(trace.description.layers) if layer.activation), None)
    low, high = number(measured[0].min), number(measured[0].max)
    if not output.certain and last is not None and low is not None and high is not None and 0 <= low <= high <= 1:
        activation = str(last.activation)
        output = replace(output, activation=activation, certain=activation in PROBABILITIES)
    head = Head(output, arrays[0] if len(arrays) == 1 and arrays[0].numeric else None, measured[0], (), 0)
    if not head.known:
        return []
    advice = prescription(
        "loss_of_train_step", loss=class_of(head.loss), taken=head.from_logits, given=not head.from_logits
    )
    critical = (misfit for misfit in activation_mismatches(head) if misfit.severity is Severity.CRITICAL)
    return [replace(misfit, prescription=advice) for misfit in critical]


def _of_cross_entropies(trace: Trace) -> list[Mismatch]:
    """Return which binary cross-entropies of a user's train step get what they do not take."""
    found = []
    for call in (trace.probes.loss or LossReading()).misread:
        taken, given = ("logits", "probabilities") if call.from_logits else ("probabilities", "logits")
        several = (
            f"{call.calls} cross-entropies of the train step take"
            if call.calls > 1
            else "A cross-entropy of the train step takes"
        )
        where = f"{several} answers between {rounded(call.min)} and {rounded(call.max)}"
        above = call.from_logits or call.max > 1.0
        advice = prescription("cross_entropy_of_train_step", taken=taken, given=given, fits=not call.from_logits)
        found.append(
            Mismatch(
                title=f"A binary cross-entropy of the train step expects {taken} and gets {given}",
                statement=f"{where}, the outputs of a sigmoid, for logits."
                if call.from_logits
                else f"{where} for probabilities.",
                consequence="It applies a second sigmoid: even the best answer is far from certain, and gradients are "
                "a fraction of what they should be."
                if call.from_logits
                else "Keras clips them to the range from 0 to 1: outside of it the gradient is 0, and nothing is "
                "learned from those samples.",
                measured=call.max if above else call.min,
                expected=1.0 if above else 0.0,
                prescription=advice,
            )
        )
    return found


def _of_rivals(trace: Trace) -> list[Mismatch]:
    """Return which nets of a train step, such as a generator, cannot answer what their answers are compared with."""
    return [
        Mismatch(
            title=f"The data lie outside of what the {one.activation} of {one.maker!r} can reach",
            statement=(
                f"{one.judge!r} gets data between {rounded(one.min)} and {rounded(one.max)}, and the answers of "
                f"{one.maker!r}, which end in a {one.activation} and lie between {one.low:g} and {one.high:g}: "
                f"{rounded(100 * one.share)}% of the data lie outside."
            ),
            consequence="Their size alone tells data and answers apart, and training cannot change that.",
            measured=one.max if one.max > one.high else one.min,
            expected=one.high if one.max > one.high else one.low,
            prescription=prescription(
                "data_within_reach",
                activation=one.activation,
                low=f"{one.low:g}",
                high=f"{one.high:g}",
                width=f"{one.high - one.low:g}",
            ),
        )
        for one in (trace.probes.loss or LossReading()).unreached
    ]


def _evidence(misfit: Mismatch) -> Evidence:
    return Evidence(misfit.statement, misfit.measured, misfit.expected, "structure, data, and one batch; keras.losses")


def _failure(trace: Trace) -> tuple[Evidence, ...]:
    failure = trace.probes.failure
    if failure is None:
        return ()
    return (Evidence(f"A training step raises: {failure.message}", source="TensorFlow and Keras"),)
