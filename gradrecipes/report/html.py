"""A diagnosis as one HTML page that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradrecipes import __version__
from gradrecipes.diagnosis.registry import rules
from gradrecipes.report import run_facts, wording
from gradrecipes.report.findings import OrderedFindings
from gradrecipes.report.looked_at import looked_at
from gradrecipes.report.path import path
from gradrecipes.report.rule_page import RulePage, rule_page
from gradrecipes.report.trial_rows import trial_rows

EVENTS_AT_MOST = 200  # events that are listed one by one; the counts cover all of them


def write_html(path: str | os.PathLike[str], diagnoses: Sequence[tuple[str, OrderedFindings]]) -> None:
    """Write one self-contained page about one run or several.

    Args:
        path: Where to write; folders that are missing are made.
        diagnoses: Pairs of the name of a run and its diagnosis. The name of a single run may be empty.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
        ValueError: There is no diagnosis.
    """
    page = render_page(diagnoses)  # before the file is touched, so that an error leaves the old one whole
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page.encode("utf-8", errors="xmlcharrefreplace"))


def render_page(diagnoses: Sequence[tuple[str, OrderedFindings]]) -> str:
    """Return the page that `write_html` writes."""
    if not diagnoses:
        raise ValueError(
            "A report needs at least one diagnosis. Received an empty list. "
            "`gradrecipes.diagnose(trace)` makes a diagnosis."
        )
    environment = _environment()
    from gradrecipes.report.figures import pictures

    runs = [_run(place, name, diagnosis) for place, (name, diagnosis) in enumerate(diagnoses, 1)]
    for run, (_, diagnosis) in zip(runs, diagnoses, strict=True):
        run["pictures"] = pictures(diagnosis.trace)
    return environment.get_template("page.html.j2").render(runs=runs, version=__version__)


def render_fragment(diagnosis: OrderedFindings) -> str:
    """Return a part of a page, with its own style and without pictures, for a notebook cell."""
    run = _run(1, "", diagnosis)
    return _environment().get_template("fragment.html.j2").render(run=run)


def _environment() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(
            "An HTML report needs jinja2, which is not installed. Install it with: pip install 'gradrecipes[report]'"
        ) from error
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "confidence": wording.confidence,
        "clean": wording.printable,
        "paragraphs": _paragraphs,
    }
    return environment


def _page(code: str) -> RulePage | None:
    return rule_page(code) if code in rules() else None


def _run(place: int, name: str, diagnosis: OrderedFindings) -> dict[str, Any]:
    trace = diagnosis.trace
    anchors = {id(finding): f"run-{place}-finding-{count}" for count, finding in enumerate(diagnosis.findings, 1)}

    def linked(finding: Any) -> dict[str, Any]:
        return {"title": finding.title, "anchor": anchors[id(finding)]}

    return {
        "anchor": f"run-{place}",
        "name": name,
        "state": diagnosis.verdict,
        "summary": diagnosis.summary,
        "tally": diagnosis.tally,
        "findings": [
            {
                "finding": finding,
                "anchor": anchors[id(finding)],
                "where": wording.place(finding),
                "since": wording.since(finding, trace),
                "symptoms": [
                    linked(symptom) if symptom else {"title": f"{code} (not seen in this run)", "anchor": ""}
                    for code, symptom in diagnosis.symptoms(finding)
                ],
                "path": path(finding, trace),
                "page": _page(finding.code),
                "causes": [linked(cause) for cause in diagnosis.causes(finding)],
            }
            for finding in diagnosis.findings
        ],
        "pictures": [],
        "tried": trial_rows(trace),
        "looked_at": looked_at(trace),
        "facts": run_facts.facts(trace),
        "layer_columns": [column.replace("_", " ") for column in run_facts.LAYER_COLUMNS],
        "layers": run_facts.layer_rows(trace),
        "event_counts": run_facts.event_counts(trace),
        "events": trace.events[:EVENTS_AT_MOST],
        "events_left_out": max(0, len(trace.events) - EVENTS_AT_MOST),
    }


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs of the Markdown of a rule's page, each on one line; items of a list each for itself."""
    parts = re.split(r"\n\s*\n|\n(?=- )", text)
    return [" ".join(part.removeprefix("- ").split()) for part in parts if part.strip()]
