"""The words that every form of a report shares: verdict, confidence, place, numbers, cause and symptoms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gradrecipes.core.findings.finding import Finding, Severity
from gradrecipes.core.trace import Trace

if TYPE_CHECKING:
    from gradrecipes.report.diagnosis import Diagnosis

# Lowest probability for each word: Mastrandrea et al. (2010), guidance note for IPCC authors, table 1.
CONFIDENCE_WORDS = (
    (0.99, "virtually certain"),
    (0.90, "very likely"),
    (0.66, "likely"),
    (0.33, "about as likely as not"),
    (0.0, "unlikely"),
)
COUNTED = {
    Severity.CRITICAL: ("critical finding", "critical findings"),
    Severity.WARNING: ("warning", "warnings"),
    Severity.NOTICE: ("notice", "notices"),
}


def printable(text: Any) -> str:
    """Return text that no terminal obeys: control characters other than line ends become a replacement mark."""
    text = str(text).replace("\t", "    ").replace("\r\n", "\n")
    return "".join(
        letter if letter.isprintable() or letter == "\n" else " " if letter.isspace() else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )


def verdict(diagnosis: Diagnosis) -> str:
    """Return one line that says how the training is."""
    if not len(diagnosis.trace) and not diagnosis.findings:
        return "Nothing to judge: the trace holds no training step."
    if diagnosis.healthy:
        steps = len(diagnosis.trace)
        if diagnosis.trace.probes.trial is not None:
            return f"Healthy: nothing alarming in the data, the net, and {steps:,} trial steps."
        return f"Healthy: nothing alarming in {steps:,} recorded {'step' if steps == 1 else 'steps'}."
    return f"Unhealthy: {diagnosis.findings[0].title}"


def tally(diagnosis: Diagnosis) -> str:
    """Return how many findings of each severity there are: "1 critical finding, 2 warnings"."""
    counts = {level: sum(finding.severity is level for finding in diagnosis.findings) for level in Severity}
    parts = [f"{count} {COUNTED[level][count > 1]}" for level, count in counts.items() if count]
    return ", ".join(parts) or "no findings"


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
    """Return a number with four significant digits, or a dash for None."""
    if value is None:
        return "–"
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:.4g}"


def symptoms(finding: Finding, diagnosis: Diagnosis) -> list[tuple[str, Finding | None]]:
    """Return what a cause brings about: for each code the finding that shows it here, or None when nothing does."""
    seen: dict[str, Finding] = {}
    for other in diagnosis.findings:
        seen.setdefault(other.code, other)
    return [(code, seen.get(code)) for code in finding.leads_to]


def causes(finding: Finding, diagnosis: Diagnosis) -> list[Finding]:
    """Return the findings that name this one among what they lead to."""
    return [other for other in diagnosis.findings if finding.code in other.leads_to]
