"""What Keras' and TensorFlow's binary cross-entropies are called with, wherever a program calls them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from keras.src.backend import nn as backend_nn

from gradrecipes.compat.keras_private import replaced


@contextlib.contextmanager
def binary_cross_entropies_reported(report: Callable[[Any, bool, bool], None]) -> Iterator[None]:
    """Call `report(answers, from_logits, are_probabilities)` for each binary cross-entropy within the `with` block.

    The last one says whether answers taken for logits come from a sigmoid: Keras' own loss notes that, and takes the
    logits from before it; TensorFlow's function does not.
    """
    of_keras, of_tensorflow = backend_nn.binary_crossentropy, tf.nn.sigmoid_cross_entropy_with_logits

    @functools.wraps(of_keras)
    def entropy(target: Any, output: Any, from_logits: bool = False) -> Any:
        if not from_logits:
            report(output, False, False)
        return of_keras(target, output, from_logits)

    @functools.wraps(of_tensorflow)
    def entropy_of_logits(labels: Any = None, logits: Any = None, name: str | None = None) -> Any:
        report(logits, True, hasattr(logits, "_keras_logits"))
        return of_tensorflow(labels, logits, name)

    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(backend_nn, "binary_crossentropy", entropy))
        stack.enter_context(replaced(tf.nn, "sigmoid_cross_entropy_with_logits", entropy_of_logits))
        yield
