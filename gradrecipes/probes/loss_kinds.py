"""Recognize a loss of one's own by what it does: the cross-entropy of logits written by hand is still one of logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.trace.probes import LossEquivalent

CLOSE = 2e-3  # relative difference at every trial; the losses below differ by tenths from one another
TRIALS = 3  # predictions on which they are compared


def acts_like(loss: Any, target: tf.Tensor, output: tf.Tensor) -> LossEquivalent | None:
    """Return the name of the Keras loss, and whether it takes logits, that a loss equals in value; None for any other.

    Args:
        loss: A `keras.losses.Loss`.
        target: Of a batch.
        output: What the net puts out for it.

    Example:
        >>> own = keras.losses.MeanSquaredError()
        >>> acts_like(own, tf.constant([[1.0], [2.0]]), tf.constant([[0.5], [0.1]])).loss
        'mean_squared_error'
    """
    random = np.random.default_rng(0)
    values = np.asarray(tf.cast(output, tf.float32))
    noise = [random.uniform(0.2, 0.8, values.shape) for _ in range(TRIALS - 1)]
    trials = [values, *(0.5 * values + part for part in noise)]
    if values.ndim > 1 and values.shape[-1] > 1 and np.allclose(values.sum(axis=-1), 1.0, atol=1e-3):
        trials = [trial / trial.sum(axis=-1, keepdims=True) for trial in trials]  # Keras would do so itself
    trials = [tf.constant(trial, tf.float32) for trial in trials]
    try:
        found = [float(loss(target, trial)) for trial in trials]
    except Exception:  # a loss that needs more than targets and predictions
        return None
    if not np.isfinite(found).all():
        found = found[1:]  # away from the ends that only the net itself may reach
        trials = trials[1:]
    if not np.isfinite(found).all():
        return None
    for name, logits, candidate in _candidates(target, output):
        try:
            expected = [float(candidate(target, trial)) for trial in trials]
        except Exception:
            continue
        if np.allclose(found, expected, rtol=CLOSE, atol=1e-6):
            return LossEquivalent(name, logits)
    return None


def _candidates(target: tf.Tensor, output: tf.Tensor) -> Iterator[tuple[str, bool | None, Any]]:
    """Yield (name, from_logits, loss) of the losses of Keras that fit the shapes."""
    shape, given = tuple(output.shape), tuple(target.shape)
    whole = given in (shape, shape[:-1]) if shape[-1:] == (1,) else given == shape
    if len(shape) > 1 and shape[-1] > 1 and given in (shape[:-1], (*shape[:-1], 1)):
        for logits in (True, False):
            yield (
                "sparse_categorical_crossentropy",
                logits,
                keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
            )
    if not whole:
        return
    yield "mean_squared_error", None, keras.losses.MeanSquaredError()
    yield "mean_absolute_error", None, keras.losses.MeanAbsoluteError()
    for logits in (True, False):
        yield "binary_crossentropy", logits, keras.losses.BinaryCrossentropy(from_logits=logits)
        if shape[-1] > 1:
            yield "categorical_crossentropy", logits, keras.losses.CategoricalCrossentropy(from_logits=logits)
