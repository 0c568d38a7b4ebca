"""Variables of our own, out of reach of a distribution strategy."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable


def plain_variable(initial_value: Any, *, dtype: tf.DType | None = None, name: str | None = None) -> tf.Variable:
    """Return one variable on one device, even while a function is traced inside a strategy's scope.

    `tf.Variable` asks the strategy in scope, which would make a copy for each replica. The pipeline decides once
    for all replicas, so that its state must exist once. Making the class itself is the only way past the
    strategy; TensorFlow has no public name for it.

    Args:
        initial_value: What `tf.convert_to_tensor` takes; kept as the attribute `beginning`.
        dtype: The dtype, or None for that of the value.
        name: A name for error messages.
    """
    with tf.init_scope():
        variable = ResourceVariable(initial_value, trainable=False, dtype=dtype, name=name)
    variable.beginning = initial_value
    return variable
