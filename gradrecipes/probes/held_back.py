"""Ask a net for its answers to rows that it was trained on, and to others, and compare them with the targets."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import optimizers_of
from gradrecipes.core.trace.data_reading import HeldBackReading
from gradrecipes.probes.varied.variations import joined
from gradrecipes.training.recovery.model_state import preserve_state, preserves_state

logger = logging.getLogger(__name__)

MIN_JUDGED = 48  # rows from which a fit is judged
OTHERS = 8  # targets that belong to other rows, with which each answer is compared
HELD_BACK_ROWS, ROWS_OF_A_CALL = 1024, 256  # at most, and as many of the trial; passed through the net at once

CalledLoss = tuple[int, int, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of a mean; 0 of a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


@preserves_state
def held_back_readings(
    model: keras.Model,
    losses: Sequence[CalledLoss],
    batches: Sequence[Any],
    held: Sequence[Any],
    validation: Sequence[Any] = (),
) -> tuple[HeldBackReading, ...]:
    """Return for each output how much lower its loss is with the targets of each row than with those of another one.

    Averages of the weights take their place, as at the end of `fit`.

    Args:
        model: A built model after some steps. It is left as it was.
        losses: Of its outputs, each as (place of the output, of its target, loss of each row of both).
        batches: What it was trained on.
        held: What it was not trained on; empty where nothing is left of the data.
        validation: Batches of the validation data; empty where there are none.
    """
    found = []
    try:
        for optimizer in (one for one in optimizers_of(model) if getattr(one, "use_ema", False)):
            optimizer.finalize_variable_values(model.trainable_variables)
        trained, own = _own_over_other(model, losses, batches)
        others = _own_over_other(model, losses, held)[0] if held else trained
        validated = _own_over_other(model, losses, validation)[0] if validation else {}
    except Exception:  # a model that is not called as a whole, a loss that compares samples, ragged inputs
        logger.debug("The losses of rows held back could not be measured.", exc_info=True)
        return ()
    for output in sorted(set(trained) & set(others)):
        rows = [trained[output], others[output]]
        if min(map(len, rows)) >= MIN_JUDGED and all(np.isfinite(one).all() for one in rows):
            means, errors = [float(one.mean()) for one in rows], map(standard_error, rows[::-1])
            ended = float(own[output].mean()), standard_error(own[output])
            reading = HeldBackReading(output, *means, *errors, len(rows[1]) if held else 0, *ended)
            given = validated.get(output, np.zeros(0))
            given = given[given != 0.0]  # where the other row has the same target, as all have in data of one class
            if len(given) >= MIN_JUDGED and np.isfinite(given).all():
                reading = replace(reading, validated=float(given.mean()), validated_noise=standard_error(given))
            found.append(reading)
    return tuple(found)


def losses_held_back(model: keras.Model, losses: Sequence[CalledLoss], batches: Sequence[Any]) -> np.ndarray | None:
    """Return the loss of each row, float64 `[rows]`, of a single output; None where it cannot be had of enough rows."""
    if len(losses) != 1 or not batches:
        return None
    try:
        (rows,) = _own_over_other(model, losses, batches)[1].values()
    except Exception:  # a model that is not called as a whole, a loss that compares samples, ragged inputs
        logger.debug("The losses of rows held back could not be measured.", exc_info=True)
        return None
    return rows if len(rows) >= MIN_JUDGED and np.isfinite(rows).all() else None


def answers_to(model: keras.Model, batches: Sequence[Any], *, training: bool = False) -> list[np.ndarray]:
    """Return each output of a model, of all rows of some batches, without dropout and noise unless it is training."""
    size = len(keras.tree.flatten(batches[0])[0])
    several = min(len(batches), max(1, ROWS_OF_A_CALL // size))
    groups = [batches[at : at + several] for at in range(0, len(batches), several)]
    with preserve_state(model):
        given = [
            keras.tree.flatten(model(keras.utils.unpack_x_y_sample_weight(one)[0], training=training))
            for group in groups
            for one in joined(group, len(group))
        ]
    return [np.concatenate([np.asarray(row[place]) for row in given]) for place in range(len(given[0]))]


def _own_over_other(
    model: keras.Model, losses: Sequence[CalledLoss], batches: Sequence[Any]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Return by output the loss with targets of other rows minus its own, of each row, and its own."""
    batches = batches[: max(1, HELD_BACK_ROWS // len(keras.tree.flatten(batches[0])[0]))]
    answers = answers_to(model, batches)
    targets = [keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(batch)[1]) for batch in batches]
    found, owns = {}, {}
    for output, place, loss in losses:
        answer = tf.constant(answers[output])
        target = tf.concat([row[place] for row in targets], axis=0)
        shifts = [0, *(len(target) * number // (OTHERS + 1) for number in range(1, OTHERS + 1))]
        own, *others = (np.asarray(loss(tf.roll(target, by, axis=0), answer), np.float64) for by in shifts)
        if own.ndim and len(own) == len(answer):
            owns[output] = own.reshape(len(own), -1).mean(axis=1)
            found[output] = np.mean(others, axis=0).reshape(len(own), -1).mean(axis=1) - owns[output]
    return found, owns
