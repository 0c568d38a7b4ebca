"""The documentation keeps its word: every snippet of every page runs, and every public name has its place."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

import gradrecipes as gr
from gradrecipes.diagnosis.registry import rules
from tests.snippets import blocks, run

DOCS = Path(__file__).resolve().parents[1] / "docs"
RUN, SHOWN = {"python", "console"}, {"", "text"}


def _hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = _hooks()
WRITTEN = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
GENERATED = HOOKS.generated_pages()
PAGES = {**WRITTEN, **GENERATED}
WITH_SNIPPETS = [name for name, page in PAGES.items() if {kind for kind, _ in blocks(page)} & RUN]


@pytest.fixture(scope="module")
def given():
    """Return what the generated pages take for granted: "x, y and x_val, y_val are your data"."""
    import keras
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax")])
    model.compile(loss="sparse_categorical_crossentropy")
    return {"keras": keras, "model": model, "x": x[:256], "y": y[:256], "x_val": x[256:320], "y_val": y[256:320]}


@pytest.fixture
def folder(tmp_path):
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_SNIPPETS)
def test_every_snippet_of_a_page_runs(name, given, folder):
    done, _ = run(PAGES[name], f"docs/{name}", folder, dict(given) if name in GENERATED else None)
    assert done == [number for number, (kind, _) in enumerate(blocks(PAGES[name])) if kind in RUN]


def test_no_page_has_a_block_that_looks_like_code_and_is_not_run():
    kinds = {kind for page in PAGES.values() for kind, _ in blocks(page)}
    assert kinds <= RUN | SHOWN
    fences = sum(len(re.findall(r"^\s*```", page, re.MULTILINE)) for page in PAGES.values())
    assert fences == 2 * sum(len(blocks(page)) for page in PAGES.values())
    assert len(WITH_SNIPPETS) > 20


def test_every_public_name_stands_in_the_reference():
    reference = "".join(page for name, page in WRITTEN.items() if name.startswith("reference/"))
    named = {line.split(".")[-1] for line in re.findall(r"^::: (\S+)$", reference, re.MULTILINE)}
    packages = set(gr._SUBPACKAGES)
    assert set(gr._PUBLIC) <= named
    assert packages <= named
    for package in packages:
        module = getattr(gr, package)
        exported = {name for name in module.__all__ if not name.isupper()}
        assert exported <= named, package


def test_what_the_reference_names_exists():
    reference = "".join(page for name, page in WRITTEN.items() if name.startswith("reference/"))
    for name in re.findall(r"^::: (\S+)$", reference, re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, attribute) or importlib.util.find_spec(name), name


def test_every_rule_and_every_recipe_has_a_page_with_its_own_words():
    for code, entry in rules().items():
        page = GENERATED[f"rules/{code}.md"]
        assert page.startswith(f"# {code}\n\n**{entry.kind.value.capitalize()}:** ")
        assert re.findall(r"^## (.+)$", page, re.MULTILINE)[0] == "What it does"
    for recipe in gr.recipes.all():
        page = GENERATED[f"recipes/{recipe.name}.md"]
        assert recipe.claim in page
        assert all(reference in page for reference in recipe.references)


def test_every_link_between_pages_leads_to_one():
    for name, page in PAGES.items():
        here = Path(name).parent
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", re.sub(r"`[^`\n]*`", "", page)):
            target = os.path.normpath(here / link)
            assert target in PAGES or (DOCS / target).is_file(), (name, link)
