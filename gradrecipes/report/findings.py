"""The findings in the order in which to read them, and the words that every form of a report shares."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradrecipes.core.findings import Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.engine import in_reading_order
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.judgement import HEALTHY, Judgement, judge
from gradrecipes.diagnosis.outcome import BROKEN, DIVERGING, FAR_START, OSCILLATING, STALLED, Verdict, verdict
from gradrecipes.diagnosis.registry import rules

COUNTED = {
    Severity.CRITICAL: ("critical finding", "critical findings"),
    Severity.WARNING: ("warning", "warnings"),
    Severity.NOTICE: ("notice", "notices"),
}


@dataclass(frozen=True, eq=False, repr=False)
class OrderedFindings:
    """Hold the findings of a trace, most severe first, and say whether the training is healthy.

    Args:
        findings: The findings, in any order; kept as a tuple in the order in which to read them.
        trace: The record they rest on.

    Raises:
        TypeError: Something that is no `Finding`, or no `Trace`.
    """

    findings: tuple[Finding, ...]
    trace: Trace

    def __post_init__(self) -> None:
        found = tuple(self.findings)
        strangers = [item for item in found if not isinstance(item, Finding)]
        if strangers or not isinstance(self.trace, Trace):
            raise TypeError(
                "A Diagnosis is made of findings and a Trace. "
                f"Received: {type((strangers or [self.trace])[0]).__name__}. "
                "`gradrecipes.diagnose(trace)` makes one from a Trace."
            )
        object.__setattr__(self, "findings", tuple(in_reading_order(list(found))))

    @property
    def healthy(self) -> bool:
        """Whether the verdict is "healthy"."""
        return self.verdict == HEALTHY

    @cached_property
    def judgement(self) -> Judgement:
        """The verdict with its reason."""
        return judge(self.trace, self.findings)

    @property
    def verdict(self) -> str:
        """How the training is: "healthy" where it was seen to learn, "unhealthy", or "undecided".

        It is unhealthy when a finding is critical or a warning, or when the run broke or diverged; notices do not
        count. It is undecided where neither that nor learning was seen.
        """
        return self.judgement.verdict

    @property
    def summary(self) -> str:
        """One line that says how the training is, and why."""
        return f"{self.verdict.capitalize()}: {self.judgement.reason}"

    @property
    def tally(self) -> str:
        """How many findings of each severity there are: "1 critical finding, 2 warnings"."""
        counts = {level: sum(finding.severity is level for finding in self.findings) for level in Severity}
        parts = [f"{count} {COUNTED[level][count > 1]}" for level, count in counts.items() if count]
        return ", ".join(parts) or "no findings"

    def symptoms(self, finding: Finding) -> list[tuple[str, Finding | None]]:
        """Return what a cause brings about: for each code the finding that shows it here, or None."""
        seen: dict[str, Finding] = {}
        for other in self.findings:
            seen.setdefault(other.code, other)
        return [(code, seen.get(code)) for code in finding.leads_to]

    def causes(self, finding: Finding) -> list[Finding]:
        """Return the findings that name this one among what they lead to."""
        return [other for other in self.findings if finding.code in other.leads_to]


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
    """Return a confidence from 0 to 1 in words and percent: "very likely (92%)"."""
    word = next((word for lowest, word in CONFIDENCE_WORDS if value >= lowest), CONFIDENCE_WORDS[-1][1])
    percent = min(99, round(100 * value)) if value < 1 else 100
    return f"{word} ({percent}%)"


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


ARROW = " → "
PER_LAYER = re.compile(r"^(Forwards|Backwards)\b.*per layer", re.DOTALL)
LARGE_NORM, SMALL_NORM = 1e2, 1e-5  # gradient norms that belong on the way; between them they tell nothing


def path(finding: Finding, trace: Trace) -> str:
    """Return "weights too large → forward growth 8.0 per layer (theory 8.0) → … → loss NaN at step 2".

    Empty for a symptom, and for a cause that nothing was seen of.
    """
    if finding.kind is not Kind.CAUSE:
        return ""
    seen = verdict(trace)
    links = [*_growth(finding), *_gradient(trace), *_start(seen), *_end(trace, seen)]
    if finding.code == "failing_step" or not links:
        return ""
    return ARROW.join([_short(finding), *links])


def _growth(finding: Finding) -> list[str]:
    """Return the growth per layer that the finding rests on, with what theory says of it."""
    words = {"Forwards": "forward growth", "Backwards": "backward growth"}
    for fact in finding.evidence:
        found = PER_LAYER.match(fact.statement)
        if found and fact.measured is not None:
            theory = f" (theory {fact.expected:.3g})" if fact.expected is not None else ""
            return [f"{words[found[1]]} {fact.measured:.3g} per layer{theory}"]
    return []


def _gradient(trace: Trace) -> list[str]:
    norms = trace.gradient_norm.astype(float)
    first = norms[:1]
    if not len(first) or not np.isfinite(first[0]):
        return []
    norm = float(first[0])
    return [f"gradient norm {rounded(norm)}"] if norm > LARGE_NORM or 0 < norm < SMALL_NORM else []


def _start(seen: Verdict) -> list[str]:
    if not seen.start_over_baseline > FAR_START:
        return []
    return [f"first loss {rounded(seen.start)} (constant prediction: {rounded(seen.baseline)})"]


def _end(trace: Trace, seen: Verdict) -> list[str]:
    baseline = f" (constant prediction: {rounded(seen.baseline)})" if math.isfinite(seen.baseline) else ""
    if seen.state == BROKEN:
        return [f"{_broken(trace, seen)} at step {seen.step}"]
    if seen.state == DIVERGING:
        return [f"loss climbs from {rounded(seen.start)} to {rounded(seen.end)}"]
    if seen.state == STALLED:
        return [f"loss stays at {rounded(seen.end)}{baseline}"]
    if seen.state == OSCILLATING:
        return [f"loss oscillates around {rounded(seen.end)}{baseline}"]
    if seen.end_over_baseline >= 1.0:
        return [f"loss ends at {rounded(seen.end)}{baseline}"]
    return []


def _broken(trace: Trace, seen: Verdict) -> str:
    rows = np.flatnonzero(trace.steps["step"] == seen.step)
    loss = float(trace.loss[rows[0]]) if len(rows) else math.nan
    if math.isfinite(loss):
        return "gradient not finite"
    return "loss infinite" if math.isinf(loss) else "loss NaN"


def _short(finding: Finding) -> str:
    known = rules().get(finding.code)
    return finding.title if known is None or not known.short else known.short
