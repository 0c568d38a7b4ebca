"""Jobs run once each, whatever becomes of them and of the processes that run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradrecipes.tuning.jobs import JobResult, is_worker, read_jobs, run_jobs
from gradrecipes.tuning.launcher import launch

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from gradrecipes.tuning import run_jobs

here = Path(sys.argv[1])

def run(job):
    with open(here / "runs.txt", "a") as file:
        print(job["n"], os.environ["KERASTUNER_TUNER_ID"], file=file)
    deadly = here / "killed"
    if job["n"] == 4 and not deadly.exists():
        deadly.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    if job["n"] % 3 == 0:
        raise ValueError(f"job {job['n']} does not work")
    return {"square": job["n"] ** 2}

run_jobs([{"n": n} for n in range(9)], run, directory=here)
"""


def test_every_job_runs_once_in_its_order_and_an_error_ends_no_other(tmp_path):
    calls = []

    def run(job):
        calls.append(job["n"])
        if job["n"] < 4:
            raise ValueError("always the same")
        return {"square": job["n"] ** 2, "nan": float("nan")}

    jobs = [{"n": n} for n in range(6)]
    results = run_jobs(jobs, run, directory=tmp_path)
    assert calls == list(range(6))
    assert [result.value for result in results[4:]] == [{"square": 16, "nan": None}, {"square": 25, "nan": None}]
    assert all("ValueError: always the same" in result.error for result in results[:4])

    again = run_jobs(jobs, run, directory=tmp_path)
    assert again == results and calls == list(range(6))
    assert not is_worker()


def test_what_was_interrupted_goes_on_where_it_was(tmp_path):
    jobs, calls = [{"n": n} for n in range(4)], []

    def run(job):
        calls.append(job["n"])
        if calls == [0, 1, 2]:
            raise KeyboardInterrupt
        return job["n"]

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, run, directory=tmp_path)
    assert [result.ended for result in read_jobs(tmp_path / "jobs")] == [True, True, False, False]
    assert [result.value for result in run_jobs(jobs, run, directory=tmp_path)] == [0, 1, 2, 3]
    assert calls == [0, 1, 2, 2, 3]


def test_another_list_in_the_same_folder_is_refused(tmp_path):
    run_jobs([{"n": 1}], lambda job: 1, directory=tmp_path)
    with pytest.raises(ValueError, match="another list of jobs"):
        run_jobs([{"n": 2}], lambda job: 1, directory=tmp_path)
    assert run_jobs([], lambda job: 1, directory=tmp_path, name="none") == []


@pytest.mark.slow
@pytest.mark.parametrize("restart", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_killed_worker_costs_no_job(tmp_path, restart):
    script = tmp_path / "jobs.py"
    script.write_text(SCRIPT)
    launched = launch(
        [sys.executable, str(script), str(tmp_path)],
        workers=2,
        logs=tmp_path / "logs",
        environment={"GRADRECIPES_WORKER_PATIENCE": "5"},
        restart=restart,
    )
    assert len(launched.lost) == 1
    results = read_jobs(tmp_path / "jobs")
    assert all(result.ended for result in results)
    assert [result.value for result in results if not result.error] == [{"square": n**2} for n in (1, 2, 4, 5, 7, 8)]
    runs = [line.split() for line in (tmp_path / "runs.txt").read_text().splitlines()]
    assert sorted(int(number) for number, _ in runs) == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]  # the killed one twice
    if not restart:
        assert len({worker for number, worker in runs if number == "4"}) == 2
    assert results[0] != JobResult()


@pytest.mark.slow
def test_who_is_asked_to_end_leaves_no_process_behind(tmp_path):
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time\ntime.sleep(600)\n")
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import signal, sys\nfrom gradrecipes.tuning.launcher import launch\n"
        # A shell lets what it starts in the background ignore it, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def tell(crew):\n"
        "    open(sys.argv[1], 'w').write(' '.join(str(one.process.pid) for one in crew))\n"
        f"launch([sys.executable, {str(sleeper)!r}], workers=2, logs={str(tmp_path)!r}, on_look=tell)\n"
    )
    told = tmp_path / "pids"
    process = subprocess.Popen([sys.executable, str(starter), str(told)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    pids = [int(pid) for pid in told.read_text().split()]
    assert len(pids) == 3 and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def devices_of(tmp_path, workers, visible):
    program = "import os; print(*(os.environ.get(n) for n in ('CUDA_VISIBLE_DEVICES', 'TF_FORCE_GPU_ALLOW_GROWTH')))"
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    launched = launch([sys.executable, "-c", program], workers=workers, logs=tmp_path, environment=environment)
    return [log.read_text().split() for log in launched.logs.values()]


@pytest.mark.parametrize(
    ("visible", "found", "workers", "expected"),
    [
        ("4,5", 0, 2, [["-1", "None"], ["4", "None"], ["5", "None"]]),
        ("4,5", 0, 3, [["-1", "true"], ["4", "true"], ["5", "true"], ["4", "true"]]),
        (None, 2, 2, [["-1", "None"], ["0", "None"], ["1", "None"]]),
        (None, 0, 2, [["None", "None"]] * 3),
        ("3", 0, 1, [["3", "None"]] * 2),
    ],
)
def test_each_worker_sees_one_gpu_and_the_chief_none(tmp_path, monkeypatch, visible, found, workers, expected):
    for name in ("CUDA_VISIBLE_DEVICES", "TF_FORCE_GPU_ALLOW_GROWTH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [kind] * found)
    assert devices_of(tmp_path, workers, visible) == expected


def test_launch_refuses_no_workers(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        launch([sys.executable, "-c", ""], workers=0, logs=tmp_path)
    assert "KERASTUNER_TUNER_ID" not in os.environ
