"""Find optimizer variables that are already broken before the first step."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

SLOTS_NAMED = 5


def nonfinite_slots(model: keras.Model) -> tuple[str, ...]:
    """Return the paths of up to five optimizer variables that hold a NaN or infinity.

    Args:
        model: A compiled model.
    """
    optimizer = getattr(model, "optimizer", None)
    slots = [] if optimizer is None else optimizer.variables
    return tuple(slot.path for slot in slots if not _is_finite(slot))[:SLOTS_NAMED]


def _is_finite(variable: Any) -> bool:
    value = tf.convert_to_tensor(variable)
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))
