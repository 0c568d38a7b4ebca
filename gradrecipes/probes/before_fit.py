"""Look at a training that is about to begin: the cheap probes, without a step, and leaving nothing behind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.probes.data import data_probe
from gradrecipes.probes.loss import loss_probe
from gradrecipes.probes.signal import signal
from gradrecipes.probes.structure import structure_probe
from gradrecipes.training.recovery.random_numbers import random_numbers_kept
from gradrecipes.training.trial.sampling import is_arrays
from gradrecipes.training.trial.trial_data import TrialData, trial_data

logger = logging.getLogger(__name__)

ENTRIES_AT_MOST = 20_000_000  # of an array that are read; of a larger one the first samples


def look_before_fit(
    model: keras.Model, x: Any, y: Any = None, *, sample_weight: Any = None, batch_size: int | None = None
) -> dict[str, Any]:
    """Return what the probes of data, structure, signal and loss see before the first step.

    It never raises and changes nothing: weights, seeds, metrics and everybody's random numbers are afterwards what they
    were. Only arrays are read: a dataset or a generator may draw random numbers, or be used up, by being read.

    Args:
        model: The model that is about to be trained.
        x: What `fit` is given.
        y: Targets, or None.
        sample_weight: Weights of the samples, or None.
        batch_size: Samples in a batch; None for Keras' 32.

    Returns:
        Plain JSON values by the name of the probe; what could not be measured is left out.

    Example:
        >>> sorted(look_before_fit(model, x, y))
        ['data', 'loss', 'signal', 'structure']
    """
    probes: dict[str, Any] = {}
    with random_numbers_kept():
        _try(probes, "structure", lambda: structure_probe(model))
        data = _data(x, y, sample_weight, batch_size)
        if data is None:
            return probes
        _try(probes, "data", lambda: _read(data, model, x))
        if model.distribute_strategy.num_replicas_in_sync > 1 or not all(layer.built for layer in sublayers(model)):
            return probes
        batch = data.cut(1)[0]
        _try(probes, "signal", lambda: {"before": signal(model, batch)})
        _try(probes, "loss", lambda: loss_probe(model, batch))
    return probes


def _try(probes: dict[str, Any], name: str, measure: Callable[[], dict[str, Any]]) -> None:
    try:
        probes[name] = measure()
    except Exception:  # the training is what counts; it is not to end because somebody looked at it
        logger.debug("The probe %r failed before a fit.", name, exc_info=True)


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


def _read(data: TrialData, model: keras.Model, x: Any) -> dict[str, Any]:
    complete = data.samples == len(keras.tree.flatten(x)[0])
    read = data_probe(data.x, data.y, data.sample_weight, model=model, complete=complete)
    return {**read, "samples": data.samples}
