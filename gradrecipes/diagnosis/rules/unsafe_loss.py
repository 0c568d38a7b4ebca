"""unsafe_loss: a loss, or an operation in the net, that gives NaN or Inf for values that the net does reach.

## What it does
Follows the autopsy of a broken step to the loss, its derivative, or a layer without weights that was given sound
numbers and made none of them; and evaluates a loss of one's own where the net begins and where its last activation
ends: float32 takes a sigmoid to exactly 0 and 1, a softmax to exactly 0. Keras' own losses clip and are let be, but for
the percentage error of targets that are 0. What is only met where prediction and target are equal to the last bit is
told only once it has happened.

## Why it is bad
log(0) is -inf, 0 * inf is NaN, and the slope of a square root at 0 is infinite: one sample that gets there makes the
gradient of its whole batch NaN, and with one step all the weights. It happens late, when the net has become good.

## Example
```python
def loss(y, p):
    return -keras.ops.mean(y * keras.ops.log(p) + (1 - y) * keras.ops.log(1 - p))
```

## Remedy
Keras' own loss on logits; else a small constant inside the logarithm, the root or the denominator.

## References
- Goodfellow, Bengio, Courville, "Deep Learning", section 4.1: overflow and underflow.
- The square root's slope at 0 and `where`: TensorFlow issue 38349, JAX FAQ "gradients contain NaN where using where".
"""

from __future__ import annotations

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import Offender, listed
from gradrecipes.core.trace.probes import ForwardPassReading
from gradrecipes.diagnosis.facts.data_facts import autopsy, autopsy_readings, heads, largest_output, offenders
from gradrecipes.diagnosis.facts.readings import number, say
from gradrecipes.diagnosis.facts.signals import layers
from gradrecipes.diagnosis.facts.unsafe_points import Said, at_the_start, ends, percentage, points, word
from gradrecipes.diagnosis.outcome.verdict import BROKEN, losses, verdict
from gradrecipes.diagnosis.prescriptions.prescribe import prescription, safe_cross_entropy
from gradrecipes.diagnosis.registry import rule

SANE = 1e4  # output up to which a squared error, its sum and its gradient are far from overflowing
EXPONENT = 50.0  # input up to which exp stays far from overflowing float32, which it does at 88.7


@rule(
    code="unsafe_loss",
    kind=Kind.CAUSE,
    title="The loss is NaN or infinite for outputs that can occur",
    short="a loss that is not finite somewhere",
    order=50,
    explained_by=(
        "nonfinite_data",
        "corrupt_batch",
        "loss_output_mismatch",
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
    """Say that a step broke in the loss or in its derivative, with sound numbers before it."""
    first = _first(trace)
    if first is None or first.kind not in ("loss", "gradient"):
        return None
    if first.kind == "gradient" and first.layer is not None:
        return None
    own = [head for head in heads(trace) if not head.of_keras]
    structure = trace.description
    added = first.kind == "loss" and first.layer is not None
    if not (own or added or structure.own_loss or structure.own_train_step):
        return None
    largest = largest_output(trace)
    limit = EXPONENT if added and first.found != "nan" else SANE
    if largest is not None and largest > limit:
        return None  # the net had run away before: a square, a sum or an exponential overflows then
    name = f"what {first.layer} adds to the loss" if added else f"the loss {own[0].name!r}" if own else "the loss"
    part = "its derivative" if first.kind == "gradient" else "it"
    where = f", for {listed(first.samples)} of the batch" if first.samples else ""
    statement = f"The step broke in {name}: {part} became {word(first.found)}{where}, while all that entered was finite"
    largest_said = "" if largest is None else f" and at most {say(largest)} in size"
    return (
        _title(trace, name) or f"{name[0].upper()}{name[1:]} gives {word(first.found)} for predictions that are finite",
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
    if not bad:
        return ()
    statement = f"At the first weights the loss, or its slope, is not finite for {listed(bad)} of all the data"
    return (Evidence(f"{statement}.", len(bad), 0, f"{probe.samples} samples sent through the net"),)


def _broken_operation(trace: Trace) -> Said | None:
    """Say that a layer without weights, or arithmetic of the model's own, made NaN or Inf out of sound numbers."""
    first = _first(trace)
    if first is None or first.kind not in ("layer_output", "gradient") or not first.layer:
        return None
    layer = first.layer
    about = next((one for one in trace.description.layers if one.name == layer), None)
    if about is not None and not about.custom and ((about.parameters or 0) > 0 or about.activation):
        return None  # weights or an activation that overflow have other causes
    reading = next((one for one in autopsy_readings(trace) if one.layer == layer), None)
    entered = None if reading is None else number(reading.input_rms)
    limit = SANE if first.found == "nan" or first.kind == "gradient" else EXPONENT
    if entered is not None and entered > limit:
        return None
    largest = largest_output(trace)
    if about is None and largest is not None and largest > SANE:
        return None  # arithmetic of the whole model: what entered it stands with its layers
    what = f"the layer {layer!r}" + (f" ({about.kind})" if about and about.kind else "")
    part = "the gradient on its way back through" if first.kind == "gradient" else "the output of"
    size = "" if entered is None else f" of root mean square {say(entered)}"
    statement = f"The step broke in {what}: {part} it became {word(first.found)}, while its input{size} was finite"
    return (
        _title(trace, repr(layer))
        or f"An operation in {layer!r} gives {word(first.found)} for numbers that are finite",
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
    sound = bool(read) and all((one.output_rms or 0.0) < SANE and not one.nonfinite_share for one in read)
    if (
        seen.state != BROKEN
        or seen.step != 0
        or not own
        or not sound
        or not np.isfinite(first).all()
        or offenders(trace)
    ):
        return None
    statement = (
        f"The first step has a loss of {say(float(first[0]))}, layers that are finite, and a gradient that is NaN"
    )
    return (
        "Something in the train step has no derivative where the net begins",
        f"{statement}. The slope of a root at 0 is infinite, and infinity times 0 is NaN: a norm of a gradient or of a "
        "difference that is exactly 0 at first does that, and so does the branch of a `where` that is not taken.",
        Severity.CRITICAL,
        0.85,
        (Evidence(f"{statement}.", None, None, "the first step of the trial"),),
        (prescription("safe_arithmetic"), prescription("guard")),
        None,
    )
