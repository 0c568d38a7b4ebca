from __future__ import annotations

import json
import logging
import sys

import pytest

import gradrecipes as gr
from gradrecipes.cli.main import main

SOURCE = """\
import keras
import numpy as np

def net(scale, layers, optimizer):
    print("making the net")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,))])
    start = keras.initializers.VarianceScaling(scale, "fan_in", "untruncated_normal")
    for _ in range(layers):
        model.add(keras.layers.Dense(16, activation="relu", kernel_initializer=start))
    model.add(keras.layers.Dense(1))
    model.compile(optimizer=optimizer, loss="mse")
    x = np.random.default_rng(0).normal(size=(320, 8)).astype("float32")
    return model, x, x[:, :2].sum(axis=1, keepdims=True)

def healthy():
    return net(2.0, 2, "adam")

def exploding():
    model, x, y = net(200.0, 8, "sgd")
    return {"model": model, "x": x, "y": y, "batch_size": 16, "epochs": 5}

def uncompiled():
    import keras
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)]), *healthy()[1:]

def text():
    model, x, y = healthy()
    return model, np.array([["a"] * 8] * 320), y
"""


@pytest.fixture
def called(tmp_path, monkeypatch, capsys):
    """Return a function that diagnoses a function of the module, and returns code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "to_diagnose.py").write_text(SOURCE)

    def called(name, *options):
        code = main(["diagnose", f"to_diagnose:{name}", *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield called
    sys.modules.pop("to_diagnose", None)


def test_a_healthy_training_gives_0_and_says_what_was_looked_at(called):
    code, out, err = called("healthy")
    assert code == 0
    assert "Healthy" in out and "making the net" in out and "\x1b[" not in out
    assert "training for a few steps" in err


def test_warnings_of_later_trainings_are_shown_as_before(called):
    logger = logging.getLogger("gradrecipes")
    before = logger.level
    called("healthy")
    assert logger.level == before


@pytest.mark.slow
def test_an_exploding_one_gives_1_a_page_and_a_trace(called, tmp_path):
    code, out, err = called("exploding", "--html", "deep/page.html", "--trace", "deep/kept.trace")
    assert code == 1
    assert "exploding_initialization" in out
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "HTML page: deep/page.html" in err and "Trace: deep/kept.trace" in err
    trace = gr.Trace.load("deep/kept.trace")
    assert trace.description.batch_size == 16
    assert gr.diagnose(trace).findings[0].code == "exploding_initialization"


@pytest.mark.slow
def test_json_prints_json_only(called):
    code, out, err = called("exploding", "--json", "--batch-size", "64")
    read = json.loads(out)
    assert (code, read["healthy"], read["trace"]["description"]["batch_size"]) == (1, False, 64)
    assert "making the net" in err


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("uncompiled", (), "not compiled"),
        ("text", (), "must be arrays of numbers"),
        ("healthy", ("--batch-size", "0"), "at least 1 sample"),
        ("helthy", (), "Is 'healthy' meant?"),
    ],
)
def test_wrong_use_is_one_line_and_2(name, options, words, called):
    code, out, err = called(name, *options)
    assert code == 2
    assert "Unhealthy" not in out
    last = err.splitlines()[-1]
    assert last.startswith("gradrecipes: error: ") and words in last
    assert "Traceback" not in err
