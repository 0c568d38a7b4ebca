"""The table of codes: every row has its page, its fixtures and its place."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from gradrecipes.core.findings import Kind
from gradrecipes.diagnosis import rules
from gradrecipes.diagnosis.registry import rules as all_rules

RULES = all_rules()
HEADINGS = ("What it does", "Why it is bad", "Example", "Remedy", "References")


def page_of(code: str) -> str:
    return sys.modules[RULES[code].find.__module__].__doc__


@pytest.mark.parametrize("code", RULES)
def test_every_rule_has_its_page(code):
    assert RULES[code].find.__name__ == code
    assert RULES[code].find.__module__ == f"gradrecipes.diagnosis.rules.{code}"
    page = page_of(code)
    assert page.startswith(f"{code}: ")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == list(HEADINGS)
    for example in re.findall(r"```python\n(.+?)```", page, re.DOTALL):
        compile(example, code, "exec")
    assert all(len(section.strip()) > 40 for section in re.split(r"^## .+$", page, flags=re.MULTILINE)[1:])


@pytest.mark.parametrize("code", RULES)
def test_every_rule_has_traces_that_fire_it_and_traces_that_must_not(code, fixtures_by_code):
    fires, silent = fixtures_by_code
    assert fires.get(code) and len(silent.get(code, ())) >= 3
    assert not set(fires[code]) & set(silent[code])


def test_every_file_of_rules_is_in_the_table():
    files = {path.stem for path in Path(rules.__path__[0]).glob("*.py")} - {"__init__"}
    assert files == set(RULES)


def test_titles_are_one_line_and_kinds_are_kinds():
    for code in RULES.values():
        assert isinstance(code.kind, Kind)
        assert 10 < len(code.title) < 100 and "\n" not in code.title
