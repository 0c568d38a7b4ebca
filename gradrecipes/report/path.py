"""The way from a cause to what one sees of it, in one line that a human reads."""

from __future__ import annotations

import math
import re

import numpy as np

from gradrecipes.core.findings import Finding, Kind
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.readings import say
from gradrecipes.diagnosis.outcome.verdict import BROKEN, DIVERGING, OSCILLATING, STALLED, Verdict, verdict
from gradrecipes.diagnosis.registry import rules

ARROW = " → "
PER_LAYER = re.compile(r"^(Forwards|Backwards)\b.*per layer", re.DOTALL)
LARGE_NORM, SMALL_NORM = 1e2, 1e-5  # gradient norms that belong on the way; between them they tell nothing
FAR_START = 5.0  # first loss over chance from which on it belongs on the way


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
    return [f"gradient norm {say(norm)}"] if norm > LARGE_NORM or 0 < norm < SMALL_NORM else []


def _start(seen: Verdict) -> list[str]:
    if not seen.start_over_baseline > FAR_START:
        return []
    return [f"first loss {say(seen.start)} where guessing has {say(seen.baseline)}"]


def _end(trace: Trace, seen: Verdict) -> list[str]:
    chance = f" (guessing: {say(seen.baseline)})" if math.isfinite(seen.baseline) else ""
    if seen.state == BROKEN:
        return [f"{_broken(trace, seen)} at step {seen.step}"]
    if seen.state == DIVERGING:
        return [f"loss climbs from {say(seen.start)} to {say(seen.end)}"]
    if seen.state == STALLED:
        return [f"loss stays at {say(seen.end)}{chance}"]
    if seen.state == OSCILLATING:
        return [f"loss jumps about {say(seen.end)}{chance}"]
    if seen.end_over_baseline >= 1.0:
        return [f"loss ends at {say(seen.end)}{chance}"]
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
