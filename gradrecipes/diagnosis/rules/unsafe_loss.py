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

from typing import Any

from gradrecipes.core.finding import Evidence, Finding, Kind, Severity
from gradrecipes.core.offender import listed
from gradrecipes.core.prescription import Prescription
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.data_facts import Head, heads, holds_back, offenders
from gradrecipes.diagnosis.prescribe import guard
from gradrecipes.diagnosis.prescribe_loss import safe_arithmetic, safe_cross_entropy, undivided_error
from gradrecipes.diagnosis.readings import layer_descriptions, number, say
from gradrecipes.diagnosis.signals import layers
from gradrecipes.diagnosis.verdict import BROKEN, UNKNOWN, verdict

SANE = 1e4  # output up to which a squared error, its sum and its gradient are far from overflowing
EXPONENT = 50.0  # input up to which exp stays far from overflowing float32, which it does at 88.7
NEAR_THE_END = 0.999  # of a sigmoid whose input is 7; at 17, a long training away, float32 makes it 1
HUGE = 1e5  # percentage error in percent: a thousand times the target
ZERO_TARGETS = 1e-3  # share of the targets that are 0 from which nearly every batch of 32 epochs meets one
BOUNDED_ENDS = {"0", "1", "-1", "one class"}

Said = tuple[str, str, Severity, float, tuple[Evidence, ...], tuple[Prescription, ...], str | None]


def unsafe_loss(trace: Trace) -> Finding | None:
    """Tell where the loss, or an operation, gives NaN or Inf, and whether the run has met it."""
    said = _broken_loss(trace) or _broken_operation(trace) or _at_the_start(trace) or _percentage(trace) or _ends(trace)
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
        leads_to=("nonfinite_loss", "exploding_gradient", "diverging_loss", "stalled_loss"),
    )


def _first(trace: Trace) -> dict[str, Any] | None:
    first = next(iter(offenders(trace)), None)
    return first if first is not None and isinstance(first.get("found"), str) else None


def _broken_loss(trace: Trace) -> Said | None:
    """Say that a step broke in the loss or in its derivative, with sound numbers before it."""
    first = _first(trace)
    if first is None or first.get("kind") not in ("loss", "gradient"):
        return None
    if first["kind"] == "gradient" and first.get("layer") is not None:
        return None
    own = [head for head in heads(trace) if not head.of_keras]
    structure = trace.probes.get("structure") or {}
    added = first["kind"] == "loss" and first.get("layer") is not None
    if not (own or added or structure.get("own_loss") or structure.get("own_train_step")):
        return None
    largest = _largest_output(trace)
    limit = EXPONENT if added and first["found"] != "nan" else SANE
    if largest is not None and largest > limit:
        return None  # the net had run away before: a square, a sum or an exponential overflows then
    name = f"what {first['layer']} adds to the loss" if added else f"the loss {own[0].name!r}" if own else "the loss"
    part = "its derivative" if first["kind"] == "gradient" else "it"
    samples = first.get("samples") or []
    where = f", for {listed(samples)} of the batch" if samples else ""
    statement = (
        f"The step broke in {name}: {part} became {_word(first['found'])}{where}, while all that entered was finite"
    )
    largest_said = "" if largest is None else f" and at most {say(largest)} in size"
    return (
        f"{name[0].upper()}{name[1:]} gives {_word(first['found'])} for predictions that are finite",
        f"{statement}{largest_said}. {first.get('sentence', '')}",
        Severity.CRITICAL,
        0.95,
        (
            Evidence(f"{statement}{largest_said}.", None, None, "autopsy of the step that broke"),
            *_points(trace, own),
            *_swept(trace),
        ),
        (safe_arithmetic(), *safe_cross_entropy(own), guard()),
        first["layer"] if added else None,
    )


