"""Every practice tells what its script measured, in the script's own words."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from gradrecipes import recipes
from gradrecipes.cli.recipes import measured_effects

ROOT = Path(__file__).resolve().parents[2]
PRACTICES = [practice.__name__ for practice in recipes.PRACTICES]
MAKE = "python benchmarks/measure_recipes.py"


def test_there_is_one_entry_for_each_practice_and_no_other():
    assert sorted(measured_effects()) == sorted(PRACTICES), f"make them with: {MAKE}"


@pytest.mark.parametrize("practice", PRACTICES)
def test_the_entry_names_its_script_and_says_what_its_notebook_says(practice):
    entry = measured_effects()[practice]
    script = ROOT / entry["script"]
    assert script.is_file() and script.stem.split("_", 1)[1] == practice
    assert f"gr.recipes.{practice}(" in script.read_text(encoding="utf-8")
    notebook = nbformat.read(ROOT / "notebooks" / f"{script.stem}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs).splitlines()
    assert f"measured: {entry['effect']}" in said, f"one of the two is old; make both with: {MAKE} {script.stem}"


@pytest.mark.parametrize("practice", PRACTICES)
def test_the_effect_has_an_interval_and_its_seeds(practice):
    effect = measured_effects()[practice]["effect"]
    assert "95% interval" in effect and "seeds" in effect


def test_the_file_is_strict_json_that_lies_in_the_package():
    text = (ROOT / "gradrecipes" / "recipes" / "measured.json").read_text(encoding="utf-8")
    assert text.endswith("\n")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads(text, parse_constant=refuse)
