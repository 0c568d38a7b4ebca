"""What a record keeps of an error that kept a model from being built or trained."""

from __future__ import annotations

from typing import Any

import keras

from gradrecipes.core.trace.probes import FailureReading
from gradrecipes.training.trial.error_words import essence


def failure(stage: str, error: Exception, *, batch: Any = None) -> FailureReading:
    """Return what is kept of an error: where it was raised, its class, and what it says.

    Args:
        stage: `"build"` or `"step"`.
        error: What was raised.
        batch: What the model was given, if that may have been the reason.
    """
    message = essence(error)
    if stage == "step" and batch is not None and _lacks_targets(batch):
        message = f"The data bring no targets (y is None), and the step could not do without: {message}"
    return FailureReading(stage, type(error).__name__, message)


def _lacks_targets(batch: Any) -> bool:
    return keras.utils.unpack_x_y_sample_weight(batch)[1] is None
