"""The demo as `make demo` runs it: what its runs come to, what it prints, and which files it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes import demo as four_runs
from gradrecipes.cli import demo
from gradrecipes.cli.main import main


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Run the demo once; return the story, what was printed as JSON, and the folder."""
    out, stories, printed = tmp_path_factory.mktemp("demo") / "deep" / "out", [], io.StringIO()
    original = four_runs.tell_story
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(
            four_runs, "tell_story", lambda *args, **how: stories.append(original(*args, **how)) or stories[0]
        )
        assert main(["demo", "--out", str(out), "--json"]) == 0
    return stories[0], json.loads(printed.getvalue()), out


@pytest.mark.slow
def test_only_the_rescued_run_learns(told):
    *sick, rescued = told[0].runs
    assert all(run.test_accuracy < 0.4 for run in sick)
    assert rescued.test_accuracy > 0.8


@pytest.mark.slow
def test_four_runs_in_order_and_only_the_monitored_have_a_trace(told):
    runs = told[0].runs
    assert [run.name[:3] for run in runs] == ["(a)", "(b)", "(c)", "(d)"]
    assert [run.trace is not None for run in runs] == [False, False, True, True]
    assert [run.weights for run in runs[:3]] == [2 * (four_runs.DEPTH + 1)] * 3


@pytest.mark.slow
def test_the_numbers_are_those_of_the_runs(told):
    *_, guarded, rescued = told[0].runs
    epochs = [event for event in guarded.trace.events if event.kind == "epoch"]
    assert len(guarded.trace) == len(epochs) * math.ceil(1347 / four_runs.BATCH_SIZE)
    assert guarded.final_loss == pytest.approx(epochs[-1].details["logs"]["loss"])
    assert guarded.skipped_steps == int(guarded.trace.skipped.sum())
    assert guarded.nonfinite_weights == rescued.nonfinite_weights == 0
    for run in told[0].runs:
        assert run.test_accuracy * 450 == pytest.approx(round(run.test_accuracy * 450), abs=1e-3)


@pytest.mark.slow
def test_the_diagnosis_is_that_of_the_guarded_run_and_the_fourth_is_what_the_rescue_returns(told):
    story = told[0]
    assert story.diagnosis.trace is story.runs[2].trace
    assert story.diagnosis.findings[0].code == "exploding_initialization"
    assert story.runs[3].weights == len(story.rescue.model.get_weights())
    assert story.prescription
    # A rule that stays silent after the cure is the least that a prescription owes.
    assert "exploding_initialization" not in {finding.code for finding in gr.diagnose(story.runs[3].trace).findings}


@pytest.mark.slow
def test_it_prints_the_numbers_of_its_runs(told, capsys):
    story, printed, out = told
    for said, run in zip(printed["runs"], story.runs, strict=True):
        for name in ("name", "test_accuracy", "nonfinite_weights", "weights", "skipped_steps"):
            assert said[name] == getattr(run, name)
        assert float(said["final_loss"]) == run.final_loss or math.isnan(run.final_loss)
    assert printed["prescription"] == story.prescription
    assert printed["diagnosis"] == story.diagnosis.to_dict()
    for chain, layers in zip(printed["chains"], demo.CHAINS, strict=True):
        assert chain["layers"] == layers and chain["measured"] == pytest.approx(2.34 ** (layers - 1), rel=1e-4)
    assert printed["seconds"] > 0

    demo._print(story, [], 1.0, out)  # the same for people, without training again
    table = capsys.readouterr().out
    for run in story.runs:
        assert run.name in table and f"{run.test_accuracy:.3f}" in table
    assert story.prescription.split()[0] in table and "exploding_initialization" in table


@pytest.mark.slow
def test_it_leaves_files_that_load(told):
    story, _, out = told
    assert {path.name for path in out.iterdir()} == {"guarded.trace", "heat_map.png", "report.html"}
    trace = gr.Trace.load(out / "guarded.trace")
    np.testing.assert_array_equal(trace.gradient_norm, story.runs[2].trace.gradient_norm)
    assert gr.diagnose(trace).findings[0].code == story.diagnosis.findings[0].code
    assert (out / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    assert "exploding_initialization" in (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(four_runs, "tell_story", lambda *args, **how: pytest.fail("it trained"))


@pytest.mark.parametrize("module", ["sklearn", "matplotlib", "jinja2"])
def test_a_missing_library_is_one_clear_line_before_any_training(module, no_training, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gradrecipes: error: ") and captured.err.count("\n") == 1
    assert {"sklearn": "scikit-learn"}.get(module, module) in captured.err
    assert "pip install 'gradrecipes[demo]'" in captured.err
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_clear_line_before_any_training(no_training, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_the_sick_net_starts_with_the_variance_it_says():
    net = four_runs.deep_net(seed=0)
    dense = [layer for layer in net.layers if isinstance(layer, keras.layers.Dense)]
    assert len(dense) == four_runs.DEPTH + 1 == 31
    variances = [float(np.var(layer.kernel.numpy())) * 64 for layer in dense[:-1]]
    assert np.mean(variances) == pytest.approx(four_runs.WEIGHT_VARIANCE, rel=0.05)


def test_the_digits_are_all_there_and_scaled():
    data = four_runs.load_digits()
    assert (len(data.x_train), len(data.x_test)) == (1347, 450)
    assert data.x_train.dtype == np.float32 and data.x_train.min() >= 0 and data.x_train.max() == 1
    assert set(data.y_test) == set(range(10))
    np.testing.assert_array_equal(data.x_test, four_runs.load_digits().x_test)
