"""The trials of a search on TensorBoard's HParams page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def write_hparams(results: Any, directory: str | os.PathLike[str]) -> None:
    """Write one run for each trial that has ended: its settings, its score, whether it failed, its steps.

    Args:
        results: A `SearchResults`.
        directory: The log directory.
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    metrics = [api.Metric(name) for name in (results.objective, "failed", "training_steps")]
    root = Path(directory)
    writer = tf.summary.create_file_writer(str(root))
    with writer.as_default():
        api.hparams_config(hparams=[api.HParam(axis.name) for axis in results.axes], metrics=metrics)
    writer.close()
    for trial in results.trials:
        if trial.status == "running":
            continue
        writer = tf.summary.create_file_writer(str(root / f"trial_{trial.trial_id}"))
        with writer.as_default():
            api.hparams({**trial.values, "cause": trial.cause or "none"}, trial_id=trial.trial_id)
            if trial.score is not None:
                tf.summary.scalar(results.objective, trial.score, step=0)
            tf.summary.scalar("failed", float(trial.failed), step=0)
            tf.summary.scalar("training_steps", float(trial.steps), step=0)
        writer.close()
