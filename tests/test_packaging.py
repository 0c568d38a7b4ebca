"""What pyproject.toml, requirements.txt and the package say about each other."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import gradrecipes
from tests.oldest_versions import oldest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = {"scipy", "numpy", "tensorflow", "keras", "keras-tuner", "tensorboard"}


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0]


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def extra(name: str) -> set[str]:
    """Return the requirements of an extra, those of the extras it names included."""
    found = set()
    for requirement in EXTRAS[name]:
        inner = re.fullmatch(r"gradrecipes\[(.*)\]", requirement)
        found |= set().union(*(extra(part) for part in inner[1].split(","))) if inner else {requirement}
    return found


def test_the_package_needs_six_others_within_bounds():
    assert {name_of(requirement) for requirement in PROJECT["dependencies"]} == NEEDED
    for requirement in PROJECT["dependencies"]:
        assert re.fullmatch(r"[a-z-]+>=[\d.]+,<[\d.]+", requirement)


def test_requirements_are_the_six_and_what_the_scripts_need_with_the_same_bounds():
    scripts = {"matplotlib", "jinja2", "scikit-learn", "mlxtend"}
    assert {name_of(requirement) for requirement in requirements()} == NEEDED | scripts
    assert set(requirements()) == set(PROJECT["dependencies"]) | extra("demo") | extra("tuning")


def test_dev_holds_every_other_extra():
    for name in set(EXTRAS) - {"dev"}:
        assert extra(name) <= extra("dev"), name


def test_a_requirement_has_one_bound_everywhere():
    every = [*PROJECT["dependencies"], *(requirement for name in EXTRAS for requirement in extra(name))]
    assert len(set(every)) == len({name_of(requirement) for requirement in every})


def test_the_oldest_versions_are_the_lower_bounds_of_all_that_the_package_imports():
    pinned = dict(line.split("==") for line in oldest(PROJECT))
    assert pinned.keys() == NEEDED | {"matplotlib", "jinja2", "scikit-learn", "mlxtend", "optuna"}
    for requirement in PROJECT["dependencies"]:
        assert requirement.startswith(f"{name_of(requirement)}>={pinned[name_of(requirement)]},")


def test_the_version_can_be_read_without_importing_anything():
    tree = ast.parse((ROOT / "gradrecipes" / "__init__.py").read_text())
    values = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [target.id for target in node.targets] == ["__version__"]
    ]
    assert values == [gradrecipes.__version__]
    assert re.fullmatch(r"\d+\.\d+\.\d+", gradrecipes.__version__)


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "gradrecipes" / "py.typed").is_file()


def test_the_licence_is_apache():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("name", ["colour", "Tracee"])
def test_an_unknown_public_name_lists_the_known_ones(name):
    with pytest.raises(AttributeError, match=rf"no '{name}'. It has: Trace, "):
        getattr(gradrecipes, name)


def test_every_public_name_leads_somewhere():
    assert len(gradrecipes.__all__) == len(set(gradrecipes.__all__))
    for name in gradrecipes.__all__:
        assert getattr(gradrecipes, name) is not None, name
