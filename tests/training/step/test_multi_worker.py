"""Two processes on one machine train one model: as one process would, and when one of them dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.training.nets import divided

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
EPOCHS = 4
PATIENCE = 240  # seconds until a run is given up


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start(folder: Path, name: str, cluster: list[int] | None = None, index: int = 0, **config) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TF_CONFIG", None)
    if cluster is not None:
        workers = [f"127.0.0.1:{port}" for port in cluster]
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment["TF_CONFIG"] = json.dumps(task)
    mode = "alone" if cluster is None else "worker"
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"mode": mode, "output": str(folder / f"{name}.npz"), **config}))
    with open(folder / f"{name}.txt", "w") as log:
        return subprocess.Popen([sys.executable, str(WORKER), str(path)], env=environment, stdout=log, stderr=log)


@contextlib.contextmanager
def running(*processes):
    """Wait for processes within the block, and leave none behind."""
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def wait_for(processes) -> list[int]:
    end = time.monotonic() + PATIENCE
    return [process.wait(timeout=max(1.0, end - time.monotonic())) for process in processes]


def two(folder: Path, run: str, configs) -> list[int]:
    """Run two workers, each with its config, and return how they ended."""
    ports = free_ports(2)
    started = [start(folder, f"{run}{i}", ports, i, **config) for i, config in enumerate(configs)]
    with running(*started):
        return wait_for(started)


def result(folder: Path, name: str) -> dict[str, np.ndarray]:
    assert (folder / f"{name}.npz").exists(), (folder / f"{name}.txt").read_text()[-3000:]
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What one process comes to that trains on the joint batch."""
    folder = tmp_path_factory.mktemp("alone")
    with running(start(folder, "alone", epochs=EPOCHS)) as alone:
        assert wait_for(alone) == [0], (folder / "alone.txt").read_text()[-3000:]
    return result(folder, "alone")


@divided
@pytest.mark.slow
def test_two_workers_train_as_one_process_with_the_joint_batch(tmp_path, reference):
    codes = two(tmp_path, "worker", [{"epochs": EPOCHS}] * 2)
    assert codes == [0, 0], (tmp_path / "worker0.txt").read_text()[-3000:]
    workers = [result(tmp_path, f"worker{i}") for i in range(2)]
    assert reference["skipped"].tolist() == [False, False, True, False, False] * EPOCHS
    for worker in workers:
        assert worker.keys() == reference.keys()
        for name, expected in reference.items():
            np.testing.assert_allclose(worker[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, mine in workers[0].items():
        np.testing.assert_array_equal(mine, workers[1][name], err_msg=name)


@divided
@pytest.mark.slow
def test_a_worker_that_dies_is_named_and_both_go_on_from_their_backups(tmp_path, reference):
    backups = [{"backup": str(tmp_path / f"backup{i}"), "epochs": EPOCHS, "timeout": 20} for i in range(2)]
    codes = two(tmp_path, "first", [backups[0], {**backups[1], "die_at": [2, 1]}])
    said = (tmp_path / "first0.txt").read_text()
    assert codes[1] == -9
    assert codes[0] == 1, said[-3000:]
    assert "RuntimeError: Another worker of this training was lost" in said, said[-3000:]
    assert "BackupAndRestore" in said
    assert two(tmp_path, "again", backups) == [0, 0], (tmp_path / "again0.txt").read_text()[-3000:]

    for i in range(2):
        resumed = result(tmp_path, f"again{i}")
        for name in (name for name in reference if name.startswith("weight_")):
            np.testing.assert_allclose(resumed[name], reference[name], rtol=1e-5, atol=1e-6, err_msg=name)
