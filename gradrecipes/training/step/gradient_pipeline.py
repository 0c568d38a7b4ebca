"""The pipeline for a training loop written by hand: GANs, reinforcement learning, anything without `fit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.arguments import require_flag
from gradrecipes.gradients.clipping import Clipping, require_clipping
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.settings import PipelineSettings
from gradrecipes.gradients.update import StepResult
from gradrecipes.training.step import replicas
from gradrecipes.training.step.optimizer_hook import OptimizerHook, gradients_intercepted


class GradientPipeline:
    """Measure, decide, clip and apply gradients in a training loop of your own.

    Args:
        optimizer: The Keras optimizer that updates the weights.
        clipping: A method of `gradrecipes.clipping`, or None.
        skip_nonfinite: Whether a step with a non-finite loss or gradient changes nothing at all.
        xla: Whether the loop's function is compiled with `jit_compile=True`.

    Example:
        >>> layer = keras.layers.Dense(1)
        >>> _ = layer.build((None, 3))
        >>> pipeline = GradientPipeline(keras.optimizers.SGD(0.1), skip_nonfinite=True)
        >>> @tf.function
        ... def step(x, y):
        ...     with tf.GradientTape() as tape:
        ...         loss = tf.reduce_mean(tf.square(layer(x) - y))
        ...     gradients = tape.gradient(loss, layer.trainable_variables)
        ...     outcome = pipeline.apply(gradients, layer.trainable_variables, loss=loss)
        ...     return outcome.gradient_norm
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        *,
        clipping: Clipping | None = None,
        skip_nonfinite: bool = True,
        xla: bool = False,
    ):
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TypeError(
                f"`optimizer` must be a Keras optimizer. Received: {optimizer!r}. "
                "Make one with keras.optimizers.Adam(...), or get a string's with keras.optimizers.get(...)."
            )
        require_clipping(clipping, "GradientPipeline")
        require_flag("skip_nonfinite", skip_nonfinite, remedy="True leaves such a step out whole.")
        require_flag("xla", xla, remedy="True belongs to a function with jit_compile=True.")
        self.optimizer = optimizer
        self._pipeline = Pipeline(PipelineSettings(clipping=clipping, skip=skip_nonfinite, xla=xla))

    @tf.autograph.experimental.do_not_convert  # no Python in it branches on a tensor
    def apply(self, gradients: Sequence[Any], variables: Sequence[Any], *, loss: tf.Tensor | None = None) -> StepResult:
        """Apply gradients through the pipeline.

        Args:
            gradients: As `tape.gradient` returns them; None for a variable that has none.
            variables: The variables, in the same order.
            loss: float scalar, the loss of the batch; where it is given, a non-finite loss is skipped too.

        Returns:
            `StepResult`: `outcome` (int64, 0 when applied), `gradient_norm`, `clip_factor` (float32 scalars).

        Raises:
            TypeError: A gradient is no tensor.
            ValueError: Gradients, variables and loss do not fit one another.
        """
        gradients, variables = list(gradients), list(variables)
        _require_fit(gradients, variables, loss)
        replicas.require_supported(tf.distribute.get_strategy(), "GradientPipeline")
        results: list[StepResult] = []
        hook = OptimizerHook(self.optimizer, self._pipeline)

        def run(summed, total, apply_everywhere):
            result = hook.send(summed, used, apply_everywhere, loss=total)
            results.append(self._pipeline.record([result]))

        def receive(known, kept, apply_gradients):
            used[:] = kept
            replicas.sum_once(run, known, kept, loss, apply_gradients)

        used: list[Any] = []
        with gradients_intercepted(self.optimizer, receive):
            self.optimizer.apply(gradients, variables)
        return results[0]

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped so far."""
        return int(self._pipeline.skipped_steps.numpy())


def _require_fit(gradients: list[Any], variables: list[Any], loss: Any) -> None:
    if len(gradients) != len(variables) or all(gradient is None for gradient in gradients):
        known = sum(gradient is not None for gradient in gradients)
        raise ValueError(
            "GradientPipeline.apply takes one gradient for each variable, at least one of them not None. "
            f"Received: {len(gradients)} gradients, {known} of them known, and {len(variables)} variables. "
            "Pass what tape.gradient(loss, variables) returned, and the same variables."
        )
    for gradient, variable in zip(gradients, variables, strict=True):
        if gradient is None:
            continue
        if not (tf.is_tensor(gradient) or isinstance(gradient, tf.IndexedSlices)):
            raise TypeError(
                f"A gradient must be a tensor or None. Received: {gradient!r:.80} for {variable.name!r}. "
                "Pass what tape.gradient(loss, variables) returned."
            )
        if not tf.TensorShape(gradient.shape).is_compatible_with(variable.shape):
            raise ValueError(
                f"A gradient must have the shape of its variable. Received: {tuple(gradient.shape)} for "
                f"{variable.name!r} of shape {tuple(variable.shape)}. Keep gradients and variables in one order."
            )
    shape = loss.shape if tf.is_tensor(loss) else np.shape(loss)  # None has the shape of a number too
    if tf.TensorShape(shape).rank not in (0, None):
        raise ValueError(
            f"`loss` must be one number, the loss of the batch. Received: {loss!r}. Reduce it: tf.reduce_mean(loss)."
        )
