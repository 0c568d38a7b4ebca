"""See the gradient that arrives at a tensor, without a gradient function that TensorFlow would keep for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record


def with_arriving_gradient(tensor: tf.Tensor, receive: Callable[[Any], None]) -> tf.Tensor:
    """Return the tensor, and call `receive` with each gradient that a `tf.GradientTape` brings back to it.

    `tf.custom_gradient` would do the same in public; in a graph it registers its function in a table of the process,
    with all that the function refers to, and nothing takes it out again.
    """
    with record.stop_recording():
        passed = tf.identity(tensor)

    def backward(gradient: Any) -> list[Any]:
        receive(gradient)
        return [gradient]

    record.record_operation("Identity", [passed], [tensor], backward)
    for name, value in vars(tensor).items():
        if name.startswith("_keras"):  # masks, and the logits behind a softmax: Keras' losses look for them
            setattr(passed, name, value)
    return passed
