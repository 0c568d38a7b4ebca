"""The private names of Keras by which the schedule of an optimizer is read; a test fails when one moves."""

from __future__ import annotations

from typing import Any

import keras


def schedule_of(optimizer: keras.optimizers.Optimizer) -> tuple[Any, int] | None:
    """Return an optimizer's schedule and the batch at which it is read next; None where the rate is a number."""
    rate = getattr(optimizer, "_learning_rate", None)
    if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return None
    return rate, int(optimizer._iterations)  # `iterations` counts updates, which may take several batches
