"""The notebooks are generated from the scripts in recipes/, executed, and never edited by hand."""

from __future__ import annotations

import os
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))
MAKE = "make notebooks RECIPES={name}"
EXECUTED = ("00_the_chain",)  # anew, in the tests; about 15 seconds each


def notebook_of(script):
    path = ROOT / "notebooks" / f"{script.stem}.ipynb"
    assert path.is_file(), f"{path.name} is missing; make it with: {MAKE.format(name=script.stem)}"
    return nbformat.read(path, as_version=4)


def sources(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_notebook_has_its_script():
    assert SCRIPTS
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_notebook_says_what_its_script_says(script):
    drift = f"{script.stem} has drifted from its script; make it anew with: {MAKE.format(name=script.stem)}"
    assert sources(notebook_of(script)) == sources(jupytext.read(script)), drift


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_notebook_was_executed_from_top_to_bottom_and_shows_its_plots(script):
    code = [cell for cell in notebook_of(script).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = "".join(output.get("text", "") for output in outputs if output.output_type == "stream")
    assert "It holds" in said
    assert not re.search(r"Traceback|Warning|/home/|/tmp/|site-packages", said)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_script_is_one_to_copy(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    assert "gradrecipes.demo" not in text
    assert "assert " in text


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # those of the client, about event loops; the kernel's are not heard here
@pytest.mark.parametrize("name", EXECUTED)
def test_the_notebook_runs_from_top_to_bottom(name, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    notebook = jupytext.read(ROOT / "recipes" / f"{name}.py")
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "It holds" in said
