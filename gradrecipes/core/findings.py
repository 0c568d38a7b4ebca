"""What a rule found, how sure it is, on what evidence, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gradrecipes.core.trace.record import to_json

MAX_NAMES = 3  # that a sentence lists


@dataclass(frozen=True)
class Prescription:
    """Advise one change, in the imperative, with the lines that make it.

    Args:
        title: Imperative: "use He initialization".
        code: The Keras lines that do it, ready to paste.
        reason: Why it helps here.
        risk: What it may cost or break.
        reference: Paper, section or documentation.
    """

    title: str
    code: str
    reason: str = ""
    risk: str = ""
    reference: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the prescription as plain JSON values."""
        return to_json(self)


class Severity(StrEnum):
    """How bad it is. CRITICAL: the training is lost. WARNING: it is hurt. NOTICE: worth knowing."""

    CRITICAL = "critical"
    WARNING = "warning"
    NOTICE = "notice"

    @property
    def rank(self) -> int:
        """0 for the most severe."""
        return list(Severity).index(self)


class Kind(StrEnum):
    """A cause explains; a symptom is what one sees of it."""

    CAUSE = "cause"
    SYMPTOM = "symptom"


@dataclass(frozen=True)
class Evidence:
    """One fact that speaks for a finding, in numbers.

    Args:
        statement: A whole sentence for somebody in trouble.
        measured: The number that was measured, if there is one.
        expected: What theory, or a healthy run, has in its place.
        source: Where the expectation comes from: paper, section, or the run itself.
    """

    statement: str
    measured: float | None = None
    expected: float | None = None
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence as plain JSON values; a number JSON cannot hold becomes its name."""
        return to_json(self)


@dataclass(frozen=True)
class Finding:
    """Say what is wrong, where, since when, why, how sure, and what to do.

    Args:
        code: The pathology, e.g. `"exploding_initialization"`; codes are never renamed.
        title: One line for a headline.
        kind: Whether it is a cause or a symptom.
        severity: How bad it is.
        confidence: From 0 to 1; another value is a `ValueError`.
        explanation: A few sentences that teach.
        layer: Name of the layer where it sits, or None for the whole model.
        step: Step since when, or None for the state before training.
        evidence: The facts it rests on.
        prescriptions: What to do, the best first.
        leads_to: Codes of the symptoms, and of the other causes, that this cause brings about.
    """

    code: str
    title: str
    kind: Kind
    severity: Severity
    confidence: float
    explanation: str
    layer: str | None = None
    step: int | None = None
    evidence: tuple[Evidence, ...] = ()
    prescriptions: tuple[Prescription, ...] = ()
    leads_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise ValueError(
                f"`confidence` must lie between 0 and 1. Received: confidence={self.confidence} "
                f"in the finding {self.code!r}. Clip it where it is computed."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain JSON values."""
        return to_json(self)


def counted(number: int, noun: str, *, plural: str | None = None) -> str:
    """Return a number and its noun, in the singular for one.

    Args:
        number: How many.
        noun: In the singular.
        plural: Where it does not end in "s".

    Example:
        >>> counted(1, "layer"), counted(2, "layer"), counted(1200, "step"), counted(2, "batch", plural="batches")
        ('1 layer', '2 layers', '1,200 steps', '2 batches')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def named(names: Sequence[str]) -> str:
    """Return the first names of a list in quotes, and how many more there are.

    Example:
        >>> named(["dense", "dense_1", "dense_2", "dense_3"])
        "'dense', 'dense_1', 'dense_2' and 1 more"
    """
    return listed([repr(name) for name in names])


def listed(words: Sequence[str]) -> str:
    """Return the first words of a list, and how many more there are.

    Example:
        >>> listed(["dropout of 0.5", "noise of 1"])
        'dropout of 0.5, noise of 1'
    """
    more = f" and {len(words) - MAX_NAMES:,} more" if len(words) > MAX_NAMES else ""
    return ", ".join(words[:MAX_NAMES]) + more
