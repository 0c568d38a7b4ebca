from __future__ import annotations

import json
import math
import sys

import pytest

import gradrecipes as gr
from gradrecipes import demo as four_runs
from gradrecipes.cli import demo
from gradrecipes.cli.main import main


@pytest.fixture
def quick(monkeypatch):
    """Make the story short: the same code, a few steps."""
    told = []
    monkeypatch.setattr(four_runs, "DEPTH", 12)
    monkeypatch.setattr(four_runs, "EPOCHS", 1)
    monkeypatch.setattr(four_runs, "BATCH_SIZE", 256)
    monkeypatch.setattr(four_runs, "RESCUE_STEPS", 20)
    monkeypatch.setattr(demo, "CHAINS", (4,))
    original = four_runs.tell_story
    monkeypatch.setattr(
        four_runs, "tell_story", lambda *args, **kwargs: told.append(original(*args, **kwargs)) or told[0]
    )
    return told


@pytest.mark.slow
def test_the_demo_prints_the_numbers_of_its_runs_and_leaves_files_that_load(quick, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "deep" / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (story,) = quick
    for said, run in zip(printed["runs"], story.runs, strict=True):
        for name in ("name", "test_accuracy", "nonfinite_weights", "weights", "skipped_steps"):
            assert said[name] == getattr(run, name)
        assert float(said["final_loss"]) == run.final_loss or math.isnan(run.final_loss)
    assert printed["prescription"] == story.prescription
    assert printed["diagnosis"] == story.diagnosis.to_dict()
    (chain,) = printed["chains"]
    assert chain["layers"] == 4 and chain["measured"] == pytest.approx(2.34**3, rel=1e-5)
    assert printed["seconds"] > 0

    out = tmp_path / "deep" / "out"
    assert {path.name for path in out.iterdir()} == {"guarded.trace", "heat_map.png", "report.html"}
    trace = gr.Trace.load(out / "guarded.trace")
    assert (trace.gradient_norm == story.runs[2].trace.gradient_norm).all()
    assert gr.diagnose(trace).findings[0].code == story.diagnosis.findings[0].code
    assert (out / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    assert "exploding_initialization" in (out / "report.html").read_text(encoding="utf-8")

    demo._print(story, [], 1.0, out)  # the same for people, without training again
    table = capsys.readouterr().out
    for run in story.runs:
        assert run.name in table and f"{run.test_accuracy:.3f}" in table
    assert story.prescription.split()[0] in table and "exploding_initialization" in table


@pytest.mark.parametrize("module", ["sklearn", "matplotlib", "jinja2"])
def test_a_missing_library_is_one_clear_line_before_any_training(module, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gradrecipes: error: ") and captured.err.count("\n") == 1
    assert {"sklearn": "scikit-learn"}.get(module, module) in captured.err
    assert "pip install 'gradrecipes[demo]'" in captured.err
    assert quick == [] and not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_clear_line_before_any_training(quick, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert quick == []
