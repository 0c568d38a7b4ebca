"""What a forward pass changes, and the way back from it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.training import keras_private, replicas


class ForwardState:
    """Remember moving statistics, seeds and metrics before a step, and put them back if it is skipped.

    Args:
        model: The model, before its step.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        variables = [*model.non_trainable_variables, *model.metrics_variables]
        self._variables = list({id(v): v for v in variables}.values())
        self._before = [tf.convert_to_tensor(v) for v in self._variables]

    def kept_where(self, applied: tf.Tensor, logs: dict[str, Any]) -> dict[str, Any]:
        """Put the state back unless the step was applied; return the logs that go with the state."""
        names = [name for name in logs if name in self._model.get_metrics_result()]
        if replicas.spread():  # replicas may not meet inside a condition
            for variable, before in zip(self._variables, self._before, strict=True):
                variable.assign(tf.where(applied, tf.convert_to_tensor(variable), before))
            return {**logs, **{name: self._result()[name] for name in names}}

        def put_back() -> list[tf.Tensor]:
            for variable, before in zip(self._variables, self._before, strict=True):
                variable.assign(before)
            result = self._result()
            return [tf.cast(result[name], tf.convert_to_tensor(logs[name]).dtype) for name in names]

        kept = tf.cond(applied, lambda: [tf.convert_to_tensor(logs[name]) for name in names], put_back)
        return {**logs, **dict(zip(names, kept, strict=True))}

    def _result(self) -> dict[str, Any]:
        result = self._model.get_metrics_result()
        count = keras_private.loss_count(self._model)
        if count is not None and "loss" in result:
            # The mean of no loss at all is 0 to Keras: the best loss there is, to whatever saves or stops by it.
            nothing = tf.equal(tf.convert_to_tensor(count), 0)
            result = {**result, "loss": tf.where(nothing, np.inf, tf.convert_to_tensor(result["loss"]))}
        return result
