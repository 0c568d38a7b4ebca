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
from gradrecipes.core.trace.probes import Probes
from gradrecipes.probes.attention import AttentionProbe
from gradrecipes.probes.data import read_data
from gradrecipes.probes.loss import loss_probe
from gradrecipes.probes.optimizer import nonfinite_slots
from gradrecipes.probes.signal import signal
from gradrecipes.training.description.describe import describe_model
from gradrecipes.training.trial.trial_data import TrialData, is_arrays, trial_data

T = TypeVar("T")

logger = logging.getLogger(__name__)

ENTRIES_AT_MOST = 20_000_000  # of an array that are read; of a larger one the first samples
MAX_STEPS, MAX_SHARE = 10, 0.05  # what a look may cost: so many steps of the fit, or this share of them if that is more
PASSES_OF_A_STEP = 3  # one forward, and a backward pass that costs two
PASSES_OF_A_LOOK = PASSES_OF_A_STEP + 2  # signal, attention, outputs; each output's loss may take one more
EAGER_COST = 3  # times a pass of the compiled step: eager, and every output copied; measured on transformers and MLPs


def look_before_fit(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int | None = None,
    steps: int | None = None,
    attention: AttentionProbe | None = None,
) -> Probes:
    """Return what the probes of data, signal, loss and optimizer see before the first step.

    It never raises and changes nothing: weights, seeds, metrics and everybody's random numbers are afterwards what they
    were. Only arrays are read: a dataset or a generator may draw random numbers, or be used up, by being read.

    It costs at most what ten training steps cost, or a twentieth of the fit where that is more: a model with many
    outputs is looked at on fewer samples. No more data are read than the fit draws.

    Args:
        model: The model that is about to be trained.
        x: What `fit` is given.
        y: Targets, or None.
        sample_weight: Weights of the samples, or None.
        batch_size: Samples in a batch; None for Keras' 32.
        steps: Training steps of the fit, or None where they are not known.
        attention: Reads the attention of the model; None for one of its own. One that is given is traced once.

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
        data = _data(x, y, sample_weight, batch_size or 32, steps)
        if data is None:
            return probes
        complete = data.samples == len(keras.tree.flatten(x)[0])
        probes = replace(probes, data=_try("data", lambda: read_data(data, description, complete=complete)))
        if model.distribute_strategy.num_replicas_in_sync > 1:
            return probes
        if not all(layer.built for layer in (model, *sublayers(model))):
            return probes  # a look would draw the initial weights from seeds that are drawn again in the fit
        batch = _affordable(data.cut(1)[0], data.batch_size, len(description.outputs), steps)
        measured = _try("signal", lambda: signal(model, batch, attention=attention or AttentionProbe(model)))
        return replace(probes, signal=measured, loss=_try("loss", lambda: loss_probe(model, batch, description)))


def _try(name: str, measure: Callable[[], T]) -> T | None:
    try:
        return measure()
    except Exception:  # the training is what counts; it is not to end because somebody looked at it
        logger.debug("The probe %r failed before a fit.", name, exc_info=True)
        return None


def _affordable(batch: Any, samples: int, outputs: int, steps: int | None) -> Any:
    """Return as many samples of a batch as can be looked at for what a look may cost."""
    allowed = max(MAX_STEPS, MAX_SHARE * (steps or 0)) * PASSES_OF_A_STEP
    share = allowed / (EAGER_COST * (PASSES_OF_A_LOOK + outputs))
    return batch if share >= 1 else _first(batch, max(1, int(share * samples)))


def _data(x: Any, y: Any, sample_weight: Any, batch_size: int, steps: int | None) -> TrialData | None:
    try:
        if not is_arrays(x):
            return None
        largest = max(int(np.prod(array.shape[1:])) for array in keras.tree.flatten(x))
        samples = max(1, ENTRIES_AT_MOST // max(1, largest))
        if steps is not None:
            samples = min(samples, max(1, steps * batch_size))
        heads = [None if part is None else _first(part, samples) for part in (x, y, sample_weight)]
        return trial_data(*heads[:2], sample_weight=heads[2], batch_size=batch_size)
    except Exception:
        logger.debug("The data could not be read before a fit.", exc_info=True)
        return None


def _first(part: Any, samples: int) -> Any:
    return keras.tree.map_structure(lambda array: None if array is None else array[:samples], part)
