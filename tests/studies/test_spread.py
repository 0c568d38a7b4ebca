"""A study that is shared among processes gives the numbers of one that is not, whatever happens to a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradrecipes as gr
from gradrecipes.studies import spread
from tests.studies.synthetic import study
from tests.studies.tiny import DATA, Fatal, build

ROOT = Path(__file__).resolve().parents[2]
ARMS = {"slow": {"learning_rate": 1e-3}, "fast": {"learning_rate": 0.1}, "lost": {"learning_rate": 1e30}}


def histories(done):
    return {(run.arm, run.seed): run.to_dict()["history"] for runs in done.runs.values() for run in runs}


def alone(**how):
    return gr.Study(build, arms=ARMS, data=DATA, seeds=2, fit={"epochs": 2}, **how).run()


@pytest.mark.slow
def test_workers_give_the_numbers_of_one_process_though_one_is_killed(tmp_path):
    fit = {"epochs": 2, "callbacks": Fatal(str(tmp_path / "mark"))}
    shared = gr.Study(build, arms=ARMS, data=DATA, seeds=2, fit=fit).run(workers=2)
    assert (tmp_path / "mark").exists()
    assert shared.directory is None
    assert histories(shared) == histories(alone())
    assert [run.diverged is not None for run in shared.runs["lost"]] == [True, True]


SCRIPT = """
import sys

import gradrecipes as gr
from tests.studies.tiny import DATA
from tests.studies.tiny import build as plain


def build(learning_rate):
    if learning_rate == 7:
        raise OSError("no such rate")
    return plain(learning_rate)


if __name__ == "__main__":
    arms = {"a": {"learning_rate": 0.1}, "b": {"learning_rate": 7}}
    gr.Study(build, arms=arms, data=DATA, seeds=2, directory=sys.argv[1]).run(workers=2)
"""


@pytest.mark.slow
def test_a_script_shares_its_own_functions_and_hears_of_their_errors(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "script.py", "study"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 1 and "OSError: no such rate" in done.stderr, done.stderr
    kept = [path for path in (tmp_path / "study").rglob("*.json") if not any("crew-" in part for part in path.parts)]
    assert len(kept) == 2  # the runs of the arm that works


def test_what_cannot_be_sent_is_refused_in_words():
    made = gr.Study(lambda: build(), arms={"a": {}}, data=DATA)
    with pytest.raises(TypeError, match="cannot be sent to other processes"):
        made.run(workers=2)
    assert made.directory is None


def test_a_script_without_its_guard_is_told(monkeypatch):
    monkeypatch.setattr(spread, "loading", True)
    with pytest.raises(RuntimeError, match="__main__"):
        study({"a": {}}).run()


def test_one_of_several_processes_needs_a_directory(monkeypatch):
    monkeypatch.setenv(spread.CREW, "worker-0")
    with pytest.raises(ValueError, match="`directory` that all"):
        study({"a": {}}).run()


def test_results_can_be_moved(tmp_path):
    made = study({"a": {}}, seeds=2).run()
    made.move_to(tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 2
    made.move_to(None)
    assert len(made.runs["a"]) == 2 and made.directory is None


def test_the_runs_are_trials_that_are_handed_out_once(tmp_path):
    made = study({"a": {}, "lost": {"diverges": 1.0}}, seeds=5, directory=tmp_path)
    spread.join(made, give_up=True)
    assert [len(runs) for runs in made.runs.values()] == [5, 3]
    assert histories(made) == histories(study({"a": {}, "lost": {"diverges": 1.0}}, seeds=5).run())
    again = study({"a": {}, "lost": {"diverges": 1.0}}, seeds=5, directory=tmp_path)
    spread.join(again, give_up=True)
    assert again._trainer.calls == []


def test_a_run_that_fails_is_named_and_the_others_are_run(tmp_path):
    made = study({"a": {}, "b": {}}, seeds=2, directory=tmp_path)
    run = made._trainer.run

    def failing(name, arm, seed):
        if (name, seed) == ("a", 1):
            raise OSError("no such data")
        return run(name, arm, seed)

    made._trainer.run = failing
    with pytest.raises(
        RuntimeError, match=r"1 of 4 runs failed.*'a' with seed 1(.|\n)*no such data(.|\n)*remove the folder"
    ):
        spread.join(made, give_up=True, name="crew")
    assert sum(map(len, made.runs.values())) == 3
