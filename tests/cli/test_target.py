from __future__ import annotations

import sys

import keras
import pytest

from gradrecipes.cli.target import load_function, load_training
from gradrecipes.cli.terminal import UsageError

SOURCE = """\
import keras

def make():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    return model, [[1.0, 2.0]], [[1.0]]

def named():
    model, x, y = make()
    return {"model": model, "x": x, "y": y, "batch_size": 1, "epochs": 3}

def five():
    return (*make(), 8, ([[1.0, 2.0]], [[1.0]]))

def without_targets():
    return make()[:2]

def with_default(size=3):
    return make()

def needs(size):
    return make()

def raises():
    return [][size()]

def size():
    raise IndexError("seven")

def exits():
    raise SystemExit(3)

def nothing():
    make()

def strings():
    return "model", "x", "y"

def odd():
    return {"model": make()[0], "x": 1, "labels": 2}

def lacking():
    return {"model": make()[0]}

NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "given_training.py").write_text(SOURCE)
    (tmp_path / "broken_module.py").write_text("import keras\nimport there_is_none_of_this_name\n")
    (tmp_path / "ending.py").write_text("raise SystemExit('no data here')\n")
    (tmp_path / "crooked.py").write_text("def (:\n")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("place", ["given_training", "given_training.py", "./given_training.py"])
def test_a_function_is_found_by_module_and_by_file(place, folder):
    training = load_training(f"{place}:make")
    assert isinstance(training.pop("model"), keras.Model)
    assert training == {"x": [[1.0, 2.0]], "y": [[1.0]]}


def test_a_file_imports_its_neighbours(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "neighbour_of_it.py").write_text("LAYERS = 3\n")
    (folder / "deep" / "user.py").write_text("from neighbour_of_it import LAYERS\ndef f(): return LAYERS\n")
    assert load_function("deep/user.py:f")() == 3


def test_a_dict_and_a_longer_tuple_tell_more(folder):
    named, five = load_training("given_training:named"), load_training("given_training:five")
    assert (named["batch_size"], named["epochs"]) == (1, 3)
    assert (five["batch_size"], five["validation_data"]) == (8, ([[1.0, 2.0]], [[1.0]]))
    assert load_training("given_training:without_targets")["y"] is None
    assert load_training("given_training:with_default")["y"] == [[1.0]]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("given_training", r"Which function is meant\? Received: 'given_training'.*module:function"),
        (":make", "Which function is meant"),
        ("given_training:", "Which function is meant"),
        ("given_training:ma ke", "Which function is meant"),
        ("given training:make", "no name of a module"),
        ("nowhere_to_be_found:make", r"no module 'nowhere_to_be_found'.*path/to/file\.py:function"),
        ("nowhere.py:make", "no file 'nowhere.py'"),
        ("given_training:mak", "no function 'mak'. Is 'make' meant"),
        ("given_training:zzz", "no function 'zzz'. It has: make, named"),
        ("given_training:NUMBER", "is no function. Received: a int"),
        ("given_training:needs", r"callable without arguments.*needs: missing a required argument: 'size'"),
        ("given_training:raises", r"raised IndexError: seven \(its traceback stands above\)"),
        ("given_training:exits", r"SystemExit\(3\)"),
        ("given_training:nothing", r"returned None \(is a return missing\?\).*Expected \(model, x, y\)"),
        ("given_training:strings", "returned a str in the place of the model"),
        ("given_training:odd", "returned a dict with the unknown 'labels'"),
        ("given_training:lacking", r"returned a dict with \['model'\]"),
        ("broken_module:make", "Importing 'broken_module' raised ModuleNotFoundError.*there_is_none_of_this_name"),
        ("broken_module.py:make", "Running 'broken_module.py' raised ModuleNotFoundError"),
        ("ending:make", "SystemExit"),
        ("crooked:make", "raised SyntaxError"),
    ],
)
def test_what_is_wrong_is_said_in_words(target, words, folder):
    with pytest.raises(UsageError, match=words):
        load_training(target)


def test_the_traceback_begins_in_the_code_of_the_user(folder, capsys):
    with pytest.raises(UsageError):
        load_training("given_training:raises")
    shown = capsys.readouterr().err
    assert "in raises\n    return [][size()]" in shown and "IndexError: seven" in shown
    assert "target.py" not in shown
    with pytest.raises(UsageError):
        load_function("broken_module:make")
    shown = capsys.readouterr().err
    assert "import there_is_none_of_this_name" in shown and "importlib" not in shown and "target.py" not in shown


def test_a_file_that_fails_leaves_no_module_behind(folder):
    with pytest.raises(UsageError):
        load_function("ending.py:make")
    assert "ending" not in sys.modules
