"""The workflows of the code host run what the Makefile has, on every Python that pyproject.toml admits."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def commands(workflow: dict) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_command_is_a_target_of_the_makefile(name):
    ran = commands(WORKFLOWS[name])
    assert ran
    assert {command.split()[0] for command in ran} == {"make"}
    assert {command.split()[1] for command in ran} <= TARGETS


def test_what_guards_a_change_is_run():
    ran = {command.split()[1] for command in commands(WORKFLOWS["tests"])}
    assert {"test-all", "test-oldest", "lint", "docs", "wheel"} <= ran
    assert "make bench-check PYTHON=python" in commands(WORKFLOWS["nightly"])


def test_the_tests_run_on_every_python_that_is_admitted():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    admitted = re.findall(r"Python :: (3\.\d+)", "\n".join(settings["project"]["classifiers"]))
    assert WORKFLOWS["tests"]["jobs"]["newest"]["strategy"]["matrix"]["python"] == admitted
