"""The words that every form of a report shares: confidence, place, time, numbers."""

from __future__ import annotations

import math
from typing import Any

from gradrecipes.core.findings import Finding
from gradrecipes.core.trace import Trace

# Lowest probability for each word: Mastrandrea et al. (2010), guidance note for IPCC authors, table 1.
CONFIDENCE_WORDS = (
    (0.99, "virtually certain"),
    (0.90, "very likely"),
    (0.66, "likely"),
    (0.33, "about as likely as not"),
    (0.0, "unlikely"),
)


def printable(text: Any) -> str:
    """Return text that no terminal obeys: control characters other than line ends become a replacement mark."""
    text = str(text).replace("\t", "    ").replace("\r\n", "\n")
    return "".join(
        letter if letter.isprintable() or letter == "\n" else " " if letter.isspace() else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )


def confidence(value: float) -> str:
    """Return a confidence from 0 to 1 in words and percent: "very likely (92 %)"."""
    word = next((word for lowest, word in CONFIDENCE_WORDS if value >= lowest), CONFIDENCE_WORDS[-1][1])
    percent = min(99, round(100 * value)) if value < 1 else 100
    return f"{word} ({percent} %)"


def place(finding: Finding) -> str:
    """Return where a finding sits."""
    return "the whole model" if finding.layer is None else f"layer {finding.layer}"


def since(finding: Finding, trace: Trace) -> str:
    """Return since when a finding holds, epochs and batches counted from 1 as Keras shows them, steps from 0."""
    if finding.step is None:
        return "from the start, before training"
    located = trace.locate(finding.step)
    if located is None:
        return f"since step {finding.step}"
    return f"since epoch {located[0] + 1}, batch {located[1] + 1} (step {finding.step})"


def number(value: Any) -> str:
    """Return a number with four significant digits, thousands in groups, or a dash for None."""
    if value is None:
        return "–"
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if abs(value) < 1e6 and (value == int(value) or abs(value) >= 1e3):
        return f"{value:,.0f}"
    return f"{value:.4g}"
