"""Every example in a docstring runs, and gives what it says."""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gradrecipes"
SKIPPED_AT_MOST = 3  # lines with doctest: +SKIP in the whole package; an example that cannot run teaches nothing


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


EXAMPLES = sorted(
    module_name(path) for path in PACKAGE.rglob("*.py") if path.stem != "__main__" and ">>>" in path.read_text()
)


@pytest.fixture
def names():
    """Return the names that examples may use without making them: a small compiled model and its data."""
    import keras
    import tensorflow as tf

    import gradrecipes as gr

    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    return {"keras": keras, "tf": tf, "np": np, "gr": gr, "model": model, "x": x, "y": x[:, :1]}


@pytest.mark.slow
@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_of_a_module_give_what_they_say(module, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(module)
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=names)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report = []
    for test in tests:
        test.globs = {**names, **vars(module), **test.globs}
        runner.run(test, out=report.append, clear_globs=True)
    assert runner.failures == 0, "".join(report)
    assert runner.tries > 0


def test_the_public_classes_and_functions_have_examples():
    import gradrecipes as gr

    documented = {name: getattr(gr, name).__doc__ for name in ("Trace", "diagnose", "Diagnosis")}
    documented |= {name: getattr(gr, name).__doc__ for name in ("GradientMonitor", "GradientGuard", "RecipeModel")}
    documented |= {name: getattr(gr, name).__doc__ for name in ("RecipeModelMixin", "GradientPipeline")}
    assert [name for name, text in documented.items() if ">>>" not in text] == []


def test_few_examples_are_skipped():
    lines = [line for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines()]
    assert sum("doctest: +SKIP" in line for line in lines) <= SKIPPED_AT_MOST
    assert "gradrecipes" in sys.modules
