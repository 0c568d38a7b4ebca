"""See whether a train step of the user's own compares each prediction with the target of the same sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.trace.probes import OutputReading
from gradrecipes.probes.loss import SAME
from gradrecipes.training.trial.trial import Trial

LEAST_SPREAD = 0.01  # of the predictions, over that of the targets; below it no order of them makes a difference


def pairs_samples(trial: Trial, outputs: Sequence[OutputReading]) -> bool | None:
    """Say whether the loss of a step changes when the targets of a batch change places.

    In arithmetic of one's own, predictions `[n, 1]` minus targets `[n]` are `[n, n]`: all is compared with all, and it
    no longer matters what belongs to what. Targets of another shape, labels, and steps that use none are no question.

    Args:
        trial: One that was entered; it is left at its start.
        outputs: What the loss probe read of the model's outputs.

    Returns:
        False where the order does not matter and the values do; None where that is no question.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(trial.batches[0])
    arrays = [] if y is None else keras.tree.flatten(y)
    if len(arrays) != 1 or len(outputs) != 1 or outputs[0].shape != (1,) or len(arrays[0].shape) != 1:
        return None
    target = np.asarray(arrays[0])
    spread = outputs[0].std or 0.0
    if target.dtype.kind != "f" or not np.isfinite(target).all() or not spread > LEAST_SPREAD * target.std() > 0:
        return None

    def loss(values: np.ndarray) -> float:
        changed = keras.tree.pack_sequence_as(y, [tf.convert_to_tensor(values.astype(target.dtype))])
        told = trial.varied(1, batches=[keras.utils.pack_x_y_sample_weight(x, changed, sample_weight)]).loss
        return float(told[0]) if len(told) else math.nan

    as_it_is, in_other_order, other = loss(target), loss(np.roll(target, 1)), loss(target + target.std())
    trial.restart()
    if not all(map(math.isfinite, (as_it_is, in_other_order, other))):
        return None
    matter = abs(other - as_it_is) > 10 * SAME * abs(as_it_is)
    return abs(in_other_order - as_it_is) > SAME * abs(as_it_is) if matter else None
