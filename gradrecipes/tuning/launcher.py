"""Start the chief and the workers of a distributed search on this machine, look after them, and end them all."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

_LOG = logging.getLogger(__name__)
LOOK = 0.2  # seconds between two looks at the processes
MOST_RESTARTS = 3  # of one worker: what kills it again and again would do so forever
TO_LEAVE = 10.0  # seconds that a process gets to end by itself, when it is asked to, before it is killed
WORKERS_TO_LEAVE = 20.0  # seconds that workers get to end after the chief did
LOG_LINES = 15  # last lines of a log that an error quotes
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,)


class LaunchError(RuntimeError):
    """Say which process of a distributed search failed, with the last lines of its log."""


@dataclass
class Worker:
    """One process of a distributed search.

    Args:
        name: Its KERASTUNER_TUNER_ID: the chief's must contain "chief".
        process: The process.
        log: Where it writes what it has to say.
        restarts: How often it was started again.
        given_up: Whether it died and is not started again.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    restarts: int = 0
    given_up: bool = False

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None


@dataclass
class Launched:
    """What a distributed search leaves.

    Args:
        seconds: Wall time.
        lost: Names of the workers that died, once for each death.
        logs: The log of each process, by name.
    """

    seconds: float
    lost: list[str] = field(default_factory=list)
    logs: dict[str, Path] = field(default_factory=dict)


def launch(
    command: Sequence[str],
    *,
    workers: int,
    logs: str | os.PathLike[str],
    environment: Mapping[str, str] | None = None,
    on_look: Callable[[list[Worker]], None] | None = None,
    restart: bool = True,
) -> Launched:
    """Run one command as the chief and as so many workers of a search, until it is over.

    Every process gets keras-tuner's variables KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT (a
    free port of the loopback interface); all run the same program, which makes a tuner and calls `search`. A worker
    that dies is started again under its old name, by which the chief knows which trial it has to take up; when the
    chief leaves, so must the workers. Whatever ends this function, an error or Ctrl-C, no process is left behind.

    Of several GPUs, those that CUDA_VISIBLE_DEVICES names or else all, each worker sees one, dealt out in turn, and the
    chief none.

    Args:
        command: The program with its arguments.
        workers: How many, at least 1.
        logs: Folder for what the processes write; one file each.
        environment: Variables beside those of this process.
        on_look: Called several times a second with the processes, the chief first: for showing progress.
        restart: Whether a worker that dies is started again; else the others take up its trial.

    Raises:
        ValueError: No worker is asked for.
        LaunchError: The chief failed, or no worker is left.
    """
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise ValueError(f"`workers` must be a whole number, at least 1. Received: workers={workers!r}.")
    folder = Path(logs)
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    variables = {**os.environ, **(environment or {})}
    variables |= {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(free_port())}
    names = ["chief", *(f"worker-{number}" for number in range(workers))]
    launched = Launched(0.0, logs={name: folder / f"{name}.log" for name in names})
    processes: list[Worker] = []
    own = _variables_of_each(names, variables)

    def start_again(worker: Worker) -> None:
        worker.restarts += 1
        _LOG.warning("%s died (code %d) and is started again.", worker.name, worker.process.returncode)
        worker.process = _start(command, own[worker.name], worker.log, "ab")

    with _signals_as_interrupts():
        try:
            for name, log in launched.logs.items():
                processes.append(Worker(name, _start(command, own[name], log, "wb"), log))
            _look_after(processes, launched, start_again if restart else None, on_look)
        finally:
            _end(processes)
    launched.seconds = time.monotonic() - begun
    return launched


def _look_after(
    processes: list[Worker],
    launched: Launched,
    start_again: Callable[[Worker], None] | None,
    on_look: Callable[[list[Worker]], None] | None,
) -> None:
    chief, *workers = processes
    deadline: float | None = None
    while chief.alive:
        for worker in workers:
            if worker.process.poll() and not worker.given_up:
                launched.lost.append(worker.name)
                worker.given_up = start_again is None or worker.restarts >= MOST_RESTARTS
                if not worker.given_up:
                    start_again(worker)
        if on_look is not None:
            on_look(processes)
        failed = [worker for worker in workers if worker.given_up]
        if any(worker.alive for worker in workers) or not failed:
            deadline = None
        elif deadline is None:
            deadline = time.monotonic() + TO_LEAVE  # the chief may be about to leave: then they died at the very end
        elif time.monotonic() > deadline:
            raise LaunchError(_what_failed("No worker is left", failed))
        time.sleep(LOOK)
    if chief.process.returncode != 0:
        raise LaunchError(_what_failed(f"The chief ended with code {chief.process.returncode}", [chief]))
    deadline = time.monotonic() + WORKERS_TO_LEAVE
    while any(worker.alive for worker in workers) and time.monotonic() < deadline:
        time.sleep(LOOK)
    if on_look is not None:
        on_look(processes)


def _variables_of_each(names: Sequence[str], variables: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the environment of each process by its name, the chief's first."""
    own = {name: {**variables, "KERASTUNER_TUNER_ID": name} for name in names}
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import tensorflow as tf

        devices = [str(number) for number, _ in enumerate(tf.config.list_physical_devices("GPU"))]
    else:
        devices = [device.strip() for device in visible.split(",")]
    chief, *workers = names
    if len(devices) > 1:
        own[chief]["CUDA_VISIBLE_DEVICES"] = "-1"
        for number, name in enumerate(workers):
            own[name]["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    if 0 < len(devices) < len(workers):  # TensorFlow takes the whole memory of a GPU, unless it is told not to
        for name in names:
            own[name].setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    return own


def _start(command: Sequence[str], variables: Mapping[str, str], log: Path, mode: str) -> subprocess.Popen[bytes]:
    with open(log, mode) as file:
        # A session of its own, so that Ctrl-C reaches this process first, which then ends the others in order.
        return subprocess.Popen(
            list(command),
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(processes: list[Worker]) -> None:
    """End every process with all that it started: first by asking, then by force."""
    for number, wait in ((signal.SIGTERM, TO_LEAVE), (getattr(signal, "SIGKILL", signal.SIGTERM), TO_LEAVE)):
        for one in processes:
            if one.alive:
                _send(one.process, number)
        deadline = time.monotonic() + wait
        while any(one.alive for one in processes) and time.monotonic() < deadline:
            time.sleep(LOOK / 4)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    except ProcessLookupError:
        return


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Turn what asks this process to end into a KeyboardInterrupt, so that it ends its children first."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # signals are its matter alone
        before = {number: signal.signal(number, _interrupt) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def free_port() -> int:
    """Return a port of the loopback interface at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this Python."""
    return [sys.executable, "-m", module, *arguments]


def _what_failed(said: str, failed: list[Worker]) -> str:
    parts = [f"{said}. The last lines of the log of each:"]
    for one in failed:
        text = one.log.read_text(encoding="utf-8", errors="replace").splitlines()
        parts += [f"-- {one.name} ({one.log})", *text[-LOG_LINES:]]
    return "\n".join(parts)
