"""Numbers and their nouns in sentences."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gradrecipes.diagnosis
from gradrecipes.core.findings import counted

FIXED = re.compile(r"\{len\((read|growth\.links|layers)\)[^}]*\} (layers|steps)\\b")


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 layers"), (1, "1 layer"), (2, "2 layers"), (1200, "1,200 layers")]
)
def test_one_is_singular(number, words):
    assert counted(number, "layer") == words


def test_a_plural_of_its_own_is_taken():
    assert counted(1, "batch", plural="batches") == "1 batch" and counted(3, "batch", plural="batches") == "3 batches"


def test_no_finding_counts_layers_without_it():
    sources = Path(gradrecipes.diagnosis.__path__[0]).rglob("*.py")
    assert [path.name for path in sources if FIXED.search(path.read_text())] == []
