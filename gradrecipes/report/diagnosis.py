"""What a trace means: the findings in order, and the forms in which to read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from gradrecipes.core.trace.record import dumps, plain
from gradrecipes.report import text
from gradrecipes.report.facts import looked_at
from gradrecipes.report.findings import OrderedFindings, path

FORMAT = "gradrecipes.diagnosis"
VERSION = 1


class Diagnosis(OrderedFindings):
    """Tell whether a training is healthy, what is wrong with it, why, and what to do.

    Print it for one screen that says what to do first, or its `full()` for everything; show it in a notebook,
    `save_html` it for a colleague, or `to_json` it for a program.

    Args:
        findings: The findings, in any order. They are kept as a tuple in the order in which to read them:
            most severe first, then the surest; a cause stands before the symptoms it explains, and counts
            as severe as the worst of them.
        trace: The record they rest on.

    Raises:
        TypeError: Something that is no `Finding`, or no `Trace`.

    Example:
        >>> from gradrecipes.core.trace import Trace
        >>> Diagnosis((), Trace(layers=["dense"])).verdict
        'undecided'
    """

    # -- for programs ----------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain JSON values; a number JSON cannot hold becomes its name ("nan")."""
        trace = self.trace
        return plain(
            {
                "format": FORMAT,
                "version": VERSION,
                "healthy": self.healthy,
                "verdict": self.verdict,
                "summary": self.summary,
                "findings": [{**finding.to_dict(), "path": path(finding, trace)} for finding in self.findings],
                "looked_at": dict(looked_at(trace)),
                "probes": trace.probes.to_json(),
                "trace": {
                    "steps": len(trace),
                    "samples": len(trace.samples),
                    "skipped_steps": int(trace.skipped.sum()),
                    "layers": trace.layers,
                    "description": trace.description.to_json(),
                    "events": [event.to_dict() for event in trace.events],
                },
            }
        )

    def to_json(self) -> str:
        """Return `to_dict` as strict JSON text: no NaN, no Infinity, ASCII only."""
        return dumps(self.to_dict())

    # -- for people ------------------------------------------------------------------------------
    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained HTML page that needs no network.

        Raises:
            ImportError: jinja2 or matplotlib is not installed.
        """
        from gradrecipes.report.html import write_html

        write_html(path, [("", self)])

    def full(self) -> str:
        """Return all there is to say as text: every finding with evidence, remedies and sources, what was tried.

        Example:
            >>> from gradrecipes.core.trace import Trace
            >>> print(Diagnosis((), Trace(layers=["dense"])).full())
            Undecided: The record holds no training step.
        """
        return text.full_text(self)

    def __str__(self) -> str:
        return "\n".join(line for line, _ in text.on_screen(self))

    def __repr__(self) -> str:
        return f"<Diagnosis: {self.summary} ({self.tally})>"

    def _repr_html_(self) -> str | None:
        """Return a page fragment for notebooks, or None (so that the text is shown) without jinja2."""
        try:
            from gradrecipes.report.html import render_fragment

            return render_fragment(self)
        except ImportError:
            return None

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Yield what rich prints in a terminal: the lines of `print(diagnosis)` in colour."""
        from rich.text import Text

        for line, style in text.on_screen(self):  # a Text, not markup: "[bold]" in a layer name stays as it is
            yield Text(line, style=style, no_wrap=True, overflow="ignore")
