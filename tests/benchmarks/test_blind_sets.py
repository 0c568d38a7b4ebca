"""Of a set that is kept blind, a benchmark shows totals: no name of a program, no cause."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import diagnosis, rescue
from tests.corpus.case import BLIND, Case

NAME, CAUSE = "a_program_that_was_missed", "unsafe_loss"
DIAGNOSED = {
    "name": NAME, "kind": "failing", "cause": CAUSE, "found": [], "right": False, "verdict": "healthy", "seconds": 1.0,
    "error": "", "steps": 10,
}  # fmt: skip
RESCUED = {
    "name": NAME, "cause": CAUSE, "right": False, "verdict": "none", "changes": [], "needed": [], "error": "",
    "trainings": 1.0, "seconds": 1.0,
}  # fmt: skip


def run(benchmark: ModuleType, name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = (Case(NAME, lambda: None, "a report", CAUSE),)
    monkeypatch.setattr(importlib.import_module(f"tests.corpus.{name}"), "CASES", cases)
    monkeypatch.setattr(diagnosis, "score", lambda name, **options: [DIAGNOSED])
    monkeypatch.setattr(rescue, "judge", lambda case, baselines: RESCUED)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--set", name, "--out", str(out)])
    benchmark.main()


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("benchmark", [diagnosis, rescue])
def test_nothing_but_totals_of_a_blind_set_is_printed(
    benchmark: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    run(benchmark, name, tmp_path / "rows.json", monkeypatch)
    printed = capsys.readouterr().out
    assert f"{name}: 1 failing programs" in printed
    assert NAME not in printed
    assert CAUSE not in printed


@pytest.mark.parametrize("benchmark", [diagnosis, rescue])
def test_the_programs_missed_of_an_open_set_are_named(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    run(benchmark, "tuning_half", tmp_path / "rows.json", monkeypatch)
    assert NAME in capsys.readouterr().out


@pytest.mark.parametrize("name", BLIND)
def test_the_rows_of_a_blind_set_are_not_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(diagnosis, name, tmp_path / "rows.json", monkeypatch)
    assert json.loads((tmp_path / "rows.json").read_text()) == {}
