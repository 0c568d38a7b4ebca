"""Importing gradrecipes is cheap: what is heavy comes with the name that needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("keras", "keras_tuner", "tensorflow", "tensorboard", "matplotlib", "jinja2", "sklearn", "scipy", "rich")


def loaded_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh Python has loaded after the statement."""
    script = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import gradrecipes",
        "import gradrecipes; dir(gradrecipes); gradrecipes.__version__",
        "from gradrecipes import Event, Finding, Prescription, Trace; Trace(['dense'])[:]",
    ],
    ids=["import", "look", "record"],
)
def test_nothing_heavy_is_loaded(statement):
    assert loaded_after(statement).isdisjoint(HEAVY)


def test_the_probe_sees_what_is_loaded():
    assert {"numpy", "gradrecipes"} <= loaded_after("import gradrecipes, numpy")
