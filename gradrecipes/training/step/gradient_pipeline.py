"""The pipeline for a training loop written by hand: GANs, reinforcement learning, anything without `fit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable
from gradrecipes.core.arguments import require_flag
from gradrecipes.core.trace import APPLIED
from gradrecipes.gradients.clipping import Clipping, as_clipping
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.update import PipelineSettings, StepResult
from gradrecipes.training.step import replicas
from gradrecipes.training.step.instrumented_step import InstrumentedStep, running_step
from gradrecipes.training.step.optimizer_hook import OptimizerHook, gradients_intercepted


class GradientPipeline:
    """Measure, decide, clip and apply gradients in a training loop of your own.

    In the `train_step` of a model that is fitted with a `GradientMonitor` or `GradientGuard`, the callback measures and
    decides first; what it lets through goes the way of this pipeline. Keep the pipeline or its optimizer as an
    attribute of the model, so that the callback finds it.

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
        clipping = as_clipping(clipping, "GradientPipeline")
        require_flag("skip_nonfinite", skip_nonfinite, remedy="True leaves such a step out whole.")
        require_flag("xla", xla, remedy="True belongs to a function with jit_compile=True.")
        self.optimizer = optimizer
        self._pipeline = Pipeline(PipelineSettings(clipping=clipping, skip=skip_nonfinite, xla=xla))
        self._last: tf.Variable | None = None  # outcome and factor of a step within a callback's condition

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
        step = running_step()
        if step is None or not step.instruments(self.optimizer):
            return self._apply(gradients, variables, loss)
        if tf.distribute.has_strategy():
            raise ValueError(
                "A GradientPipeline in the train_step of a model that is fitted with GradientMonitor or GradientGuard "
                f"needs a model of one device. Received: {tf.distribute.get_strategy()!r:.80}. Leave the callback out, "
                "or apply the gradients through the optimizer itself."
            )
        return self._apply_within(step, gradients, variables, loss)

    def _apply_within(
        self, step: InstrumentedStep, gradients: list[Any], variables: list[Any], loss: Any
    ) -> StepResult:
        """Apply what the callbacks of the running fit let through."""
        if self._last is None:
            self._last = plain_variable(np.array([APPLIED, 1.0]), dtype=tf.float32, name="last_step")
        self._last.assign([APPLIED, 1.0])
        own: list[StepResult] = []
        known = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        of_gradients = [variable for _, variable in known]

        def apply_gradients(let_through: Sequence[Any]) -> None:
            result = self._apply(list(let_through), of_gradients, loss)
            own.append(result)
            self._last.assign(tf.stack([tf.cast(result.outcome, tf.float32), result.clip_factor]))

        def judged(before: StepResult) -> StepResult:
            own_outcome, factor = tf.unstack(self._last.read_value())
            let_through = tf.equal(before.outcome, APPLIED)
            outcome = tf.where(let_through, tf.cast(own_outcome, tf.int64), before.outcome)
            applied = tf.equal(outcome, APPLIED)
            if self._pipeline.settings.skip:  # what it left out itself, it has counted
                held_back = ~let_through & tf.equal(own_outcome, APPLIED)
                self._pipeline.skipped_steps.assign_add(tf.cast(held_back, tf.int64))
            return replace(
                before,
                outcome=outcome,
                clip_factor=before.clip_factor * factor,
                is_update=applied if before.is_update is None else applied & before.is_update,
            )

        result = step.receive(
            self.optimizer, [gradient for gradient, _ in known], of_gradients, apply_gradients, loss, judged=judged
        )
        return own[0] if result is None else result

    def _apply(self, gradients: list[Any], variables: list[Any], loss: Any) -> StepResult:
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
