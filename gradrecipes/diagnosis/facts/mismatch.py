"""A mismatch of loss, last activation and labels, and the families of losses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gradrecipes.core.findings import Prescription, Severity
from gradrecipes.core.trace.data_reading import ArrayReading
from gradrecipes.diagnosis.facts.data_facts import Head
from gradrecipes.diagnosis.prescriptions import prescription

BINARY = {"binary_crossentropy", "binary_focal_crossentropy"}
CATEGORICAL = {"categorical_crossentropy", "categorical_focal_crossentropy"}
SPARSE = {"sparse_categorical_crossentropy"}
CROSS_ENTROPIES = BINARY | CATEGORICAL | SPARSE
# Losses on the entry-wise difference of prediction and target, which broadcasts where the shapes differ.
BY_ENTRY = {
    "mean_squared_error",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_logarithmic_error",
    "huber",
    "log_cosh",
}


@dataclass(frozen=True)
class Mismatch:
    """One contradiction between a loss, an output and its targets.

    Args:
        title: For a headline.
        statement: A sentence with the numbers.
        consequence: What it does to the training.
        measured: The number that was measured, if there is one.
        expected: What should be in its place.
        severity: How bad it is where the run does not contradict.
        sure: Confidence.
        prescription: What to do.
        only_if_held_back: Whether it is reported only of a run that does not learn: some nets train well with it.
    """

    title: str
    statement: str
    consequence: str
    prescription: Prescription
    measured: float | None = None
    expected: float | None = None
    severity: Severity = Severity.CRITICAL
    sure: float = 0.97
    only_if_held_back: bool = False


def compile_with(loss: str, title: str, reason: str, *, more: str = "", risk: str = "None.") -> Prescription:
    """Return the advice to compile with another loss, and with other last layers where `more` makes them."""
    return prescription("other_loss", title=title, more=more, loss=loss, reason=reason, risk=risk)


def last_layer(units: int | None, activation: str | None) -> str:
    """Return the line that makes the last layer, with the user's number of units."""
    own = f", activation={activation!r}" if activation else ""
    return f"last = keras.layers.Dense({units or 'units'}{own})  # in place of your last layer\n"


def from_logits(loss: str, logits: bool) -> str:
    """Return the expression of this loss for logits or for probabilities."""
    return f"keras.losses.{class_of(loss)}(from_logits={logits})"


def class_of(loss: str) -> str:
    """Return Keras' class for the name of a loss function."""
    return "".join(part.capitalize() for part in loss.split("_"))


def shape_mismatches(head: Head) -> Iterator[Mismatch]:
    """Yield the mismatches between the shapes of targets and output, under a loss of Keras."""
    target = head.target or ArrayReading("")
    output, given = head.shape, [int(size) for size in target.shape or []]
    if output is None:
        return
    wanted = output[:-1] if head.loss in SPARSE else output
    fits = given in (wanted, [*wanted, 1]) or (wanted[-1:] == [1] and given == wanted[:-1])
    if fits or head.loss not in SPARSE | CATEGORICAL | BINARY | BY_ENTRY:
        return
    name, of_one = head.output.name, f"{target.name} has {_shape(given)} a sample, the output {_shape(output)}"
    if head.loss in SPARSE and given == output:
        hot = bool(target.one_hot)
        yield Mismatch(
            title=f"{'One-hot rows' if hot else 'Rows'} for a loss that expects class numbers",
            statement=f"{of_one}; {head.loss} expects one whole number a sample.",
            consequence="Keras refuses the shapes, or treats every entry of a row as a label.",
            prescription=compile_with(
                from_logits("categorical_crossentropy", head.from_logits),
                "Use the categorical cross-entropy for one-hot rows",
                "It compares two distributions; the sparse one expects the number of the class.",
                more="# or keep the loss and pass y.argmax(axis=-1)\n",
            ),
            sure=1.0,
        )
    elif head.loss in CATEGORICAL and given in (output[:-1], [*output[:-1], 1]):
        yield Mismatch(
            title="Class numbers for a loss that expects one-hot rows",
            statement=f"{of_one}; {head.loss} expects a row with an entry for each class.",
            consequence="Keras refuses the shapes.",
            prescription=compile_with(
                from_logits("sparse_categorical_crossentropy", head.from_logits),
                "Use the sparse categorical cross-entropy for class numbers",
                "It expects the number of the class; the other one a row for each sample.",
                more="# or keep the loss and pass keras.utils.to_categorical(y)\n",
            ),
            sure=1.0,
        )
    elif head.loss in BY_ENTRY and _broadcasts(given, output):
        yield Mismatch(
            title=f"Targets of {_shape(given)} are broadcast to outputs of {_shape(output)}",
            statement=f"{of_one}; {head.loss} broadcasts one to the other silently.",
            consequence=(
                "Every entry of the output is compared with the same target, so all entries learn the same value"
                + (": return_sequences=True on the last recurrent layer does that." if len(output) > 1 else ".")
            ),
            measured=float(math.prod(output)),
            expected=float(math.prod(given)),
            severity=Severity.WARNING,
            prescription=_same_shape(head, given),
        )
    else:
        yield Mismatch(
            title=f"Targets of {_shape(given)} do not fit outputs of {_shape(output)}",
            statement=f"{of_one} ({name!r}, {head.loss}).",
            consequence="Keras refuses the shapes, or compares entries that do not belong together.",
            prescription=_same_shape(head, given),
            sure=1.0,
        )


def _broadcasts(given: list[int], output: list[int]) -> bool:
    """Return whether targets and outputs of different shapes broadcast."""
    squeezed = output[:-1] if len(output) == len(given) + 1 and output[-1:] == [1] else output
    if len(given) != len(squeezed) or given == squeezed:
        return False
    return all(1 in (one, other) or one == other for one, other in zip(given, squeezed, strict=True))


def _same_shape(head: Head, given: list[int]) -> Prescription:
    if len(head.shape or []) > 1 and len(given) <= 1:
        more = "# the last recurrent layer: return_sequences=False\n"
    else:
        own = None if head.activation in ("linear", "unknown") else head.activation
        more = last_layer(given[-1] if given else 1, own)
    return compile_with(
        repr(head.loss),
        "Give the output the shape of the targets",
        "The net then predicts one number for each target.",
        more=more,
    )


def _shape(shape: list[int]) -> str:
    return "one number" if not shape else f"shape ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
