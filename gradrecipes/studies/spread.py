"""Share the runs of a study among processes, of this machine or of many."""

from __future__ import annotations

import hashlib
import json
import multiprocessing.spawn
import os
import pickle
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradrecipes.studies.study_runs import StudyRuns

CREW = "KERASTUNER_TUNER_ID"  # keras-tuner's own: set in the chief and in every worker
WORKER = "import sys; from gradrecipes.studies.spread import work; work(sys.argv[1])"  # program of a process
loading = False  # whether this process is a worker that is only loading the script of `build`


def in_a_crew() -> bool:
    """Say whether this process is the chief or a worker of keras-tuner's distributed mode.

    Raises:
        RuntimeError: It is a worker that has not got further than loading the script that began the study.
    """
    if loading:
        raise RuntimeError(
            "A worker loaded the script that defines `build`, and the script ran the study again. "
            'Put what shall run once under: if __name__ == "__main__":'
        )
    return CREW in os.environ


def join(study: StudyRuns, *, give_up: bool, name: str | None = None) -> None:
    """Take part in a study whose processes share a directory, as chief or as worker.

    Each run is a trial of keras-tuner's distributed mode: the chief hands them out, and takes up those of workers
    that die. The results are where any study keeps them.

    Args:
        study: The study, the same in all processes.
        give_up: Whether an arm may be given up.
        name: Of the folder in which the processes agree on who does what; None for one that the study determines.

    Raises:
        ValueError: The study has no directory.
        RuntimeError: A run failed.
    """
    from gradrecipes.tuning import run_jobs

    if study.directory is None:
        raise ValueError(
            f"This process is one of several (the variable {CREW} is set), so the study needs a `directory` that all "
            "of them reach. Received: directory=None."
        )
    jobs = [{"arm": arm, "seed": seed} for seed in study.seeds for arm in study.arms]
    digest = hashlib.sha256(json.dumps([jobs, study.fingerprints]).encode()).hexdigest()[:12]
    name = name or f"crew-{digest}"

    def run(job: dict[str, Any]) -> str:
        return "given up" if study.run_one(job["arm"], job["seed"], give_up=give_up) is None else "run"

    results = run_jobs(jobs, run, directory=study.directory, name=name)
    failed = [(job, result.error) for job, result in zip(jobs, results, strict=True) if result.error]
    if failed:
        job, error = failed[0]
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} runs failed, the first of them {job['arm']!r} with seed {job['seed']}:\n"
            f"{error}\nMend it and remove the folder {str(Path(study.directory) / name)!r}; what was run stays."
        )


def launch(study: StudyRuns, *, workers: int, give_up: bool, on_look: Callable[..., None]) -> None:
    """Start a chief and workers on this machine, and wait until they have run the study.

    Args:
        study: The study.
        workers: How many.
        give_up: Whether an arm may be given up.
        on_look: Called several times a second.

    Raises:
        TypeError: `build` or an arm cannot be sent to another process.
        RuntimeError: The chief failed, or no worker is left.
    """
    from gradrecipes.tuning import launch as launch_crew

    with tempfile.TemporaryDirectory(prefix="gradrecipes-study-") as temporary:
        in_memory = study.directory is None
        if in_memory:
            study.move_to(temporary)
        try:
            folder = Path(temporary) / "crew"
            folder.mkdir()
            order = folder / "order.pickle"
            order.write_bytes(_packed(study, give_up))
            launch_crew(
                [sys.executable, "-c", WORKER, str(order)], workers=workers, logs=folder / "logs", on_look=on_look
            )
        finally:
            if in_memory:
                study.move_to(None)


def work(path: str) -> None:
    """Take part, in a process of its own, in the study of an order that `launch` wrote.

    Args:
        path: Of the order.
    """
    global loading
    preparation, order = pickle.loads(Path(path).read_bytes())
    loading = True
    try:
        multiprocessing.spawn.prepare(preparation)
        make, build, arguments, give_up, name = pickle.loads(order)
    finally:
        loading = False
    join(make(build, **arguments), give_up=give_up, name=name)


def _packed(study: StudyRuns, give_up: bool) -> bytes:
    # What multiprocessing tells a new process of this one: where modules are found, and the script that was started.
    preparation = multiprocessing.spawn.get_preparation_data("study")
    preparation.pop("authkey", None)
    arguments = {
        "arms": study.arms,
        "data": study.split,
        "seeds": study.seeds,
        "fit": study.fit,
        "objective": study.objective,
        "directory": str(Path(study.directory).absolute()),
    }
    try:
        order = pickle.dumps((type(study), study.build, arguments, give_up, f"crew-{uuid.uuid4().hex[:12]}"))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"The study cannot be sent to other processes: {error}. `build`, the arms and the function that makes "
            "callbacks must be functions of a module or at the top of a script, not lambdas or functions in functions."
        ) from error
    return pickle.dumps((preparation, order))
