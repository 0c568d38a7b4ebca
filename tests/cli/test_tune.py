"""`gradrecipes tune`: what it is given, what it tells, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gradrecipes.cli.main import main

PROGRAM = """
import keras
import numpy as np

x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
y = x.sum(1, keepdims=True)

def compiled(rate):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model

def build(hp):
    return compiled(hp.Choice("learning_rate", [0.01, 50.0]))

def make():
    return build, x, y

def a_model():
    return {"build": compiled(0.01), "x": x, "y": y, "validation_data": (x, y), "epochs": 1}

def lost():
    return lambda hp: compiled(hp.Choice("learning_rate", [50.0, 60.0])), x, y

def nothing():
    return None

def number():
    return 3, x, y

def raising():
    raise ValueError("no data")
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_search_tells_the_best_and_why_the_others_failed(program, capsys):
    assert main(["tune", "program.py:make", "--tuner", "grid", "--epochs", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 trials, 1 failed" in said and "Best: val_loss" in said and "learning_rate = 0.01" in said
    written = {path.name for path in (program / "out" / "tune").iterdir()}
    assert {"results.json", "settings.png", "importance.png", "search"} <= written


@pytest.mark.slow
def test_with_json_nothing_else_is_printed(program, capsys):
    arguments = ["tune", "program.py:a_model", "--tuner", "random", "--trials", "1", "--json", "--out", "there"]
    assert main(arguments) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["best"]["score"] > 0 and results["objective"] == "val_loss"
    assert set(results["best"]["values"]) >= {"learning_rate", "batch_size", "clipping"}
    assert main([*arguments[:-4], "2", "--json", "--out", "there", "--resume"]) == 0
    assert len(json.loads(capsys.readouterr().out)["trials"]) == 2


@pytest.mark.slow
def test_a_search_in_which_nothing_worked_has_exit_code_1(program, capsys):
    assert main(["tune", "program.py:lost", "--tuner", "grid"]) == 1
    assert "No trial worked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["program.py:nothing"], r"returned None \(is a return missing\?\)\. Expected \(build, x, y\)"),
        (["program.py:number"], "returned an int in the place of build"),
        (["program.py:raising"], "raised ValueError: no data"),
        (["program.py:missing"], "no function 'missing'"),
        (["program.py:make", "--trials", "0"], "--trials must be at least 1"),
        (["program.py:make", "--workers", "0"], "--workers must be at least 1"),
        (["program.py:make", "--objective", "val_beauty"], "The search cannot begin"),
    ],
)
def test_wrong_use_is_said_in_a_line_with_exit_code_2(program, capsys, arguments, words):
    assert main(["tune", *arguments]) == 2
    import re

    assert re.search(words, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.slow
def test_a_chief_and_two_workers(program):
    command = [sys.executable, "-m", "gradrecipes", "tune", "program.py:a_model", "--tuner", "random", "--trials", "4"]
    done = subprocess.run([*command, "--workers", "2", "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results["trials"]) == 4 and all(one["status"] != "running" for one in results["trials"])
    assert {one["worker"] for one in results["trials"]} <= {"worker-0", "worker-1"}
