"""The evidence page and the README's table say what the recorded figures say, misses first."""

from __future__ import annotations

import pytest

from benchmarks import evidence
from benchmarks.record import Figure, Record
from benchmarks.run import BENCHMARKS

AGAIN = "write both again with: python -m benchmarks.evidence"
STUB = Record(
    "stub",
    "A stub",
    "make bench ONLY=stub",
    [
        Figure("reproduced", 1.2, 1.1, 1.3, expected=1.2, n=20),
        Figure("missed", 2.0, 1.9, 2.1, expected=1.2, n=20),
        Figure("diverged", None, expected=1.2, n=0),
        Figure("nothing expected", 3.0),
    ],
    plot="stub.png",
    about={"keras": "3.15"},
)


def test_the_page_is_what_the_recorded_figures_give():
    recorded = evidence.records()
    unrecorded = [name for name in BENCHMARKS if name not in {one.name for one in recorded}]
    assert evidence.PAGE.read_text(encoding="utf-8") == evidence.page(recorded, unrecorded), AGAIN


def test_the_table_of_the_readme_is_what_the_recorded_figures_give():
    readme = evidence.README.read_text(encoding="utf-8")
    assert readme == evidence.with_table(readme, evidence.table(evidence.records())), AGAIN


def test_every_recorded_plot_is_there():
    plots = [one.plot for one in evidence.records() if one.plot]
    assert [plot for plot in plots if not (evidence.PAGE.parent / plot).is_file()] == []


def test_what_was_missed_and_what_was_not_measured_stand_first():
    said = evidence.page([STUB], ["another"])
    head = said.partition("## A stub")[0]
    assert "missed: 2 (1.9 to 2.1), expected 1.2." in head
    assert "diverged: no number: diverged, expected 1.2." in head
    assert "make bench ONLY=another" in head
    assert "| reproduced | 1.2 | 1.2 (1.1 to 1.3) | 20 | yes |" in said
    assert "| nothing expected | - | 3 | 1 | - |" in said
    assert "keras 3.15" in said


def test_the_table_counts_what_came_out_as_expected():
    assert "| A stub | 1 of 3 | missed; diverged | `make bench ONLY=stub` |" in evidence.table([STUB])


def test_a_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="between which the table goes"):
        evidence.with_table("# gradrecipes", "")
