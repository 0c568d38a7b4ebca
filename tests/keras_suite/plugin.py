"""A pytest plugin for Keras' own tests: it puts the callbacks of this package into every `fit` that they call.

Loaded with `-p tests.keras_suite.plugin`; `--arm` says which callbacks. They keep out of the logs, whose exact keys
some of the tests ask for. What became of each test, and of each fit within it, is written to the file that
`--record` names. `run.py` beside this file starts it once for each arm.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ARMS = ("plain", "monitor", "guard")
LEFT_OUT = re.compile(r"jax|grain|torch", re.IGNORECASE)
PLACEHOLDERS = ("jax",)  # imported at the head of a test file, used only by tests that are left out


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--arm", choices=ARMS, default="plain", help="which callbacks every fit gets")
    parser.addoption("--record", type=Path, help="where to write what became of each test, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    for mark in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", f"{mark}: one of Keras' own marks")
    config.pluginmanager.register(Placeholders(), "placeholders")
    config.pluginmanager.register(EveryFit(config.getoption("arm")), "every_fit")
    if config.getoption("record") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(config.getoption("record")), "record")


class Placeholders:
    """Let a file be imported that names, at its head, a library which none of the tests that are run needs."""

    def pytest_collection(self) -> None:
        self._placed = [name for name in PLACEHOLDERS if not _importable(name)]
        for name in self._placed:
            sys.modules[name] = types.ModuleType(name)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out = [item for item in items if LEFT_OUT.search(item.name)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]

    def pytest_collection_finish(self) -> None:
        for name in self._placed:
            sys.modules.pop(name, None)


class EveryFit:
    """Give every `fit` that a test calls the callbacks of an arm, and note in the test's report what it did."""

    def __init__(self, arm: str):
        self._make = functools.partial(callbacks_of, arm)
        self._fits: list[str] = []

    def pytest_sessionstart(self) -> None:
        from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

        TensorFlowTrainer.fit = with_callbacks(TensorFlowTrainer.fit, self._make, self._fits)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        self._fits.clear()
        try:
            return (yield)
        finally:
            item.user_properties.append(("fits", list(self._fits)))


class Record:
    """Write down what became of each test, from the reports of all processes."""

    def __init__(self, path: Path):
        self._path = path
        self._tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self._tests.setdefault(report.nodeid, {"outcome": "passed", "fits": [], "why": ""})
        if report.outcome != "passed" and test["outcome"] != "failed":
            test["outcome"] = report.outcome
            test["why"] = str(report.longrepr)
        test["fits"] = dict(report.user_properties).get("fits", test["fits"])
        if report.when == "teardown":
            self._write()  # what is known so far can be read while the rest runs

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._tests[report.nodeid] = {"outcome": "failed", "fits": [], "why": str(report.longrepr)}

    def pytest_sessionfinish(self) -> None:
        self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._tests, indent=1))


def callbacks_of(arm: str) -> list[Any]:
    """Return new callbacks for one fit."""
    if arm == "plain":
        return []
    import gradrecipes as gr

    monitor = gr.GradientMonitor(logs=False)  # what a guard counts stays out of the logs with it
    return [monitor] if arm == "monitor" else [monitor, gr.GradientGuard()]


def with_callbacks(fit: Callable[..., Any], make: Callable[[], list[Any]], fits: list[str]) -> Callable[..., Any]:
    """Return a `fit` that appends to its callbacks what `make` makes, and notes each call in `fits`.

    A note is "" for a fit that got them, else the reason why it did not.
    """
    signature = inspect.signature(fit)

    @functools.wraps(fit)
    def fit_with_callbacks(model, *args, **kwargs):
        import keras

        reason = why_not(model)
        fits.append(reason)
        added = [] if reason else make()
        bound = signature.bind(model, *args, **kwargs)
        given = bound.arguments.get("callbacks")
        if isinstance(given, keras.callbacks.CallbackList):
            # A list decides when it is made what its callbacks need, so a new one is made, of callbacks that have
            # their model already.
            bound.arguments["callbacks"] = keras.callbacks.CallbackList([*given.callbacks, *added], **given.params)
            for callback in added:
                callback.set_model(model)
        elif added:
            bound.arguments["callbacks"] = [*([] if given is None else keras.tree.flatten(given)), *added]
        return fit(*bound.args, **bound.kwargs)

    return fit_with_callbacks


def why_not(model: Any) -> str:
    """Return why nothing can be measured in a model's fit, or "" where something can."""
    if not getattr(model, "compiled", False):
        return "not compiled: Keras refuses the fit"
    if getattr(model, "optimizer", None) is None:
        return "compiled without an optimizer: no gradient is applied"
    return ""


def _importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True
