"""Run every rule on a Trace, lead from causes to symptoms, and put first what to read first."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from gradrecipes.core.finding import Finding, Kind
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.codes import CODES
from gradrecipes.diagnosis.root import weighed

SURENESS_STEPS = 5  # confidences that differ by less than a fifth are the same; the deeper cause then goes first

logger = logging.getLogger(__name__)


def find(trace: Trace) -> list[Finding]:
    """Return what is wrong with a recorded training, in the order in which to read it.

    A cause stands before the symptoms it explains, and is as urgent as the worst of them; then the severe
    before the mild, then the sure before the unsure. An empty list is a clean bill.

    Args:
        trace: The record of a run. What it lacks, the rules that need it pass over in silence.

    Example:
        >>> from gradrecipes.core.trace import Trace
        >>> find(Trace(layers=["dense"]))
        []
    """
    found = [finding for code in CODES if (finding := _judge(code, trace)) is not None]
    return in_reading_order(linked(weighed(found)))


def linked(findings: list[Finding]) -> list[Finding]:
    """Return the findings with `leads_to` cut down to what was found too."""
    found = {finding.code for finding in findings}
    return [
        dataclasses.replace(finding, leads_to=tuple(code for code in finding.leads_to if code in found))
        for finding in findings
    ]


def in_reading_order(findings: list[Finding]) -> list[Finding]:
    """Return the findings sorted: explaining causes first, the sure before the unsure, the deeper before the shallow.

    How deep a cause lies, the table of codes tells by its order: data before weights, weights before the rate.
    """
    severity = {finding.code: finding.severity.rank for finding in findings}
    depth = {code: number for number, code in enumerate(CODES)}

    def place(finding: Finding) -> tuple[int, bool, float, int, int]:
        urgency = min([finding.severity.rank, *(severity[code] for code in finding.leads_to if code in severity)])
        sure = -round(finding.confidence * SURENESS_STEPS)
        return urgency, finding.kind is Kind.SYMPTOM, sure, finding.severity.rank, depth.get(finding.code, len(depth))

    return sorted(findings, key=place)


def _judge(code: str, trace: Trace) -> Finding | None:
    try:
        with np.errstate(all="ignore"):  # what exploded is recorded as float32: infinity is the right sum of it
            return CODES[code].rule(trace)
    except Exception:  # rules do not raise; should one do so, it must not cost the reader the other findings
        logger.exception("The rule %s failed on %r; the other rules go on. Please report this.", code, trace)
        return None
