"""Tell a run that is lost from one that is not, and end it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.callbacks.gradient_guard import GradientGuard

NONFINITE = re.compile(r"\b(nan|inf|infinite|non-?finite|not finite)\b", re.IGNORECASE)


class EndOfLostRuns(keras.callbacks.Callback):
    """End a training at the first epoch that leaves a weight which is not finite: it cannot come back.

    Attributes:
        ended: Whether it did.
    """

    def __init__(self):
        super().__init__()
        self.ended = False

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Look at the weights if a number of the epoch is not finite."""
        numbers = [value for value in (logs or {}).values() if np.ndim(value) == 0]
        if not all(math.isfinite(float(value)) for value in numbers) and not finite_weights(self.model):
            self.ended = self.model.stop_training = True


def finite_weights(model: keras.Model) -> bool:
    """Say whether every weight and moving statistic of a model is finite."""
    weights = (np.asarray(weight, np.float32) for weight in model.get_weights() if weight.dtype.kind in "fV")
    return all(np.isfinite(weight).all() for weight in weights)


def why_diverged(
    model: keras.Model,
    history: Mapping[str, Sequence[float]],
    callbacks: Iterable[Any],
    objective: float,
) -> str | None:
    """Return why a run counts as diverged, or None.

    Args:
        model: The model after the run.
        history: What `fit` returned.
        callbacks: Those of the run.
        objective: The value that the study compares.
    """
    for callback in callbacks:
        if isinstance(callback, GradientGuard) and callback.stop_reason is not None:
            return f"the guard stopped it: {callback.stop_reason}"
    losses = history.get("loss", [])
    if losses and not math.isfinite(losses[-1]):
        return f"the loss is {losses[-1]} in epoch {len(losses)}"
    if not finite_weights(model):
        return "a weight is not finite"
    if not math.isfinite(objective):
        return f"the objective is {objective}"
    return None


def raised_by_numbers(error: BaseException) -> bool:
    """Say whether an error is one by which something in the training reports NaN or Inf."""
    kinds = (FloatingPointError, tf.errors.InvalidArgumentError, RuntimeError)
    return isinstance(error, kinds) and NONFINITE.search(str(error)) is not None
