"""Run a fixed list of jobs, each once, in one process or in many: the chief notices when a worker is gone."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras_tuner

from gradrecipes.core.analysis.search_trial import Failure
from gradrecipes.tuning import oracles, records
from gradrecipes.tuning.keras_tuner_private import (
    BaseTuner,
    Trial,
    TrialStatus,
    has_chief_oracle,
    is_chief_oracle,
    start_oracle_server,
)
from gradrecipes.tuning.oracles import HEARTBEAT

_LOG = logging.getLogger(__name__)
BEAT = 5.0  # seconds from one sign of life to the next
PATIENCE = 60.0  # seconds of silence after which a worker is given up: twelve missed halved_by
LOOK = 0.5  # seconds between two looks of the chief at his workers
POLL = 0.2  # seconds between two questions of a worker for which there is no trial yet
LONELY = 600.0  # seconds without any worker after which the chief leaves: a cluster that restarts them is faster
GRACE = 2.0  # seconds that answers on their way to a worker get before the chief leaves
VARIABLE = "GRADRECIPES_WORKER_PATIENCE"  # environment variable: another number for PATIENCE, seconds


def patience() -> float:
    """Return after how many seconds of silence a worker is given up.

    Raises:
        ValueError: The environment variable holds no positive number.
    """
    given = os.environ.get(VARIABLE, str(PATIENCE))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"{VARIABLE} must be a positive number of seconds. Received: {given!r}.")
    return seconds


def serve(oracle: Any) -> None:
    """Answer the workers of a search until all its trials have ended and all workers have gone.

    keras-tuner's own chief waits forever for a worker that was killed, and holds its trial. This one gives the trial
    to another worker, and leaves within a few seconds of the last trial.

    Args:
        oracle: One of `gradrecipes.tuning.oracles`, which knows when each worker last reported.

    Raises:
        RuntimeError: The address in KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT cannot be listened at, or all
            workers have been gone for ten minutes.
    """
    limit = patience()
    oracle.serving = True
    server = start_oracle_server(oracle, f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}")
    last_seen = time.monotonic()
    try:
        while not (oracle.told_to_stop and not oracle.ongoing_trials and not oracle.tuner_ids):
            time.sleep(LOOK)
            if oracle.tuner_ids:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > LONELY:
                raise RuntimeError(f"No worker has reported for {LONELY:.0f} s, and the search is not at its end.")
            for lost in oracle.release_lost(limit):
                _LOG.warning("Worker %s has been silent for %.0f s and is given up.", lost, limit)
    finally:
        server.stop(GRACE).wait()
        oracle.serving = False


class Heartbeat:
    """Tell the chief every few seconds that a worker still works on its trial.

    Args:
        client: keras-tuner's stand-in for the chief's oracle.
        trial_id: The trial.
        tuner_id: The worker.
    """

    def __init__(self, client: Any, trial_id: str, tuner_id: str):
        self._client = client
        self._trial_id = trial_id
        self._metric = HEARTBEAT + tuner_id
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{tuner_id}", daemon=True)

    def start(self) -> Heartbeat:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End, without waiting for a chief who may have gone."""
        self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(min(BEAT, patience() / 4)):
            try:
                self._client.update_trial(self._trial_id, {self._metric: 1.0})
            except Exception as error:  # whatever gRPC raises: the worker's own next question meets it as well
                _LOG.warning("No sign of life reached the chief: %s", error)
                return


class WorkerManners:
    """What a worker does beside its trials: ask for them in moderation, and say that it is alive."""

    _asked = False
    _heartbeat: Heartbeat | None = None

    def pre_create_trial(self) -> None:
        """Wait a little before asking again for a trial where there was none."""
        if self._asked:
            time.sleep(POLL)
        self._asked = True

    def on_trial_begin(self, trial: Any) -> None:
        """Begin a trial."""
        self._asked = False
        super().on_trial_begin(trial)
        if self._is_worker():
            self._heartbeat = Heartbeat(self.oracle, trial.trial_id, self.tuner_id).start()

    def on_trial_end(self, trial: Any) -> None:
        """End a trial."""
        if self._heartbeat is not None:
            self._heartbeat = self._heartbeat.stop()
        super().on_trial_end(trial)


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
