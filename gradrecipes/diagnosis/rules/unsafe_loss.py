"""unsafe_loss: a loss, or an operation in the net, that returns NaN or Inf for values that the net reaches.

## What it does
Follows the autopsy of a failing step to the loss, its derivative, or a layer without weights that returned NaN or Inf
for finite inputs; and evaluates a user's own loss at the outputs of the untrained net and at the limits of its last
activation: float32 rounds a sigmoid to exactly 0 and 1, a softmax to exactly 0. Keras' own losses clip and are not
reported, except for the percentage error of targets that are 0. A problem that only occurs where prediction and target
are equal to the last bit is reported only once it has happened.

## Why it is bad
log(0) is -inf, 0 * inf is NaN, and the derivative of a square root at 0 is infinite: one such sample makes the gradient
of its whole batch NaN, and after one step all the weights. It happens late, when the net has become good.

## Example
```python
def loss(y, p):
    return -keras.ops.mean(y * keras.ops.log(p) + (1 - y) * keras.ops.log(1 - p))
```

## Remedy
Keras' own loss on logits; otherwise a small constant inside the logarithm, the square root or the denominator.

## References
- Goodfellow, Bengio, Courville, "Deep Learning", section 4.1: overflow and underflow.
- The square root's slope at 0 and `where`: TensorFlow issue 38349, JAX FAQ "gradients contain NaN where using where".
"""

from __future__ import annotations

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import Offender, in_words, listed
from gradrecipes.core.trace.data_reading import ArrayReading
from gradrecipes.core.trace.probes import ForwardPassReading
from gradrecipes.diagnosis.facts.data_facts import (
    Head,
    autopsy,
    autopsy_readings,
    heads,
    is_held_back,
    largest_output,
    offenders,
)
from gradrecipes.diagnosis.facts.readings import layers, number, rounded
from gradrecipes.diagnosis.outcome import BROKEN, UNKNOWN, losses, verdict
from gradrecipes.diagnosis.prescriptions import prescription, safe_cross_entropy
from gradrecipes.diagnosis.registry import LONG_STEPS, rule

HUGE_PERCENTAGE_ERROR = 1e5  # percentage error in percent: a thousand times the target
ZERO_TARGETS = 1e-3  # share of the targets that are 0 from which nearly every batch of 32 epochs meets one
BOUNDED_ENDS = {"0", "1", "-1", "one class"}
ENDING_AT_0 = {"relu", "relu6", "softplus", "exponential"}
NEAR_THE_END = 0.999  # of a sigmoid whose input is 7; at 17, a long training away, float32 makes it 1

Said = tuple[str, str, Severity, float, tuple[Evidence, ...], tuple[Prescription, ...], str | None]


def at_the_start(trace: Trace) -> Said | None:
    """Say that the loss is no number for the answers of the untrained net on the user's own targets."""
    if verdict(trace).state not in (BROKEN, UNKNOWN):
        return None  # the train step uses the loss in another way
    for head in heads(trace):
        point = next((one for one in head.points if one.at == "outputs"), None)
        if head.of_keras or point is None or point.finite or (head.target or ArrayReading("")).nonfinite:
            continue
        broken, found = ("value", point.value) if point.value != "finite" else ("gradient", point.gradient)
        samples = f", for {listed(point.samples)}" if point.samples else ""
        statement = (
            f"On the first batch the {broken} of {head.name!r} is {in_words(found)}{samples}, although the net's "
            f"outputs lie between {rounded(head.measured.min or 0.0)} and {rounded(head.measured.max or 0.0)}"
        )
        return (
            f"The loss {head.name!r} is {in_words(found)} from the first batch on",
            f"{statement}. Part of it is not finite there: a logarithm of 0 or less, a square root at 0, or a "
            "division by a target that is 0.",
            Severity.CRITICAL,
            0.95,
            (Evidence(f"{statement}.", None, None, "the loss on one batch, before the trial"), *_zeros(head)),
            (prescription("safe_arithmetic"), *safe_cross_entropy([head]), prescription("guard")),
            None,
        )
    return None


