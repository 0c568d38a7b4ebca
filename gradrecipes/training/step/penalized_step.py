"""Gradient penalties inside a train step: a term of the loss, or a second look at the gradient."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat.keras_private import replaced
from gradrecipes.regularizers import GradientCombination, Penalty
from gradrecipes.training.step import replicas
from gradrecipes.training.step.optimizer_hook import gradients_intercepted


def require_penalty(penalty: Any, caller: str) -> None:
    """Refuse what is no penalty.

    Raises:
        TypeError: With what came and the choices.
    """
    if penalty is None or (isinstance(penalty, Penalty | GradientCombination) and not isinstance(penalty, type)):
        return
    raise TypeError(
        f"`penalty` of {caller} must be a gradient penalty or None. Received: {penalty!r}. Choose one of: "
        "gr.regularizers.InputGradientPenalty(...), gr.regularizers.R1Penalty(...), "
        "gr.regularizers.WassersteinPenalty(...), gr.regularizers.ParameterGradientPenalty(...). "
        "L1 and L2 are `kernel_regularizer=` of the layers, weight decay is an argument of the optimizer."
    )


@contextlib.contextmanager
def penalized(model: keras.Model, data: Any, penalty: Penalty | GradientCombination | None) -> Iterator[None]:
    """Let the train step that runs within the `with` block train with a penalty.

    Args:
        model: The model.
        data: The batch of the step.
        penalty: What to add to the loss, or how to combine gradients; None for a plain step.

    Raises:
        ValueError: The model's strategy has replicas that take turns.
    """
    if penalty is None:
        yield
        return
    if replicas.spread() and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise ValueError(
            "A gradient penalty needs a step of one replica. Received: a model under a strategy of several replicas. "
            "Leave `penalty` out, or build the model outside strategy.scope()."
        )
    with contextlib.ExitStack() as stack:
        if isinstance(penalty, Penalty):
            stack.enter_context(replaced(model, "compute_loss", _with_term(model, penalty)))
        else:
            stack.enter_context(
                gradients_intercepted(model.optimizer, functools.partial(_combine, model, data, penalty))
            )
        yield


def _with_term(model: keras.Model, penalty: Penalty) -> Callable[..., Any]:
    compute_loss = model.compute_loss

    @functools.wraps(compute_loss)
    def compute_and_penalize(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        def loss_elsewhere(inputs: Any) -> tf.Tensor:
            return _loss(model, compute_loss, inputs, y, sample_weight)

        loss = compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        if not tf.is_tensor(loss):
            return loss  # while shapes are inferred
        return loss + tf.cast(penalty.penalty(model, x, y, loss_elsewhere), loss.dtype)

    return compute_and_penalize


def _combine(model, data, penalty, gradients, variables, apply_gradients) -> None:
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    first = [gradients]

    def compute_gradients() -> list[Any]:
        if first:
            return first.pop()
        with tf.GradientTape() as tape:
            loss = model.optimizer.scale_loss(_loss(model, model.compute_loss, x, y, sample_weight))
        return tape.gradient(loss, [variable.value for variable in variables])

    apply_gradients(penalty.gradients(variables, compute_gradients))


def _loss(model: keras.Model, compute_loss: Callable[..., Any], x: Any, y: Any, sample_weight: Any) -> tf.Tensor:
    return compute_loss(x=x, y=y, y_pred=model(x, training=True), sample_weight=sample_weight, training=True)
