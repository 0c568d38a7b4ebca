"""What `fit` needs under MultiWorkerMirroredStrategy, where that of Keras 3 fails (keras issue 20585)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def is_multi_worker(model: keras.Model) -> bool:
    """Say whether a model was made under a strategy of several workers."""
    return isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy)


def first_local_batch(strategy: tf.distribute.Strategy, iterator: Any) -> Any:
    """Return the part of the first batch that a replica of this worker gets, to build a model by its shapes."""
    for _, _, batches in iterator:
        return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], next(batches))
    return None


def as_rows(logs: dict[str, Any]) -> dict[str, Any]:
    """Return scalars as vectors of one entry: Keras averages the workers' logs over an axis that scalars lack."""
    return {name: tf.reshape(tf.convert_to_tensor(value), [1]) for name, value in logs.items()}