def percentage(trace: Trace) -> Said | None:
    """Say that Keras' percentage error divides by targets that are 0."""
    seen = verdict(trace)
    for head in heads(trace):
        target = head.target or ArrayReading("")
        share = target.share_zero or 0.0
        if head.loss != "mean_absolute_percentage_error" or not head.of_keras or share < ZERO_TARGETS:
            continue
        if not (is_held_back(trace, seen) or seen.start > HUGE_PERCENTAGE_ERROR):
            continue
        statement = (
            f"{rounded(100 * share)}% of {target.name} are 0; the percentage error divides by them, or by 1e-7 in "
            f"their place, and began at {rounded(seen.start)}%"
        )
        return (
            "A percentage error of targets that are 0",
            f"{statement}. Such a sample counts ten million times as much as one whose target is 1, and its "
            "gradient outweighs all others.",
            Severity.CRITICAL,
            0.9,
            (Evidence(f"{statement}.", share, 0.0, "the data, and this trial"),),
            (prescription("undivided_error"),),
            None,
        )
    return None


def ends(trace: Trace) -> Said | None:
    """Say that a loss of one's own is no number at the end of the last activation, which training drives at."""
    for head in heads(trace):
        bad = [one for one in head.points if one.at in BOUNDED_ENDS and not one.finite]
        if head.of_keras or not bad or not _comes_near(trace, head):
            continue
        at = " and ".join(one.at for one in bad)
        activation = bad[0].activation
        where = "for a single class" if at == "one class" else f"at exactly {at}"
        statement = (
            f"The loss {head.name!r} is not finite where the {activation} of {head.output.name!r} is certain of a class"
            if at == "one class"
            else f"The loss {head.name!r} or its gradient is not finite at the limit of a {activation}, {where}"
        )
        return (
            f"The loss {head.name!r} is not finite {where}, which its {activation} reaches in training",
            f"{statement}. This run has not reached it, but float32 rounds the {activation} to its limit as soon "
            "as the net is certain, whether it has learned or diverged; one such sample then makes all weights "
            "NaN.",
            Severity.WARNING,
            0.8,
            (Evidence(f"{statement}.", None, None, "the loss on one batch, a part of the predictions moved there"),),
            (prescription("safe_arithmetic"), *safe_cross_entropy([head])),
            None,
        )
    return None


def _comes_near(trace: Trace, head: Head) -> bool:
    """Say whether the trial brought a bounded last activation close to its end; where that is not known, it did."""
    last = next((layer for layer in reversed(layers(trace, "after")) if layer.activation == head.activation), None)
    if last is None:
        return True
    if head.activation in ENDING_AT_0:
        return (last.zero_share or 0.0) > 0.0
    if head.activation not in ("sigmoid", "softmax", "tanh"):
        return True
    largest = number(last.output_max)
    return largest is None or largest >= NEAR_THE_END


def points(trace: Trace, own: list[Head]) -> tuple[Evidence, ...]:
    """Return where the losses of the user's own are no number when they are evaluated by themselves."""
    found = []
    for head in own:
        bad = [one.at for one in head.points if not one.finite]
        if bad:
            statement = f"Evaluated by itself, {head.name!r} is not finite at these predictions: {', '.join(bad)}."
            found.append(Evidence(statement, None, None, "the loss on one batch, before the trial"))
    return tuple(found)


def _zeros(head: Head) -> tuple[Evidence, ...]:
    target = head.target or ArrayReading("")
    share = target.share_zero
    if not share:
        return ()
    return (Evidence(f"{rounded(100 * share)}% of {target.name} are exactly 0.", share, None, "the data"),)


SAFE_OUTPUT = 1e4  # output up to which a squared error, its sum and its gradient are far from overflowing
SAFE_EXPONENT = 50.0  # input up to which exp stays far from overflowing float32, which it does at 88.7


