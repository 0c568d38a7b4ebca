"""Run a fixed list of jobs in one process or in many, and never one of them twice: what a study is spread by."""

from __future__ import annotations

import contextlib
import io
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras_tuner

from gradrecipes.core.analysis.search_trial import Failure
from gradrecipes.tuning import oracles, records
from gradrecipes.tuning.chief import WorkerManners, serve
from gradrecipes.tuning.keras_tuner_private import BaseTuner, Trial, TrialStatus, has_chief_oracle, is_chief_oracle

JOB = "job"  # the only setting: the place of the job in the list
DONE = "done"  # the objective: 1 for a job that returned
JOBS, RESULT = "jobs.json", "result.json"


@dataclass(frozen=True)
class JobResult:
    """What one job left.

    Args:
        value: What it returned, as plain JSON values; None if it has not ended or failed.
        error: The traceback of what it raised, or an empty text.
        ended: Whether it has ended.
    """

    value: Any = None
    error: str = ""
    ended: bool = False


def run_jobs(
    jobs: Sequence[Mapping[str, Any]],
    run: Callable[[Mapping[str, Any]], Any],
    *,
    directory: str | os.PathLike[str],
    name: str = "jobs",
) -> list[JobResult]:
    """Run every job of a list that has not been run, and return what all of them left, in the order of the list.

    In an ordinary process the jobs run one after the other. With the environment variables of keras-tuner's
    distributed mode, as `gr.tuning.launch` sets them, this process is the chief, who hands them out and takes up those
    of workers that die, or one of the workers; all call this function with the same list. A job that raises is written
    down and not repeated, and does not end the others.

    Args:
        jobs: Plain JSON values, one dictionary for each job.
        run: Called with a job; returns plain JSON values. Numbers that are not finite come back as None.
        directory: Where the results are kept, and found again by a later call. Shared by all processes.
        name: Of the folder within it.

    Raises:
        ValueError: The folder belongs to another list of jobs.
    """
    jobs = [records.plain(dict(job)) for job in jobs]
    folder = Path(directory) / name
    known = records.read_json(folder / JOBS)
    if known is not None and known != jobs:
        raise ValueError(
            f"The folder {str(folder)!r} holds the results of another list of jobs: {len(known)} jobs, of which the "
            f"first is {known[:1]}. Received: {len(jobs)} jobs, of which the first is {jobs[:1]}. Choose another "
            "`name` or remove the folder."
        )
    if known is None:
        records.write_json(folder / JOBS, jobs)
    if jobs:
        with contextlib.redirect_stdout(io.StringIO()):  # keras-tuner says that it takes up a search
            runner = _JobRunner(jobs, run, directory=directory, name=name)
        runner.work()
    return read_jobs(folder)


def read_jobs(folder: str | os.PathLike[str]) -> list[JobResult]:
    """Return what the jobs of a folder have left so far; one entry for each job of the list."""
    folder = Path(folder)
    results = [JobResult() for _ in records.read_json(folder / JOBS) or []]
    for path in folder.glob(f"trial_*/{RESULT}"):
        content = records.read_json(path)
        if content is not None:
            results[content["place"]] = JobResult(content["value"], content["error"], True)
    return results


class _JobOracle(oracles.SurvivingOracle, keras_tuner.Oracle):
    """Hand out the jobs of a list in their order."""

    def __init__(self, count: int):
        super().__init__(keras_tuner.Objective(DONE, "max"), max_trials=count)
        self.verbose = 0
        self.hyperparameters.Int(JOB, 0, count - 1)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        return {"status": TrialStatus.RUNNING, "values": {JOB: len(self.trials)}}

    def judge_errors(self) -> None:
        """Let every job have its turn: they are no search, whose first trials speak for the others."""


class _JobRunner(WorkerManners, BaseTuner):
    """Run the jobs that the oracle hands out."""

    def __init__(self, jobs: Sequence[Any], run: Callable[..., Any], *, directory: Any, name: str):
        self.jobs = jobs
        self.run = run
        super().__init__(_JobOracle(len(jobs)), directory=str(directory), project_name=name)

    def work(self) -> None:
        if is_chief_oracle():
            self.save()
            serve(self.oracle)
        else:
            self.search()

    def run_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> dict[str, float]:
        place = int(trial.hyperparameters.values[JOB])
        value, error, metrics = None, "", {DONE: 1.0}
        try:
            value = self.run(self.jobs[place])
        except Exception as raised:
            error = traceback.format_exc()
            failure = Failure("error", message=f"{type(raised).__name__}: {raised}")
            metrics = oracles.failure_metrics(failure, DONE, maximize=True)
        content = {"place": place, "value": value, "error": error}
        records.write_json(Path(self.get_trial_dir(trial.trial_id)) / RESULT, content)
        return metrics


def is_worker() -> bool:
    """Say whether this process is one of the workers of a distributed search."""
    return has_chief_oracle() and not is_chief_oracle()