def _swept(trace: Trace) -> tuple[Evidence, ...]:
    """Name the samples for which the untrained net has no loss, by their place in all the data."""
    probe = trace.probes.get("sweep") or {}
    bad = probe.get("nonfinite_samples") or []
    if not bad:
        return ()
    statement = f"At the first weights the loss, or its slope, is not finite for {listed(bad)} of all the data"
    return (Evidence(f"{statement}.", len(bad), 0, f"{probe.get('samples')} samples sent through the net"),)


def _broken_operation(trace: Trace) -> Said | None:
    """Say that a layer without weights, or arithmetic of the model's own, made NaN or Inf out of sound numbers."""
    first = _first(trace)
    if first is None or first.get("kind") not in ("layer_output", "gradient") or not first.get("layer"):
        return None
    layer = first["layer"]
    held = {one.get("name"): one for one in layer_descriptions(trace) if one} | {
        one.get("name"): one for one in trace.description.get("layers") or [] if isinstance(one, dict)
    }
    about = held.get(layer)
    if about is not None and ((about.get("parameters") or 0) > 0 or about.get("activation")):
        return None  # weights or an activation that overflow have other causes
    reading = next((one for one in _readings(trace) if one.get("layer") == layer), {})
    entered = number(reading.get("input_rms"))
    limit = SANE if first["found"] == "nan" or first["kind"] == "gradient" else EXPONENT
    if entered is not None and entered > limit:
        return None
    largest = _largest_output(trace)
    if about is None and largest is not None and largest > SANE:
        return None  # arithmetic of the whole model: what entered it stands with its layers
    what = f"the layer {layer!r}" + (f" ({about['kind']})" if about and about.get("kind") else "")
    part = "the gradient on its way back through" if first["kind"] == "gradient" else "the output of"
    size = "" if entered is None else f" of root mean square {say(entered)}"
    statement = f"The step broke in {what}: {part} it became {_word(first['found'])}, while its input{size} was finite"
    return (
        f"An operation in {layer!r} gives {_word(first['found'])} for numbers that are finite",
        f"{statement}. {first.get('sentence', '')} It holds no weights, so that it is its arithmetic that is unsafe: a "
        "logarithm or a root at 0, or a division by 0.",
        Severity.CRITICAL,
        0.9,
        (Evidence(f"{statement}.", None, None, "autopsy of the step that broke"), *_swept(trace)),
        (safe_arithmetic(), guard()),
        layer,
    )


def _at_the_start(trace: Trace) -> Said | None:
    """Say that the loss is no number for the answers of the untrained net on the user's own targets."""
    if verdict(trace).state not in (BROKEN, UNKNOWN):
        return None  # the train step uses the loss in another way
    for head in heads(trace):
        point = next((one for one in head.points if one["at"] == "outputs"), None)
        if head.of_keras or point is None or _sound(point) or (head.target or {}).get("nonfinite"):
            continue
        broken, word = ("value", point["value"]) if point["value"] != "finite" else ("gradient", point["gradient"])
        samples = f", for {listed(point['samples'])}" if point.get("samples") else ""
        statement = (
            f"On the first batch the {broken} of {head.name!r} is {_word(word)}{samples}, though the net's answers lie "
            f"between {say(head.measured.get('min') or 0.0)} and {say(head.measured.get('max') or 0.0)}"
        )
        return (
            f"The loss {head.name!r} is {_word(word)} from the first batch on",
            f"{statement}. Something in it is no number there: a logarithm of 0 or less, a root at 0, or a division "
            "by a target that is 0.",
            Severity.CRITICAL,
            0.95,
            (Evidence(f"{statement}.", None, None, "the loss on one batch, before the trial"), *_zeros(head)),
            (safe_arithmetic(), *safe_cross_entropy([head]), guard()),
            None,
        )
    return None


