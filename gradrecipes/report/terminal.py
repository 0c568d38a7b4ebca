"""A diagnosis in a terminal, with rich; rich leaves the colours out where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gradrecipes.core.findings.finding import Finding, Severity
from gradrecipes.report import wording
from gradrecipes.report.looked_at import looked_at
from gradrecipes.report.path import path
from gradrecipes.report.run_facts import event_counts
from gradrecipes.report.trial_rows import trial_rows

if TYPE_CHECKING:
    from gradrecipes.report.diagnosis import Diagnosis

STYLES = {Severity.CRITICAL: "bold red", Severity.WARNING: "bold yellow", Severity.NOTICE: "bold cyan"}


def render(diagnosis: Diagnosis) -> Iterator[Any]:
    """Yield rich renderables: the verdict, each finding with its evidence and remedies, the events."""
    from rich.padding import Padding
    from rich.panel import Panel

    headline = _text(diagnosis.verdict, "bold")
    if diagnosis.findings:
        headline.append(f"\n{wording.tally(diagnosis)} in {len(diagnosis.trace):,} recorded steps", "not bold")
    colour = "green" if diagnosis.healthy else "red"
    yield Panel(headline, border_style=colour if len(diagnosis.trace) or diagnosis.findings else "yellow")
    for place, finding in enumerate(diagnosis.findings, 1):
        yield from _heading(place, finding, diagnosis)
        for part in _body(finding, diagnosis):
            yield Padding(part, (0, 0, 0, 3))
    yield from _tried(diagnosis)
    yield from _looked_at(diagnosis)
    counts = event_counts(diagnosis.trace)
    if counts:
        yield _text("\nEvents", "bold")
    for c in counts:
        yield Padding(
            _text(f"{c.count} x {c.kind}{f' ({c.reason})' if c.reason else ''}, first: {c.first}"), (0, 0, 0, 3)
        )


def _heading(place: int, finding: Finding, diagnosis: Diagnosis) -> Iterator[Any]:
    from rich.padding import Padding

    heading = _text(f"\n{place}. ", "bold")
    heading.append(f"{finding.severity.value.upper()} {finding.kind.value}", STYLES[finding.severity])
    heading.append(wording.printable(f"  {finding.title}"), "bold")
    yield heading
    where = f"{finding.code}: {wording.confidence(finding.confidence)}, in {wording.place(finding)}, "
    yield Padding(_text(where + wording.since(finding, diagnosis.trace), "dim"), (0, 0, 0, 3))


def _body(finding: Finding, diagnosis: Diagnosis) -> Iterator[Any]:
    from rich.padding import Padding
    from rich.syntax import Syntax

    way = path(finding, diagnosis)
    if way:
        yield _text(way, "bold cyan")
    yield _text(finding.explanation)
    if finding.evidence:
        yield _evidence_table(finding)
    for code, symptom in [] if way else wording.symptoms(finding, diagnosis):
        yield _text(f"→ leads to: {symptom.title if symptom else f'{code} (not seen in this run)'}", "italic")
    for number, prescription in enumerate(finding.prescriptions, 1):
        yield _text(f"Remedy {number}: {prescription.title}", "bold green")
        code = wording.printable(prescription.code.strip("\n"))
        yield Padding(Syntax(code, "python", background_color="default", word_wrap=True), (0, 0, 0, 4))
        for name in ("reason", "risk", "reference"):
            if getattr(prescription, name):
                yield Padding(_text(f"{name}: {getattr(prescription, name)}", "dim"), (0, 0, 0, 4))


def _evidence_table(finding: Finding) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Evidence", ratio=1)
    table.add_column("measured", justify="right")
    table.add_column("expected", justify="right")
    for fact in finding.evidence:
        statement = _text(fact.statement)
        if fact.source:
            statement.append(wording.printable(f"\n{fact.source}"), "dim")
        table.add_row(statement, wording.number(fact.measured), wording.number(fact.expected))
    return table


def _tried(diagnosis: Diagnosis) -> Iterator[Any]:
    from rich import box
    from rich.table import Table

    rows = trial_rows(diagnosis.trace)
    if len(rows) < 2:
        return
    yield _text("")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("What was tried")
    for header in ("loss from", "to", "over a guess"):
        table.add_column(header, justify="right")
    table.add_column("")
    for row in rows:
        style = "bold green" if row.mends else ""
        table.add_row(row.name, row.start, row.end, row.over_baseline, row.outcome, style=style)
    yield table


def _looked_at(diagnosis: Diagnosis) -> Iterator[Any]:
    from rich.padding import Padding

    seen = looked_at(diagnosis.trace)
    if not seen or (diagnosis.findings and not diagnosis.trace.probes):
        return
    yield _text("\nLooked at", "bold")
    for part, words in seen:
        line = _text(f"{part}: ", "bold dim")
        line.append(wording.printable(words), "not bold dim")
        yield Padding(line, (0, 0, 0, 3))


def _text(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(wording.printable(text), style=style)  # a Text, not markup: "[bold]" in a layer name stays as it is
