"""How large the weights are, and how far one step moves them; measured only when a sample is due."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradrecipes.gradients.norms import measure_norms
from gradrecipes.gradients.packing import PackedTensors


class WeightsMeter:
    """Measure the norm of each weight tensor before a step, and of its change in that step.

    Holds one copy of the weights, made when the first sample is due.

    Args:
        variables: The trainable variables.
    """

    def __init__(self, variables: Sequence[Any]):
        self._weights = [getattr(variable, "value", variable) for variable in variables]
        self._copies = [tf.Variable(weight, trainable=False) for weight in self._weights]
        self._norms: tf.Tensor | None = None

    def before_step(self) -> None:
        """Remember the weights."""
        self._norms = self._remember()

    def after_step(self) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 `[n]` twice: the norms before the step, and the norms of the step's update."""
        return self._norms.numpy(), self._compare().numpy()

    @tf.function(autograph=False)
    def _remember(self) -> tf.Tensor:
        for copy, weight in zip(self._copies, self._weights, strict=True):
            copy.assign(weight)
        return measure_norms(PackedTensors([tf.convert_to_tensor(weight) for weight in self._weights])).of_each

    @tf.function(autograph=False)
    def _compare(self) -> tf.Tensor:
        changes = [weight - copy for weight, copy in zip(self._weights, self._copies, strict=True)]
        return measure_norms(PackedTensors(changes)).of_each
