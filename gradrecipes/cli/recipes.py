"""`gradrecipes recipes`: the six best practices, what each claims, and what was measured."""

from __future__ import annotations

import argparse
import json
from importlib import resources
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `gradrecipes recipes` takes."""
    parser.add_argument("--json", action="store_true", help="print the recipes as JSON and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """List the recipes; return 0."""
    from gradrecipes import recipes

    measured = measured_effects()
    rows = [_row(recipe, measured.get(recipe.name)) for recipe in recipes.all()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("recipe", no_wrap=True), "what it claims", "what its script measured", show_lines=True)
    for row in rows:
        table.add_row(row["name"], row["claim"], row["measured"] or "not yet")
    Console().print(table)
    return 0


def measured_effects() -> dict[str, dict[str, Any]]:
    """Return, by the name of a recipe, what its script measured when it last ran for the record."""
    file = resources.files("gradrecipes.recipes") / "measured.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _row(recipe: Any, measured: dict[str, Any] | None) -> dict[str, Any]:
    effect = None if measured is None else measured["effect"]
    script = None if measured is None else measured["script"]
    row = {"name": recipe.name, "claim": recipe.claim, "measured": effect, "script": script}
    return {**row, "references": list(recipe.references)}
