"""The words that every form of a report shares: confidence, place, time, numbers, the way from cause to symptom."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from gradrecipes.core.findings import Finding, Kind
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.outcome import BROKEN, DIVERGING, FAR_START, OSCILLATING, STALLED, Verdict, verdict
from gradrecipes.diagnosis.registry import rules

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
    chance = f" (constant prediction: {rounded(seen.baseline)})" if math.isfinite(seen.baseline) else ""
    if seen.state == BROKEN:
        return [f"{_broken(trace, seen)} at step {seen.step}"]
    if seen.state == DIVERGING:
        return [f"loss climbs from {rounded(seen.start)} to {rounded(seen.end)}"]
    if seen.state == STALLED:
        return [f"loss stays at {rounded(seen.end)}{chance}"]
    if seen.state == OSCILLATING:
        return [f"loss oscillates around {rounded(seen.end)}{chance}"]
    if seen.end_over_baseline >= 1.0:
        return [f"loss ends at {rounded(seen.end)}{chance}"]
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
