"""A diagnosis in full as plain text: no colours, no control codes, fit for logs and mails."""

from __future__ import annotations

import textwrap

from gradrecipes.core.findings import Finding, Prescription
from gradrecipes.report import wording
from gradrecipes.report.findings import OrderedFindings
from gradrecipes.report.looked_at import looked_at
from gradrecipes.report.path import path
from gradrecipes.report.run_facts import event_counts
from gradrecipes.report.trial_rows import trial_rows

WIDTH = 80  # characters of a line


def render(diagnosis: OrderedFindings) -> str:
    """Return the whole diagnosis as text."""
    lines = [diagnosis.summary]
    if diagnosis.findings:
        lines.append(f"{diagnosis.tally} in {len(diagnosis.trace):,} recorded steps")
    for place, finding in enumerate(diagnosis.findings, 1):
        lines += ["", *_finding(place, finding, diagnosis)]
    lines += _tried(diagnosis)
    if diagnosis.trace.probes or not diagnosis.findings:
        seen = looked_at(diagnosis.trace)
        lines += ["", "Looked at"] if seen else []
        for part, words in seen:
            lines += _wrapped(f"{part}: {words}", "    ", first="  ")
    counts = event_counts(diagnosis.trace)
    if counts:
        lines += ["", "Events"]
        for c in counts:
            lines.append(f"  {c.count} x {c.kind}{f' ({c.reason})' if c.reason else ''}, first: {c.first}")
            lines += _wrapped(str(c.first.details.get("origin_sentence", "")), "      ")
    return wording.printable("\n".join(lines))


def _finding(place: int, finding: Finding, diagnosis: OrderedFindings) -> list[str]:
    lines = [
        f"{place}. [{finding.severity.value.upper()}, {finding.kind.value}] {finding.title}",
        f"   {finding.code}: {wording.confidence(finding.confidence)}, in {wording.place(finding)}, "
        f"{wording.since(finding, diagnosis.trace)}",
        *_wrapped(path(finding, diagnosis.trace), "     ", first="   "),
        *_wrapped(finding.explanation, "   "),
    ]
    for fact in finding.evidence:
        lines += _wrapped(fact.statement, "     ", first="   - ")
        numbers = [
            f"{name} {wording.number(value)}"
            for name, value in (("measured", fact.measured), ("expected", fact.expected))
            if value is not None
        ]
        numbers += [f"source: {fact.source}"] if fact.source else []
        if numbers:
            lines += _wrapped("; ".join(numbers), "     ")
    for code, symptom in diagnosis.symptoms(finding):
        lines.append(f"   leads to: {symptom.title if symptom else f'{code} (not seen in this run)'}")
    for number, prescription in enumerate(finding.prescriptions, 1):
        lines += _prescription(number, prescription)
    return lines


def _tried(diagnosis: OrderedFindings) -> list[str]:
    rows = trial_rows(diagnosis.trace)
    if len(rows) < 2:
        return []
    cells = [("Tried", "loss from", "to", "over guess", "")]
    cells += [(row.name, row.start, row.end, row.over_baseline, row.outcome) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = [""]
    for name, *numbers, outcome in cells:
        aligned = "  ".join(number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))
        lines.append(f"{name.ljust(widths[0])}  {aligned}  {outcome}".rstrip())
    return lines


def _prescription(number: int, prescription: Prescription) -> list[str]:
    lines = [f"   Remedy {number}: {prescription.title}"]
    lines += [f"       | {line}" for line in prescription.code.strip("\n").splitlines()]
    for name in ("reason", "risk", "reference"):
        text = getattr(prescription, name)
        if text:
            lines += _wrapped(f"{name}: {text}", "       ")
    return lines


def _wrapped(text: str, indent: str, *, first: str | None = None) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent if first is None else first, subsequent_indent=indent, break_long_words=False
    )
