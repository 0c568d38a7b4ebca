"""The chief of a distributed search, who notices when a worker is gone, and the worker's sign of life."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from gradrecipes.tuning.keras_tuner_private import start_oracle_server
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
