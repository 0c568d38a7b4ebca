"""The table of prescriptions: whole entries, Keras lines that parse, none that no rule uses."""

from __future__ import annotations

import ast
from pathlib import Path
from string import Template

import pytest

import gradrecipes.diagnosis
from gradrecipes.diagnosis.prescriptions.prescribe import prescription, texts

SOURCES = "".join(path.read_text() for path in Path(gradrecipes.diagnosis.__path__[0]).rglob("*.py"))


@pytest.mark.parametrize("key", texts())
def test_an_entry_says_what_why_and_at_what_risk(key):
    entry = texts()[key]
    assert {"title", "code", "reason", "risk"} <= set(entry) <= {"title", "code", "reason", "risk", "reference"}
    assert all(entry.values())


@pytest.mark.parametrize("key", texts())
def test_the_lines_are_python_whatever_is_filled_in(key):
    names = set().union(*(Template(text).get_identifiers() for text in texts()[key].values()))
    filled = prescription(key, **dict.fromkeys(names, "name"))
    ast.parse(filled.code)
    assert "$" not in filled.title + filled.code + filled.reason + filled.risk


@pytest.mark.parametrize("key", texts())
def test_no_entry_is_left_over(key):
    assert f'"{key}"' in SOURCES


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(KeyError, match="fewer"):
        prescription("fewer_layers", depth=20)