@rule(
    code="unsafe_loss",
    kind=Kind.CAUSE,
    title="The loss is NaN or infinite for outputs that can occur",
    short="a loss that is not finite somewhere",
    order=50,
    brings_about=(
        "frozen_weights",
        "unbalanced_loss_terms",
        "exploding_gradient",
        "nonfinite_loss",
        "broken_validation",
        "diverging_loss",
        "stalled_loss",
        *LONG_STEPS,
    ),
)
def unsafe_loss(trace: Trace) -> Finding | None:
    """Tell where the loss, or an operation, gives NaN or Inf, and whether the run has met it."""
    said = _broken_loss(trace) or _broken_operation(trace) or at_the_start(trace) or percentage(trace) or ends(trace)
    said = said or _derivative(trace)
    if said is None:
        return None
    title, explanation, severity, sure, evidence, prescriptions, layer = said
    return Finding(
        code="unsafe_loss",
        title=title,
        kind=Kind.CAUSE,
        severity=severity,
        confidence=sure,
        explanation=explanation,
        layer=layer,
        step=verdict(trace).step,
        evidence=evidence,
        prescriptions=prescriptions,
    )


def _first(trace: Trace) -> Offender | None:
    first = next(iter(offenders(trace)), None)
    return first if first is not None and isinstance(first.found, str) else None


def _broken_loss(trace: Trace) -> Said | None:
    """Say that a step broke in the loss or in its derivative, with finite numbers before it."""
    first = _first(trace)
    if first is None or first.kind not in ("loss", "gradient"):
        return None
    if first.kind == "gradient" and first.layer is not None:
        return None
    operation = autopsy(trace).operation
    if operation is not None and operation.overflows_float16:
        return None  # the range of the dtype is what is too small
    own = [head for head in heads(trace) if not head.of_keras]
    structure = trace.description
    added = first.kind == "loss" and first.layer is not None
    if not (own or added or structure.own_loss or structure.own_train_step):
        return None
    largest = largest_output(trace)
    limit = SAFE_EXPONENT if added and first.found != "nan" else SAFE_OUTPUT
    if largest is not None and largest > limit:
        return None  # the net had run away before: a square, a sum or an exponential overflows then
    if largest is None and _ran_away(trace):
        return None
    name = f"what {first.layer} adds to the loss" if added else f"the loss {own[0].name!r}" if own else "the loss"
    part = "its derivative" if first.kind == "gradient" else "it"
    where = f", for {listed(first.samples)} of the batch" if first.samples else ""
    found = in_words(first.found)
    statement = f"The step broke in {name}: {part} became {found}{where}, while all its inputs were finite"
    largest_said = "" if largest is None else f" and at most {rounded(largest)} in size"
    return (
        _title(trace, name) or f"{name[0].upper()}{name[1:]} returns {found} for finite predictions",
        f"{statement}{largest_said}. {first.sentence} {_arithmetic(trace)}".rstrip(),
        Severity.CRITICAL,
        0.95,
        (
            Evidence(f"{statement}{largest_said}.", None, None, "autopsy of the step that broke"),
            *points(trace, own),
            *_swept(trace),
        ),
        (prescription("safe_arithmetic"), *safe_cross_entropy(own), prescription("guard")),
        first.layer if added else None,
    )


def _ran_away(trace: Trace) -> bool:
    """Say whether a loss or a gradient was beyond what finite outputs of usual size give, before anything broke."""
    sizes = np.abs(np.concatenate([losses(trace), trace.gradient_norm.astype(float)]))
    return bool(np.max(sizes, where=np.isfinite(sizes), initial=0.0) > SAFE_OUTPUT**2)


def _title(trace: Trace, where: str) -> str:
    operation = autopsy(trace).operation
    return "" if operation is None else f"{operation.words[0].upper()}{operation.words[1:]}, in {where}"


def _arithmetic(trace: Trace) -> str:
    """Return which operation broke, in a sentence; empty where it could not be seen."""
    operation = autopsy(trace).operation
    if operation is None:
        return ""
    when = " in the backward pass" if operation.backward else ""
    return f"The operation that breaks{when} is {operation.words}: {operation.name} ({operation.type})."


