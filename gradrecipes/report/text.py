"""A diagnosis as text: on one screen, with the one thing to do first, or in full, fit for logs and mails."""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize

from gradrecipes.core.findings import Evidence, Finding, Prescription, Severity
from gradrecipes.diagnosis.judgement import HEALTHY, UNDECIDED, UNHEALTHY
from gradrecipes.report import findings as wording
from gradrecipes.report.facts import event_counts, looked_at, trial_rows
from gradrecipes.report.findings import ARROW, OrderedFindings, path

WIDTH, HEIGHT = 80, 40  # columns and lines: the size of a terminal window, with some lines for the prompt
MAX_NUMBERS = 5  # pieces of evidence with a number; more is for the full text
NUMBER_WIDTH = 11  # columns of a number in the table of evidence: -1.234e-308
STATEMENT_WIDTH = WIDTH - 2 * (NUMBER_WIDTH + 2)
MIN_EVIDENCE_LINES = 6  # a blank line, the header, and one fact
MAX_HEAD_LINES = 3  # lines of the verdict
MAX_TEXT_LINES = 4  # lines of a paragraph
HEADING, PLAIN, QUIET, CODE = "bold", "", "dim", "green"
HEAD_STYLES = {HEALTHY: "bold green", UNHEALTHY: "bold red", UNDECIDED: "bold yellow"}
REST = "In full: --full or print(diagnosis.full()). A page: diagnosis.save_html(path)."

Line = tuple[str, str]  # text and style, as rich names it
INDENT = 4  # columns by which the rest of a broken line is indented further


def on_screen(diagnosis: OrderedFindings) -> list[Line]:
    """Return at most 40 lines of at most 80 columns, each with its style.

    What a screen has no room for is left out from the least useful on: other findings, evidence, the reason.
    """
    head = [(line, HEAD_STYLES[diagnosis.verdict]) for line in _cut(diagnosis.summary, MAX_HEAD_LINES)]
    if diagnosis.findings:
        head.append((f"{diagnosis.tally} in {len(diagnosis.trace):,} recorded steps", QUIET))
    foot = [("", PLAIN), *((line, QUIET) for line in textwrap.wrap(REST, WIDTH))]
    room = HEIGHT - len(head) - len(foot)
    alarming = any(finding.severity is not Severity.NOTICE for finding in diagnosis.findings)
    body = _unhealthy(diagnosis, room) if alarming else _healthy(diagnosis, room)
    return [(wording.printable(line), style) for line, style in [*head, *body, *(foot if body else [])]]


