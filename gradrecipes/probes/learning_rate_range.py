"""Find a learning rate in a hundred batches, before any training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import optimizers_of, replaced
from gradrecipes.core.analysis.range_test import range_of_rates
from gradrecipes.plots.measured import LearningRateRange
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial.rate_ramp import RateRamp
from gradrecipes.training.trial.sampling import draw_batches, is_arrays


def learning_rate_range(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 32,
    lowest: float = 1e-7,
    highest: float = 10.0,
    batches: int = 100,
    seed: int = 0,
) -> LearningRateRange:
    """Raise the learning rate from batch to batch until the loss explodes, and say which rates suit the training.

    The model is trained by its own train step, with whatever optimizer, loss and clipping it is compiled with, and
    put back afterwards to the bit: weights, moving statistics, seeds, metrics, optimizer. A schedule in the
    optimizer stays out of the way meanwhile. The loss of each batch is read on its own, not as the running mean
    that the logs show.

    Args:
        model: A compiled model.
        x: Arrays as `model.fit` takes them, or a `tf.data.Dataset`, generator or `keras.utils.PyDataset`.
        y: Targets; None with a dataset.
        batch_size: Samples in a batch; of arrays only.
        lowest: First learning rate.
        highest: Last one; the test stops earlier when the loss is not finite or four times its best.
        batches: How many, which sets how finely the rates are scanned.
        seed: Order of the samples; of arrays only.

    Returns:
        `LearningRateRange`, with `valley`, `steepest`, `minimum_tenth` and a plot.

    Raises:
        ValueError: A model that is not compiled, or arguments out of range.

    Example:
        >>> curve = gr.probes.learning_rate_range(model, x, y, batch_size=64, batches=40)
        >>> bool(1e-7 < curve.valley < 10)
        True

    References:
        Smith 2015, arXiv 1506.01186; the suggestions as in fastai's `lr_find`.
    """
    rates = range_of_rates(lowest, highest, batches)
    ramp = RateRamp(model, rates)
    fit: dict[str, Any] = {"verbose": 0, "shuffle": False}
    if is_arrays(x):
        x, y = draw_batches((x, y), batch_size=batch_size, batches=batches, seed=seed)
        fit |= {"batch_size": batch_size}
        first = keras.tree.map_structure(lambda part: part[:1], x)
        if not model.built:
            model(first)
    elif isinstance(x, tf.data.Dataset):
        x = x.repeat()
        fit |= {"steps_per_epoch": batches}
    else:
        fit |= {"epochs": batches}  # as often as it takes; the ramp ends it
    _build(model)
    history = getattr(model, "history", None)
    try:
        with preserve_state(model), replaced(model, "steps_per_execution", 1), ramp.installed():
            model.fit(x, y, **fit)
    finally:
        model.history = history
    return LearningRateRange(rates[: len(ramp.losses)], np.array(ramp.losses))


def _build(model: keras.Model) -> None:
    """Let the optimizer make its slots before they are copied, so that they can be put back."""
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built, and a dataset cannot build it without losing a batch. "
            "Call it on one batch first, or give it a keras.Input."
        )
    for optimizer in optimizers_of(model):
        if not optimizer.built and len(optimizers_of(model)) == 1:
            optimizer.build(model.trainable_variables)
