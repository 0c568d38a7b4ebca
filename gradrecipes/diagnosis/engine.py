"""Run every rule on a Trace, lead from causes to symptoms, and sort the findings in the order in which to read them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gradrecipes.core.findings import Finding, Kind, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import ALL_SCALED, FITTING_WEIGHTS, SCALED_INPUTS, SCALED_TARGETS, Variation
from gradrecipes.diagnosis.outcome import fixed_by, variation
from gradrecipes.diagnosis.prescriptions import prescription, scaling_lines
from gradrecipes.diagnosis.registry import Rule, rules
from gradrecipes.diagnosis.rules.unscaled_inputs import far_inputs, is_pixels
from gradrecipes.diagnosis.rules.unscaled_targets import far_target

CONFIDENCE_STEPS = 5  # confidences that differ by less than a fifth count as equal; the deeper cause then goes first
CERTAIN = 0.98  # confidence of a symptom that is reported although no cause was found
MIN_CONFIDENCE_TO_EXPLAIN = 0.75  # of a cause that takes confidence from another cause
EXPLAINED_LOSES = 0.3  # confidence that a cause loses when another cause explains it
MIN_CONFIDENCE_EXPLAINED = 0.5  # below which a cause that another one explains is left out
# A variation that changes one thing -> the codes of the causes that it removes, and their name in a sentence.
# `ALL_SCALED` changes all of those at once that were tried.
PARTS = {
    SCALED_INPUTS: (("unscaled_inputs",), "the inputs"),
    SCALED_TARGETS: (("unscaled_targets",), "the targets"),
    FITTING_WEIGHTS: (("exploding_initialization", "vanishing_initialization"), "the initial weights"),
}


logger = logging.getLogger(__name__)


def find(trace: Trace) -> list[Finding]:
    """Return what is wrong with a recorded training, in the order in which to read it.

    A cause stands before the symptoms it explains, and is as urgent as the worst of them; then the severe before the
    mild, then the certain before the uncertain. An empty list means that no rule fired.

    Args:
        trace: The record of a run. Rules stay silent where the evidence that they need is missing.

    Example:
        >>> from gradrecipes.core.trace import Trace
        >>> find(Trace(layers=["dense"]))
        []
    """
    table = rules()
    found = [finding for rule in table.values() if (finding := _judge(rule, trace)) is not None]
    return in_reading_order(linked(with_joint_remedy(found, trace), table), table)


def linked(findings: Sequence[Finding], table: Mapping[str, Rule]) -> list[Finding]:
    """Return the findings with `leads_to` filled in from the table of rules.

    A cause leads to the symptoms and to the less certain causes that it explains, and to all that those lead to. A
    cause that another one explains loses confidence. Symptoms that need a cause are left out where none was found.

    Args:
        findings: What the rules found.
        table: The rules by code.
    """
    certain = {
        finding.code
        for finding in findings
        if finding.kind is Kind.CAUSE and finding.confidence >= MIN_CONFIDENCE_TO_EXPLAIN
    }
    kept = [_weighed(finding, any(_explains(cause, finding, table) for cause in certain)) for finding in findings]
    left = [finding for finding in kept if finding is not None]
    causes = [finding for finding in left if finding.kind is Kind.CAUSE and finding.severity is not Severity.NOTICE]
    symptoms = {one.code: _codes(left, Kind.SYMPTOM, one.code, table) for one in causes}
    chains = []
    for finding in left:
        direct = symptoms.get(finding.code, ())
        causal = _codes(left, Kind.CAUSE, finding.code, table) if finding.code in certain else ()
        onward = [code for one in causal for code in (one, *symptoms.get(one, ()))]
        chains.append(replace(finding, leads_to=tuple(dict.fromkeys((*finding.leads_to, *direct, *onward)))))
    reached = {code for finding in chains if finding.kind is Kind.CAUSE for code in finding.leads_to}
    return [
        one
        for one in chains
        if one.code in reached or one.confidence >= CERTAIN or not (one.code in table and table[one.code].needs_cause)
    ]


def in_reading_order(findings: Sequence[Finding], table: Mapping[str, Rule] | None = None) -> list[Finding]:
    """Return the findings sorted: explaining causes first, then the certain, then the deeper causes.

    Args:
        findings: With `leads_to`.
        table: The rules by code, all of them by default; the order of a rule says how deep its cause lies.
    """
    severity = {finding.code: finding.severity.rank for finding in findings}
    depth = {code: number for number, code in enumerate(rules() if table is None else table)}

    def place(finding: Finding) -> tuple[int, bool, float, int, int]:
        urgency = min([finding.severity.rank, *(severity[code] for code in finding.leads_to if code in severity)])
        confidence = -round(finding.confidence * CONFIDENCE_STEPS)
        return urgency, finding.kind is Kind.SYMPTOM, confidence, finding.severity.rank, depth.get(finding.code, 0)

    return sorted(findings, key=place)


def _weighed(finding: Finding, explained: bool) -> Finding | None:
    if finding.kind is Kind.SYMPTOM or not explained:
        return finding
    left = replace(finding, confidence=max(0.0, finding.confidence - EXPLAINED_LOSES))
    return left if left.confidence >= MIN_CONFIDENCE_EXPLAINED else None


def _explains(cause: str, finding: Finding, table: Mapping[str, Rule]) -> bool:
    return cause in table and finding.code in table[cause].brings_about


def _codes(findings: Sequence[Finding], kind: Kind, cause: str, table: Mapping[str, Rule]) -> tuple[str, ...]:
    """Return the codes of the findings of one kind that a cause explains."""
    return tuple(one.code for one in findings if one.kind is kind and _explains(cause, one, table))


def _judge(rule: Rule, trace: Trace) -> Finding | None:
    try:
        with np.errstate(all="ignore"):  # what exploded is recorded as float32: infinity is the right sum of it
            return rule.find(trace)
    except Exception:  # a rule that fails must not cost the reader the other findings
        logger.exception("The rule %s failed on %r; the other rules go on. Please report this.", rule.code, trace)
        return None


# -- one remedy for several causes ---------------------------------------------------------------------
def with_joint_remedy(findings: Sequence[Finding], trace: Trace) -> list[Finding]:
    """Return the findings; where only the changes together fix the run, each of their causes names them as one remedy.

    Args:
        findings: What the rules found, in any order.
        trace: The record they rest on, with the variations of its trial.
    """
    tried = [one for one in PARTS if variation(trace, one) is not None]
    if len(tried) < 2 or not fixed_by(trace, ALL_SCALED) or fixed_by(trace, *tried):
        return list(findings)
    by_code = {finding.code: finding for finding in findings}
    causes = {one: by_code[code] for one in tried for code in PARTS[one][0] if code in by_code}
    if len(causes) < 2:
        return list(findings)
    remedy = _remedy(causes, trace)
    together = {finding.code for finding in causes.values()}
    return [
        replace(finding, prescriptions=(remedy, *finding.prescriptions)) if finding.code in together else finding
        for finding in findings
    ]


def _remedy(causes: Mapping[Variation, Finding], trace: Trace) -> Prescription:
    changed = [PARTS[one][1] for one in causes]
    named = f"{', '.join(changed[:-1])} and {changed[-1]}"
    weights = causes.get(FITTING_WEIGHTS)
    code = ""
    if weights is not None and weights.prescriptions:
        code = weights.prescriptions[0].code.rstrip("\n") + "\n\n# Then, with the model that has these layers:\n"
    inputs = {one.name: is_pixels(one) for one in far_inputs(trace)} if SCALED_INPUTS in causes else {}
    target = far_target(trace) if SCALED_TARGETS in causes else None
    title = f"Scale {named} together" if weights is None else f"Bring {named} to unit size together"
    lines = code + scaling_lines(inputs, None if target is None else target.name)
    return prescription("change_together", title=title, lines=lines, named=named)
