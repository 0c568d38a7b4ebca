"""Targets whose shape does not fit the output: refused, or stretched without a word."""

from __future__ import annotations

from collections.abc import Iterator

from gradrecipes.core.findings import Prescription, Severity
from gradrecipes.core.trace.data_reading import ArrayReading
from gradrecipes.diagnosis.facts.data_facts import Head
from gradrecipes.diagnosis.facts.mismatch import (
    BINARY,
    BY_ENTRY,
    CATEGORICAL,
    SPARSE,
    Mismatch,
    compile_with,
    from_logits,
    last_layer,
)


def shape_mismatches(head: Head) -> Iterator[Mismatch]:
    """Yield what does not fit between the shape of the targets and that of the output, under a loss of Keras."""
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
            consequence="Keras refuses the shapes, or takes every entry of a row for a label of its own.",
            prescription=compile_with(
                from_logits("categorical_crossentropy", head.from_logits),
                "Use the categorical cross-entropy for one-hot rows",
                "It compares two distributions; the sparse one takes the number of the class.",
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
                "It takes the number of the class; the other one a row for each sample.",
                more="# or keep the loss and pass keras.utils.to_categorical(y)\n",
            ),
            sure=1.0,
        )
    elif head.loss in BY_ENTRY and _broadcasts(given, output):
        yield Mismatch(
            title=f"Targets of {_shape(given)} are stretched to outputs of {_shape(output)}",
            statement=f"{of_one}; {head.loss} stretches the one to the other without a word.",
            consequence=(
                "Every entry of the output is compared with the same target, so that all learn one and the same thing"
                + (": return_sequences=True on the last recurrent layer does that." if len(output) > 1 else ".")
            ),
            measured=float(_entries(output)),
            expected=float(_entries(given)),
            severity=Severity.WARNING,
            prescription=_same_shape(head, given),
        )
    else:
        yield Mismatch(
            title=f"Targets of {_shape(given)} do not fit outputs of {_shape(output)}",
            statement=f"{of_one} ({name!r}, {head.loss}).",
            consequence="Keras refuses the shapes, or compares what does not belong together.",
            prescription=_same_shape(head, given),
            sure=1.0,
        )


def _broadcasts(given: list[int], output: list[int]) -> bool:
    """Say whether arithmetic stretches targets to outputs, or the reverse, though they differ."""
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
        "One number is predicted for each number that is known.",
        more=more,
    )


def _entries(shape: list[int]) -> int:
    entries = 1
    for size in shape:
        entries *= size
    return entries


def _shape(shape: list[int]) -> str:
    return "one number" if not shape else f"shape ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
