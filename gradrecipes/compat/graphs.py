"""A train step within the graph of the whole step: what an inner graph computes cannot be read outside of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework import func_graph


def inlined(train_step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a train step that a `tf.function` decorates without its decorator, others as they are.

    Raises:
        ValueError: The decorator compiles the step by XLA, which would be lost.
    """
    python_function = getattr(train_step, "python_function", None)
    if python_function is None:
        return train_step
    if getattr(train_step, "_jit_compile", None):
        raise ValueError(
            "A train_step is monitored and guarded within the graph that Keras makes of the step. Received: a "
            "train_step decorated with @tf.function(jit_compile=True), which is a graph of its own. Take the decorator "
            "away and compile the model with jit_compile=True instead."
        )
    if getattr(train_step, "_autograph", True):
        try:
            return tf.autograph.to_graph(python_function)
        except Exception:  # no source to convert, as in an interactive session; most steps need no conversion
            return python_function
    return python_function


def dismantle(graphs: Iterable[Callable[[], Any]]) -> None:
    """Free graphs of functions that are no longer called; the garbage collector does not free those of a train step.

    Args:
        graphs: Weak references to them.
    """
    for reference in graphs:
        if (graph := reference()) is not None:
            func_graph.dismantle_func_graph(graph)


def current_graph() -> Any:
    """Return the graph that is being built, or "eager" where none is."""
    return "eager" if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def require_same_graph(graph: Any, optimizer: keras.optimizers.Optimizer) -> None:
    """Refuse an update that stands in a branch, a loop or a function of its own.

    Args:
        graph: What `current_graph` returned at the beginning of the step.
        optimizer: What is about to apply gradients.

    Raises:
        ValueError: With the ways out.
    """
    if current_graph() is graph:
        return
    raise ValueError(
        "Gradients must be applied in the train_step itself, once or several times in each step, to be monitored and "
        f"guarded. Received: {type(optimizer).__name__}.apply within a tf.cond, a tf.while_loop or a tf.function that "
        "the train_step calls, whose results cannot be read outside of it. To accumulate gradients, give the optimizer "
        "gradient_accumulation_steps=... and apply in every step; take a @tf.function off what the train_step calls; "
        "or use gr.GradientPipeline(optimizer).apply(gradients, variables, loss=loss) in a loop of your own."
    )


def updates_without_merging() -> bool:
    """Return whether an optimizer may update inside a condition: replicas of one process have to meet there else."""
    return tf.__internal__.distribute.strategy_supports_no_merge_call()
