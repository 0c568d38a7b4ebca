"""What `fit` needs under MultiWorkerMirroredStrategy, where that of Keras 3 fails (keras issue 20585)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.training.step.replicas import is_multi_worker

LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError, tf.errors.CancelledError)


@contextlib.contextmanager
def naming_lost_workers(model: keras.Model) -> Iterator[None]:
    """Say in plain words that another worker was lost, where TensorFlow speaks of a collective operation.

    Raises:
        RuntimeError: Another worker of a model's strategy is gone; with how to go on.
    """
    try:
        yield
    except LOST as error:
        if not is_multi_worker(model):
            raise
        raise RuntimeError(
            "Another worker of this training was lost: it has crashed, was ended, or cannot be reached any more, so "
            "that no step can be taken together. The weights on this one are those of the last whole step. Start all "
            "workers again; with keras.callbacks.BackupAndRestore(directory), a directory for each worker, they go on "
            f"from their last backup. Received from TensorFlow: {type(error).__name__}: {str(error)[-600:]}"
        ) from error


def first_local_batch(strategy: tf.distribute.Strategy, iterator: Any) -> Any:
    """Return the part of the first batch that a replica of this worker gets, to build a model by its shapes."""
    for _, _, batches in iterator:
        return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], next(batches))
    return None
