"""Private modules of Keras and TensorFlow: each is there, with the names that `compat` takes from it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import keras
import pytest

import gradrecipes.compat
from gradrecipes.compat.keras_optimizers import schedule_of

COMPAT = Path(gradrecipes.compat.__file__).parent
PRIVATE = ("keras.src", "tensorflow.python")


def imported() -> dict[str, set[str]]:
    """Return what the files of `compat` import from private modules, by module."""
    found: dict[str, set[str]] = {}
    for path in COMPAT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith(PRIVATE):
                for alias in node.names:
                    found.setdefault(node.module, set()).add(alias.name)
    return found


NAMES = sorted((module, name) for module, names in imported().items() for name in names)


def test_there_are_some_to_look_at():
    assert {"tensorflow.python.eager", "tensorflow.python.ops.resource_variable_ops"} <= {name[0] for name in NAMES}


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_private_module_still_has_the_name(module, name):
    import keras
    import tensorflow as tf

    found = importlib.import_module(module)
    assert hasattr(found, name) or importlib.import_module(f"{module}.{name}"), (
        f"TensorFlow {tf.__version__} and Keras {keras.__version__} have no {module}.{name}: gradrecipes/compat must "
        "follow before these releases are allowed."
    )


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("tensorflow.python.eager.record", ("record_operation", "stop_recording")),
        ("keras.src.backend.common.global_state", ("get_global_attribute", "set_global_attribute")),
        ("tensorflow.python.framework.op_def_registry", ("get",)),
        ("tensorflow.python.ops.stateful_random_ops", ("global_generator",)),
    ],
)
def test_modules_that_are_taken_whole_have_what_is_called(module, names):
    assert [name for name in names if not hasattr(importlib.import_module(module), name)] == []


def test_the_schedule_of_an_optimizer_is_read_with_its_next_batch():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(schedule, gradient_accumulation_steps=4))
    for _ in range(3):
        model.optimizer.apply([keras.ops.ones((1, 1))], model.trainable_variables)
    assert schedule_of(model) == (schedule, 3)
    model.compile(keras.optimizers.SGD(0.1))
    assert schedule_of(model) is None


BY_NAME = ("getattr", "hasattr", "setattr", "replaced")  # functions that take an attribute by its name
OF_PYTHON = {"_replace", "_asdict", "_fields", "_getframe"}


def private_names(path: Path) -> set[str]:
    """Return the private attributes of other objects that a file reads, sets, or names in a string to a function."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    read = [node for node in nodes if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) != "self"]
    by_name = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", None) in BY_NAME]
    found = {node.attr for node in read} | {str(getattr(arg, "value", "")) for node in by_name for arg in node.args}
    return {name for name in found if name.startswith("_") and not name.startswith("__")} - OF_PYTHON


def test_no_file_outside_of_compat_touches_a_private_name_of_another_package():
    package = COMPAT.parent
    own = {
        getattr(node, "name", None) or getattr(node, "attr", None)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        or (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    }
    found = {
        str(path.relative_to(package)): names
        for path in package.rglob("*.py")
        if COMPAT not in path.parents and (names := private_names(path) - own)
    }
    assert found == {}, "Give each a function in gradrecipes/compat and a test in tests/compat."
