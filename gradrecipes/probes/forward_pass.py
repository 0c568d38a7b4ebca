"""Pass all the data through a net once, without training, to find the one sample in thousands that breaks it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import has_own_train_step
from gradrecipes.core.trace.probes import ForwardPassReading
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial.trial_data import TrialData

logger = logging.getLogger(__name__)

SECONDS = 2.0  # that the pass may take; what is left over then is not seen
ENTRIES = 2**18  # of all inputs in a batch of the pass: large batches are quick, and activations are larger than inputs
LARGEST_BATCH = 1024  # samples
SAMPLES_NAMED = 20


def forward_pass(model: keras.Model, data: TrialData, *, seconds: float = SECONDS) -> ForwardPassReading:
    """Say for which samples the net's output, its loss, or the gradient of that by the output is no number.

    A trial meets a few hundred samples; a logarithm of the single 0 among ten thousand waits for some later epoch. The
    model is left as it was. A dataset or a generator is not read any further than it was.

    Args:
        model: A compiled, built model.
        data: All of them.
        seconds: After which no further batch is begun.

    Example:
        >>> from gradrecipes.training.trial.trial_data import trial_data
        >>> forward_pass(model, trial_data(x, y)).nonfinite_samples
        ()
    """
    samples, bad, failure = 0, [], None
    if data.batches is not None or data.y is None or has_own_train_step(model):
        return ForwardPassReading()
    began = time.monotonic()
    try:
        with preserve_state(model):
            for index in _batches(data):
                bad += _bad_of(model, data, index)
                samples += len(index)
                if time.monotonic() - began > seconds or len(bad) >= SAMPLES_NAMED:
                    break
    except Exception as error:  # the trial meets the same error, and tells it
        logger.debug("The data could not be sent through %r.", model, exc_info=True)
        failure = f"{type(error).__name__}: {error}"[:500]
    return ForwardPassReading(samples, tuple(bad[:SAMPLES_NAMED]), failure)


def _batches(data: TrialData) -> Iterator[np.ndarray]:
    entries = sum(int(np.prod(array.shape[1:])) for array in keras.tree.flatten(data.x))
    size = min(max(data.batch_size, ENTRIES // max(1, entries)), max(data.batch_size, LARGEST_BATCH))
    for start in range(0, data.samples, size):
        yield np.arange(start, min(start + size, data.samples))


def _bad_of(model: keras.Model, data: TrialData, index: np.ndarray) -> list[int]:
    """Return which of some samples are bad; where only their sum tells, by halves."""
    bad, whole = _judged(model, data.take(index))
    if bad.any():
        return [int(sample) for sample in index[bad]]
    if whole:
        return []
    if len(index) == 1:
        return [int(index[0])]
    middle = len(index) // 2
    return _bad_of(model, data, index[:middle]) or _bad_of(model, data, index[middle:])


def _judged(model: keras.Model, batch: Any) -> tuple[np.ndarray, bool]:
    """Return bool `[samples]`, whose output or whose loss's slope is no number, and whether the loss is one."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    outputs = model(x, training=False)
    flat = keras.tree.flatten(outputs)
    with tf.GradientTape() as tape:
        tape.watch(flat)
        predicted = keras.tree.pack_sequence_as(outputs, flat)
        loss = model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=sample_weight, training=False)
    slopes = [slope for slope in tape.gradient(loss, flat) if slope is not None]
    samples = len(keras.tree.flatten(x)[0])
    bad = np.zeros(samples, bool)
    for array in (*flat, *slopes):
        values = tf.cast(tf.convert_to_tensor(array), tf.float32)
        if values.shape.rank and values.shape[0] == samples:
            bad |= ~np.isfinite(np.asarray(values)).reshape(samples, -1).all(axis=1)
    return bad, bool(np.isfinite(float(loss)))
