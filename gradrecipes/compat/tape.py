"""See what a tape differentiates and the gradients that it brings back, and leave nothing behind in TensorFlow."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def targets_reported(report: Callable[[Any, Any], None]) -> Iterator[None]:
    """Call `report(target, sources)` for whatever a `tf.GradientTape` differentiates within the `with` block."""
    original = tf.GradientTape.gradient

    @functools.wraps(original)
    def gradient(tape: tf.GradientTape, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
        report(target, sources)
        return original(tape, target, sources, *args, **kwargs)

    tf.GradientTape.gradient = gradient
    try:
        yield
    finally:
        tf.GradientTape.gradient = original