def _swept(trace: Trace) -> tuple[Evidence, ...]:
    """Name the samples for which the untrained net has no loss, by their place in all the data."""
    probe = trace.probes.forward_pass or ForwardPassReading()
    bad = probe.nonfinite_samples
    if probe.nonfinite_batch:
        statement = (
            "A batch drawn at random has no finite loss with the initial weights, though each of its samples has"
        )
        return (Evidence(f"{statement}: {listed(probe.nonfinite_batch[:5])}, …", 1, 0, "batches drawn as in fit"),)
    if not bad:
        return ()
    statement = f"With the initial weights the loss, or its derivative, is not finite for {listed(bad)} of all the data"
    return (Evidence(f"{statement}.", len(bad), 0, f"forward pass over {probe.samples} samples"),)


def _broken_operation(trace: Trace) -> Said | None:
    """Say that a layer without weights, or arithmetic of the model's own, made NaN or Inf out of finite numbers."""
    first = _first(trace)
    if first is None or first.kind not in ("layer_output", "gradient") or not first.layer:
        return None
    operation = autopsy(trace).operation
    if operation is not None and operation.type == "Cast" and "float16" in str(trace.description.precision):
        return None  # the range of the dtype is what is too small
    layer = first.layer
    about = next((one for one in trace.description.layers if one.name == layer), None)
    if about is not None and not about.custom and ((about.parameters or 0) > 0 or about.activation):
        return None  # weights or an activation that overflow have other causes
    reading = next((one for one in autopsy_readings(trace) if one.layer == layer), None)
    entered = None if reading is None else number(reading.input_rms)
    limit = SAFE_OUTPUT if first.found == "nan" or first.kind == "gradient" else SAFE_EXPONENT
    if entered is not None and entered > limit:
        return None
    if first.kind == "gradient" and _ran_away(trace):
        return None  # the gradient had overflowed before
    largest = largest_output(trace)
    if about is None and largest is not None and largest > SAFE_OUTPUT:
        return None  # arithmetic of the whole model: what entered it stands with its layers
    what = f"the layer {layer!r}" + (f" ({about.kind})" if about and about.kind else "")
    part = "the gradient on its way back through" if first.kind == "gradient" else "the output of"
    size = "" if entered is None else f" of root mean square {rounded(entered)}"
    statement = f"The step broke in {what}: {part} it became {in_words(first.found)}, while its input{size} was finite"
    return (
        _title(trace, repr(layer)) or f"An operation in {layer!r} returns {in_words(first.found)} for finite inputs",
        f"{statement}. {first.sentence} {_arithmetic(trace)}",
        Severity.CRITICAL,
        0.9,
        (Evidence(f"{statement}.", None, None, "autopsy of the step that broke"), *_swept(trace)),
        (prescription("safe_arithmetic"), prescription("guard")),
        layer,
    )


def _derivative(trace: Trace) -> Said | None:
    """Say that the very first gradient of a step of the user's own is no number, though all it comes from is one."""
    seen, read = verdict(trace), layers(trace)
    own = trace.description.own_train_step
    first = losses(trace)[:1]
    usual = bool(read) and all((one.output_rms or 0.0) < SAFE_OUTPUT and not one.nonfinite_share for one in read)
    if (
        seen.state != BROKEN
        or seen.step != 0
        or not own
        or not usual
        or not np.isfinite(first).all()
        or offenders(trace)
    ):
        return None
    statement = (
        f"The first step has a loss of {rounded(float(first[0]))}, finite layer outputs, and a gradient that is NaN"
    )
    return (
        "Part of the train step has no derivative at the initial weights",
        f"{statement}. The derivative of a square root at 0 is infinite, and infinity times 0 is NaN: this happens "
        "for the norm of a gradient or of a difference that is exactly 0 at first, and in the branch of a `where` "
        "that is not taken.",
        Severity.CRITICAL,
        0.85,
        (Evidence(f"{statement}.", None, None, "the first step of the trial"),),
        (prescription("safe_arithmetic"), prescription("guard")),
        None,
    )