def _percentage(trace: Trace) -> Said | None:
    """Say that Keras' percentage error divides by targets that are 0."""
    seen = verdict(trace)
    for head in heads(trace):
        share = number((head.target or {}).get("share_zero")) or 0.0
        if head.loss != "mean_absolute_percentage_error" or not head.of_keras or share < ZERO_TARGETS:
            continue
        if not (holds_back(trace, seen) or seen.start > HUGE):
            continue
        statement = (
            f"{say(100 * share)} % of {head.target['name']} are 0; the percentage error divides by them, or by 1e-7 in "
            f"their place, and began at {say(seen.start)} %"
        )
        return (
            "A percentage error of targets that are 0",
            f"{statement}. Such a sample counts ten million times as much as one whose target is 1, and its gradient "
            "drowns all others.",
            Severity.CRITICAL,
            0.9,
            (Evidence(f"{statement}.", share, 0.0, "the data, and this trial"),),
            (undivided_error(),),
            None,
        )
    return None


def _ends(trace: Trace) -> Said | None:
    """Say that a loss of one's own is no number at the end of the last activation, which training drives at."""
    for head in heads(trace):
        bad = [one for one in head.points if one["at"] in BOUNDED_ENDS and not _sound(one)]
        if head.of_keras or not bad or not _comes_near(trace, head):
            continue
        ends = " and ".join(one["at"] for one in bad)
        activation = bad[0].get("activation")
        where = "where it is sure of one class" if ends == "one class" else f"at exactly {ends}"
        statement = (
            f"The loss {head.name!r} is no number where the {activation} of {head.output['name']!r} is {where[6:]}"
            if ends == "one class"
            else f"The loss {head.name!r} or its gradient is no number where a {activation} ends, {where}"
        )
        return (
            f"The loss {head.name!r} breaks {where}, where its {activation} gets by training",
            f"{statement}. This run has not met it; but float32 rounds the {activation} to its end as soon as the net "
            "is sure, because it has learnt or because it was thrown off, and then one sample makes all weights NaN.",
            Severity.WARNING,
            0.8,
            (Evidence(f"{statement}.", None, None, "the loss on one batch, a part of the predictions moved there"),),
            (safe_arithmetic(), *safe_cross_entropy([head])),
            None,
        )
    return None


def _comes_near(trace: Trace, head: Head) -> bool:
    """Say whether the trial brought a bounded last activation close to its end; where that is not known, it did."""
    last = next((layer for layer in reversed(layers(trace, "after")) if layer["activation"] == head.activation), None)
    if last is None or head.activation not in ("sigmoid", "softmax", "tanh"):
        return True
    largest = number(last.get("output_max"))
    return largest is None or largest >= NEAR_THE_END


def _points(trace: Trace, own: list[Head]) -> tuple[Evidence, ...]:
    found = []
    for head in own:
        bad = [one["at"] for one in head.points if not _sound(one)]
        if bad:
            statement = f"Evaluated by itself, {head.name!r} is no number at these predictions: {', '.join(bad)}."
            found.append(Evidence(statement, None, None, "the loss on one batch, before the trial"))
    return tuple(found)


def _zeros(head: Head) -> tuple[Evidence, ...]:
    share = number((head.target or {}).get("share_zero")) or 0.0
    if not share:
        return ()
    return (Evidence(f"{say(100 * share)} % of {head.target['name']} are exactly 0.", share, None, "the data"),)


def _word(found: str) -> str:
    return {"nan": "NaN", "inf": "infinity", "-inf": "minus infinity"}.get(found, found)


def _sound(point: dict[str, Any]) -> bool:
    return point["value"] == "finite" and point["gradient"] == "finite"


def _readings(trace: Trace) -> list[dict[str, Any]]:
    held = (trace.probes.get("trial") or {}).get("autopsy") or trace.probes.get("autopsy") or {}
    return list(held.get("layers") or [])


def _largest_output(trace: Trace) -> float | None:
    """Return the largest finite output of the layer that ran last, in the step that broke."""
    sizes = [number(one.get("output_max")) for one in _readings(trace)]
    return next((size for size in reversed(sizes) if size is not None), None)
