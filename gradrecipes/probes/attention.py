"""Read how sharply each attention of a net chooses: the size of its logits, and how much the largest weight takes."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.core.trace.probes import AttentionReading
from gradrecipes.training.description.model_graph import is_custom
from gradrecipes.training.recovery.model_state import preserve_state

logger = logging.getLogger(__name__)

PRODUCTS = {"BatchMatMulV2", "BatchMatMul", "BatchMatMulV3", "Einsum"}
# What may stand between the product of queries and keys and the softmax: a scale, a mask, a bias, another layout.
BETWEEN = {
    *("AddV2", "Add", "Sub", "Mul", "RealDiv", "Div", "SelectV2", "Select", "Where", "Reshape", "Transpose", "Cast"),
    *("Identity", "Tanh", "Maximum", "Minimum", "ExpandDims", "Squeeze"),
}
MAX_VISITED = 48  # operations that are looked at from a softmax back to the product
MASKED = -5e3  # a logit below it is masked: masks add -1e4, -1e9 or -inf
NUMBERS = 4  # of a reading


class AttentionProbe:
    """Read the attention of a model, again and again, while its weights change.

    The call is traced as a graph, once for batches of one shape, so that attention inside layers of the user's own is
    seen as well.

    Args:
        model: A compiled, built model. It is left as it was.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._names: list[str] = []
        self._may_attend = _may_attend(model)

        @tf.function(autograph=False, jit_compile=False)
        def measured(x: Any) -> tf.Tensor:
            model(x, training=False)
            self._names, rows = [], []
            for operation in tf.compat.v1.get_default_graph().get_operations():
                if operation.type == "Softmax" and _is_attention(operation):
                    self._names.append(operation.name)
                    rows.append(_measured(operation.inputs[0], operation.outputs[0]))
            return tf.stack(rows) if rows else tf.zeros([0, NUMBERS])

        self._measured = measured

    def read(self, x: Any) -> tuple[AttentionReading, ...]:
        """Return a reading of each softmax over products of queries and keys, in the order of the calls.

        Args:
            x: The inputs of one batch.

        Returns:
            The readings with the present weights; none where the model has no attention, or cannot be traced.
        """
        if not self._may_attend:
            return ()
        try:
            with preserve_state(self._model):
                found = np.asarray(self._measured(x))
        except Exception:  # a subclassed model may do in its train step what its call alone cannot
            logger.debug("The attention of %r could not be read.", self._model.name, exc_info=True)
            return ()
        named = zip(self._names, found.astype(float).tolist(), strict=True)
        return tuple(
            AttentionReading(_scope(name), int(keys), largest, spread, top)
            for name, (keys, largest, spread, top) in named
        )


def _may_attend(model: keras.Model) -> bool:
    """Return whether a model may hold attention; others are spared a trace."""
    layers = [model, *sublayers(model)]
    kinds = {type(one).__name__ for layer in layers for one in (layer, *getattr(layer, "operations", ()))}
    return any(map(is_custom, layers)) or "Softmax" in kinds or any("Attention" in kind for kind in kinds)


def _is_attention(softmax: tf.Operation) -> bool:
    """Return whether the logits of a softmax are made by a product of two computed tensors."""
    if softmax.inputs[0].shape.rank is None or softmax.inputs[0].shape.rank < 3:
        return False
    waiting, seen = [softmax.inputs[0].op], set()
    for _ in range(MAX_VISITED):
        if not waiting:
            return False
        operation = waiting.pop()
        if operation.name in seen:
            continue
        seen.add(operation.name)
        if operation.type in PRODUCTS:
            return not any(_is_weight(one) for one in operation.inputs)
        if operation.type in BETWEEN:
            waiting.extend(one.op for one in operation.inputs)
    return False


def _is_weight(tensor: tf.Tensor) -> bool:
    operation = tensor.op
    while operation.type in ("Identity", "Cast", "Reshape", "Transpose") and operation.inputs:
        operation = operation.inputs[0].op
    return operation.type in ("ReadVariableOp", "Const", "Placeholder")


def _measured(logits: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    """Return keys, largest |logit|, highest minus lowest of a row, share of its largest weight, means over rows."""
    logits, chosen = tf.cast(logits, tf.float32), tf.cast(chosen, tf.float32)
    keys = tf.shape(logits)[-1]
    logits, chosen = tf.reshape(logits, [-1, keys]), tf.reshape(chosen, [-1, keys])
    open_ = logits > MASKED
    several = tf.reduce_sum(tf.cast(open_, tf.int32), axis=1) > 1
    highest = tf.reduce_max(tf.where(open_, logits, -np.inf), axis=1)
    lowest = tf.reduce_min(tf.where(open_, logits, np.inf), axis=1)
    rows = tf.cast(several, tf.float32)
    count = tf.maximum(tf.reduce_sum(rows), 1.0)
    spread = tf.reduce_sum(tf.where(several, highest - lowest, 0.0)) / count
    top = tf.reduce_sum(tf.where(several, tf.reduce_max(chosen, axis=1), 0.0)) / count
    largest = tf.reduce_max(tf.where(open_, tf.abs(logits), 0.0))
    return tf.stack([tf.cast(keys, tf.float32), largest, spread, top])


def _scope(name: str) -> str:
    """Return the name of an operation without its last part, which is the softmax itself."""
    return name.rsplit("/", 1)[0] if "/" in name else name
