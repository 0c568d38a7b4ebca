"""Look at a training that is about to begin: the cheap probes, without a step, and leaving nothing behind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import keras
import numpy as np

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.compat.random_state import random_numbers_kept
from gradrecipes.core.trace.data_reading import DataReading
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import Probes
from gradrecipes.probes.attention import AttentionProbe
from gradrecipes.probes.data import data_probe
from gradrecipes.probes.loss import loss_probe
from gradrecipes.probes.optimizer import nonfinite_slots
from gradrecipes.probes.signal import signal
from gradrecipes.training.description.describe import describe_model
from gradrecipes.training.trial.trial_data import TrialData, is_arrays, trial_data

T = TypeVar("T")

logger = logging.getLogger(__name__)

ENTRIES_AT_MOST = 20_000_000  # of an array that are read; of a larger one the first samples


def look_before_fit(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int | None = None,
    attention: AttentionProbe | None = None,
) -> Probes:
    """Return what the probes of data, signal, loss and optimizer see before the first step.

    It never raises and changes nothing: weights, seeds, metrics and everybody's random numbers are afterwards what they
    were. Only arrays are read: a dataset or a generator may draw random numbers, or be used up, by being read.

    Args:
        model: The model that is about to be trained.
        x: What `fit` is given.
        y: Targets, or None.
        sample_weight: Weights of the samples, or None.
        batch_size: Samples in a batch; None for Keras' 32.
        attention: See `signal`.

    Returns:
        The probes; None for what could not be measured.

    Example:
        >>> found = look_before_fit(model, x, y)
        >>> found.data.samples == len(x), found.trial
        (True, None)
    """
    with random_numbers_kept(model, *sublayers(model)):
        description = describe_model(model)
        probes = Probes(nonfinite_slots=_try("optimizer", lambda: nonfinite_slots(model)))
        data = _data(x, y, sample_weight, batch_size)
        if data is None:
            return probes
        probes = replace(probes, data=_try("data", lambda: _read(data, description, x)))
        if model.distribute_strategy.num_replicas_in_sync > 1:
            return probes
        if not all(layer.built for layer in (model, *sublayers(model))):
            return probes  # a look would draw the initial weights from seeds that are drawn again in the fit
        batch = data.cut(1)[0]
        measured = _try("signal", lambda: signal(model, batch, attention=attention))
        return replace(probes, signal=measured, loss=_try("loss", lambda: loss_probe(model, batch, description)))


def _try(name: str, measure: Callable[[], T]) -> T | None:
    try:
        return measure()
    except Exception:  # the training is what counts; it is not to end because somebody looked at it
        logger.debug("The probe %r failed before a fit.", name, exc_info=True)
        return None


def _data(x: Any, y: Any, sample_weight: Any, batch_size: int | None) -> TrialData | None:
    try:
        if not is_arrays(x):
            return None
        heads = [None if part is None else _head(part, x) for part in (x, y, sample_weight)]
        return trial_data(*heads[:2], sample_weight=heads[2], batch_size=batch_size or 32)
    except Exception:
        logger.debug("The data could not be read before a fit.", exc_info=True)
        return None


def _head(part: Any, x: Any) -> Any:
    largest = max(int(np.prod(array.shape[1:])) for array in keras.tree.flatten(x))
    samples = max(1, ENTRIES_AT_MOST // max(1, largest))
    return keras.tree.map_structure(lambda array: array[:samples], part)


def _read(data: TrialData, description: Description, x: Any) -> DataReading:
    complete = data.samples == len(keras.tree.flatten(x)[0])
    return data_probe(
        data.x,
        data.y,
        data.sample_weight,
        inputs=description.inputs,
        samples=data.samples,
        complete=complete,
    )
