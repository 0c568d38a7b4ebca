"""The mean and the largest gradient norm of an epoch, kept on the device for the logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable

if TYPE_CHECKING:
    from gradrecipes.gradients.update import StepResult

_NOTHING = np.zeros(3)


class EpochNorms:
    """Keep the mean and the maximum of the gradient norm over the updates since the epoch began.

    Steps that were skipped, and batches whose gradients were only accumulated, do not count, as they do not in the
    mean of the loss.
    """

    def __init__(self):
        self._state = plain_variable(_NOTHING, dtype=tf.float64, name="epoch_norms")  # sum, maximum, count

    def add(self, result: StepResult) -> dict[str, tf.Tensor]:
        """Count a step.

        Args:
            result: What happened in the step.

        Returns:
            float32 scalars by the name that the logs have for them; NaN before the first update.
        """
        before, norm = self._state.read_value(), tf.cast(result.gradient_norm, tf.float64)
        total = before[0] + norm
        largest = tf.where(tf.math.is_nan(total), total, tf.maximum(before[1], norm))  # XLA's maximum may pass NaN over
        state = tf.stack([total, largest, before[2] + 1.0])
        if result.is_update is not None:
            state = tf.where(result.is_update, state, before)
        self._state.assign(state)
        mean, largest = tf.unstack(tf.cast(state[:2] / tf.stack([state[2], tf.minimum(state[2], 1.0)]), tf.float32))
        return {"gradient_norm": mean, "gradient_norm_max": largest}

    def reset(self) -> None:
        """Begin a new epoch."""
        self._state.assign(_NOTHING)