def _healthy(diagnosis: OrderedFindings, room: int) -> list[Line]:
    notices = _others(diagnosis.findings, 1, "Worth knowing", room // 3)
    seen = looked_at(diagnosis.trace)
    if not seen:
        return notices
    lines: list[Line] = [("", PLAIN), ("What was looked at", HEADING)]
    for part, words in seen:
        for line in _cut(f"{part}: {words}", MAX_TEXT_LINES, indent="    ", first="  "):
            lines.append((line, PLAIN))
    return _fitting(lines, room - len(notices)) + notices


def _unhealthy(diagnosis: OrderedFindings, room: int) -> list[Line]:
    first, others = diagnosis.findings[0], diagnosis.findings[1:]
    way = _way(first, diagnosis)
    least = 2 + min(len(others), 2) if others else 0  # a blank line, a heading, one finding, how many more
    remedy = _remedy(first, room - len(way) - least - MIN_EVIDENCE_LINES)
    room -= len(way) + len(remedy)
    wanted = min(len(others) + 2, room // 2) if others else 0
    evidence = _evidence(first, diagnosis, room - max(least, wanted))
    return [*way, *evidence, *remedy, *_others(others, 2, "Other findings", room - len(evidence))]


def _way(first: Finding, diagnosis: OrderedFindings) -> list[Line]:
    way = path(first, diagnosis.trace)
    if not way:
        symptoms = [symptom.title for _, symptom in diagnosis.symptoms(first) if symptom is not None]
        way = ARROW.join([first.title, *symptoms]) if symptoms else ""
    where = f"Where: {wording.place(first)}, {wording.since(first, diagnosis.trace)}."
    sure = f"Finding 1, {first.code}, is {wording.confidence(first.confidence)}."
    lines: list[Line] = [("", PLAIN), ("From the cause to what you see", HEADING)] if way else [("", PLAIN)]
    lines += [(line, "cyan") for line in _cut(way, MAX_TEXT_LINES, indent="  ")] if way else []
    return lines + [(line, PLAIN) for line in _cut(f"{where} {sure}", 2, indent="  " if way else "")]


def _evidence(first: Finding, diagnosis: OrderedFindings, room: int) -> list[Line]:
    """Return a table of the facts with a number, or the plain facts where none has one."""
    numbered = [fact for fact in first.evidence if fact.measured is not None][:MAX_NUMBERS]
    facts = numbered or list(first.evidence[:2])
    if not facts:
        paragraph = [(line, PLAIN) for line in _cut(first.explanation, MAX_TEXT_LINES, indent="  ")]
        return [("", PLAIN), ("Why", HEADING), *paragraph][: max(room, 0)]
    header = f"{'Evidence'.ljust(STATEMENT_WIDTH)}  {'measured':>{NUMBER_WIDTH}}  {'expected':>{NUMBER_WIDTH}}"
    lines: list[Line] = [("", PLAIN), (header if numbered else "Evidence", HEADING)]
    for fact in facts:
        rows = _fact(fact) if numbered else _cut(fact.statement, MAX_TEXT_LINES, indent="    ", first="  ")
        if len(lines) + len(rows) > room and len(lines) > 2:
            break
        lines += [(row, PLAIN) for row in rows]
    return lines


def _fact(fact: Evidence) -> list[str]:
    statement = _cut(fact.statement, MAX_TEXT_LINES - 1, indent="    ", first="  ", width=STATEMENT_WIDTH)
    numbers = [wording.number(value).replace("minus ", "-") for value in (fact.measured, fact.expected)]
    aligned = "  ".join(number.rjust(NUMBER_WIDTH) for number in numbers)
    return [f"{statement[0].ljust(STATEMENT_WIDTH)}  {aligned}", *statement[1:]]


def _remedy(first: Finding, room: int) -> list[Line]:
    """Return the first prescription of a finding whose lines fit."""
    for prescription in first.prescriptions:
        title = _cut(f"Do this first: {prescription.title}", 2)
        code = narrow(prescription.code, WIDTH)
        if len(title) + len(code) + 2 > room:
            continue
        lines = [("", PLAIN), *((line, HEADING) for line in title), ("", PLAIN), *((line, CODE) for line in code)]
        reason = (
            ["", *_cut(f"Why: {prescription.reason}", MAX_TEXT_LINES, indent="  ", first="")]
            if prescription.reason
            else []
        )
        return lines + [(line, PLAIN) for line in reason if len(lines) + len(reason) <= room]
    if not first.prescriptions:
        return []
    title = _cut(f"Do this first: {first.prescriptions[0].title}", 2)
    pointer = "print(diagnosis.findings[0].prescriptions[0].code)  # too long for this screen"
    return [("", PLAIN), *((line, HEADING) for line in title), ("", PLAIN), (pointer, CODE)]


def _others(findings: tuple[Finding, ...], start: int, heading: str, room: int) -> list[Line]:
    if not findings:
        return []
    lines: list[Line] = [("", PLAIN), (heading, HEADING)]
    places = max(1, room - 2)
    shown = findings if len(findings) <= places else findings[: places - 1]
    for number, finding in enumerate(shown, start):
        mild = "" if finding.severity is Severity.CRITICAL else f" ({finding.severity.value})"
        lines.append((_one_line(f"  {number}. {finding.code}{mild}: {finding.title}"), PLAIN))
    left = len(findings) - len(shown)
    return lines + ([(f"  and {left} more", QUIET)] if left else [])


def _one_line(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 2].rstrip()} …"


def _fitting(lines: list[Line], room: int) -> list[Line]:
    return lines if len(lines) <= room else [*lines[: max(0, room - 1)], ("  …", QUIET)]


def _cut(text: str, lines: int, *, indent: str = "", first: str | None = None, width: int = WIDTH) -> list[str]:
    """Return text in lines of a width, cut with an ellipsis after so many lines."""
    return textwrap.wrap(
        wording.printable(text),
        width,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        max_lines=lines,
        placeholder=" …",
    )


def narrow(code: str, width: int) -> list[str]:
    """Return the lines of code, each at most `width` columns where Python's syntax allows it.

    A line is broken after a comma or an opening bracket; a comment behind code moves to the line above it. Several
    blank lines become one. The code means the same: if that cannot be shown, it is returned as it is.

    Args:
        code: Python source.
        width: Columns.

    Example:
        >>> print("\\n".join(narrow("f(alpha, beta, gamma)  # greek", 14)))
        # greek
        f(alpha, beta,
            gamma)
    """
    lines = code.strip("\n").split("\n")
    try:
        breaks, comments = _positions(code.strip("\n"))
        narrowed = [
            part for row, line in enumerate(lines, 1) for part in _line(line, breaks[row], comments[row], width)
        ]
        kept = [line for place, line in enumerate(narrowed) if line or (place and narrowed[place - 1])]
        same = ast.dump(ast.parse("\n".join(kept))) == ast.dump(ast.parse(code))
    except (SyntaxError, tokenize.TokenError):
        same = False
    return kept if same else lines


def _positions(code: str) -> tuple[list[list[int]], list[int | None]]:
    """Return for each row, counted from 1, the columns where it may be broken, and where its comment begins."""
    rows = code.count("\n") + 2
    breaks: list[list[int]] = [[] for _ in range(rows)]
    comments: list[int | None] = [None] * rows
    depth = in_string = 0
    for token in tokenize.generate_tokens(io.StringIO(code + "\n").readline):
        name = tokenize.tok_name[token.type]
        in_string += name.endswith("STRING_START")  # of an f-string, from Python 3.12 on
        in_string -= name.endswith("STRING_END")
        depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}")) if name == "OP" else 0
        row, column = token.end
        if name == "OP" and depth and not in_string and token.string in (",", "(", "[", "{"):
            breaks[row].append(column)
        elif name == "COMMENT":
            comments[row] = token.start[1]
    return breaks, comments


def _line(line: str, breaks: list[int], comment: int | None, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    if comment is not None:
        words = line[comment:].lstrip("# ")
        said = textwrap.wrap(words, width, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        return said + (_line(line[:comment].rstrip(), breaks, None, width) if line[:comment].strip() else [])
    parts, start, prefix = [], 0, ""
    while len(prefix) + len(line[start:]) > width:
        fitting = [column for column in breaks if start < column < len(line) and len(prefix) + column - start <= width]
        later = [column for column in breaks if start < column < len(line)]
        if not later:
            break
        column = max(fitting) if fitting else later[0]
        parts.append(prefix + line[start:column].rstrip())
        start, prefix = column + len(line[column:]) - len(line[column:].lstrip()), indent + " " * INDENT
    return [*parts, prefix + line[start:]]


def full_text(diagnosis: OrderedFindings) -> str:
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
    cells = [("Tried", "loss from", "to", "over baseline", "")]
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
