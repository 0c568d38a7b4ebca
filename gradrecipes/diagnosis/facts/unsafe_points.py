"""What is unsafe in a loss before a step has met it: at the start, at an end of its activation, at targets of 0."""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import listed
from gradrecipes.core.trace.data_reading import ArrayReading
from gradrecipes.diagnosis.facts.data_facts import Head, heads, is_held_back
from gradrecipes.diagnosis.facts.readings import number, say
from gradrecipes.diagnosis.facts.signals import layers
from gradrecipes.diagnosis.outcome.verdict import BROKEN, UNKNOWN, verdict
from gradrecipes.diagnosis.prescriptions.prescribe import prescription, safe_cross_entropy

HUGE = 1e5  # percentage error in percent: a thousand times the target
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
            f"On the first batch the {broken} of {head.name!r} is {word(found)}{samples}, though the net's answers lie "
            f"between {say(head.measured.min or 0.0)} and {say(head.measured.max or 0.0)}"
        )
        return (
            f"The loss {head.name!r} is {word(found)} from the first batch on",
            f"{statement}. Something in it is no number there: a logarithm of 0 or less, a root at 0, or a division "
            "by a target that is 0.",
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
        if not (is_held_back(trace, seen) or seen.start > HUGE):
            continue
        statement = (
            f"{say(100 * share)} % of {target.name} are 0; the percentage error divides by them, or by 1e-7 in "
            f"their place, and began at {say(seen.start)} %"
        )
        return (
            "A percentage error of targets that are 0",
            f"{statement}. Such a sample counts ten million times as much as one whose target is 1, and its gradient "
            "drowns all others.",
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
        where = "where it is sure of one class" if at == "one class" else f"at exactly {at}"
        statement = (
            f"The loss {head.name!r} is no number where the {activation} of {head.output.name!r} is {where[6:]}"
            if at == "one class"
            else f"The loss {head.name!r} or its gradient is no number where a {activation} ends, {where}"
        )
        return (
            f"The loss {head.name!r} breaks {where}, where its {activation} gets by training",
            f"{statement}. This run has not met it; but float32 rounds the {activation} to its end as soon as the net "
            "is sure, because it has learnt or because it was thrown off, and then one sample makes all weights NaN.",
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
            statement = f"Evaluated by itself, {head.name!r} is no number at these predictions: {', '.join(bad)}."
            found.append(Evidence(statement, None, None, "the loss on one batch, before the trial"))
    return tuple(found)


def _zeros(head: Head) -> tuple[Evidence, ...]:
    target = head.target or ArrayReading("")
    share = target.share_zero
    if not share:
        return ()
    return (Evidence(f"{say(100 * share)} % of {target.name} are exactly 0.", share, None, "the data"),)


def word(found: str | float) -> str:
    """Return a number that is none in words."""
    return {"nan": "NaN", "inf": "infinity", "-inf": "minus infinity"}.get(str(found), str(found))
