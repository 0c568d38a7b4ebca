"""Where a clipping method meets the gradients of an update, and what it remembers from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable
from gradrecipes.gradients.norms import Norms, measure_norms
from gradrecipes.gradients.packing import PackedTensors, TensorLike
from gradrecipes.gradients.settings import PipelineSettings
from gradrecipes.gradients.update import Update

if TYPE_CHECKING:
    from gradrecipes.gradients.step_gradients import Clipped


class Clipper:
    """Apply the clipping method of a pipeline, with a memory for each optimizer and update of a step.

    Args:
        settings: Of the pipeline.
        new_state: Called when the memory of an update came into being.

    Attributes:
        states: The variables of the method by optimizer and update.
    """

    def __init__(self, settings: PipelineSettings, *, new_state: Callable[[], None]):
        self.states: dict[str, tuple[tf.Variable, ...]] = {}
        self._settings = settings
        self._new_state = new_state
        self._tensors: dict[str, int] = {}
        self._mean_factor = plain_variable(1.0, dtype=tf.float32, name="factor_of_mean")
        self._may_learn: tf.Tensor | bool = True

    def clipped(
        self, update: Update, packed: PackedTensors, norms: Norms, loss_scale: tf.Tensor, *, learn: tf.Tensor | bool
    ) -> Clipped:
        """Return the bounded gradients of an update.

        Args:
            update: The update.
            packed: Its gradients.
            norms: Their norms.
            loss_scale: float32 scalar, what they come multiplied by.
            learn: Whether the method may remember this step.
        """
        from gradrecipes.gradients.clipping.by_layer import by_layer
        from gradrecipes.gradients.step_gradients import Clipped, StepGradients

        clipping, weights, key = self._settings.clipping, update.weights, update.optimizer_key
        if clipping is None:
            return Clipped(packed, tf.ones(()))
        paths = [getattr(variable, "path", variable.name) for variable in update.variables or ()]
        if self._tensors.setdefault(key, len(packed)) != len(packed):
            key = f"{key}_of_{len(packed)}"  # fewer gradients than at first: what is remembered is not of these
        if key not in self.states:
            with tf.init_scope():
                if isinstance(clipping, by_layer):
                    self.states[key] = clipping.make_state_for(paths, update.optimizers)
                else:
                    self.states[key] = clipping.make_state(len(packed))
            self._new_state()
        step = StepGradients(
            packed,
            norms,
            loss_scale,
            any_norm=not self._settings.skip,
            state=self.states[key],
            learn=learn,
            weights=None if weights is None else lambda: PackedTensors(weights()),
            unit_axes=update.unit_axes,
            paths=paths,
            optimizers=update.optimizers,
        )
        return clipping.clip(step)

    def apply_accumulating(self, update: Update, learn: tf.Tensor | bool) -> tf.Tensor:
        """Apply gradients whose mean `clip` bounds once it is complete, and return the least factor."""
        self._mean_factor.assign(1.0)
        self._may_learn = learn
        update.apply(update.gradients)
        return self._mean_factor.read_value()

    def clip(self, update: Update, gradients: Sequence[TensorLike]) -> list[TensorLike]:
        """Clip the unscaled mean of the gradients that an optimizer has accumulated."""
        packed = PackedTensors(gradients, xla=self._settings.xla)
        norms = measure_norms(packed)
        clipped = self.clipped(update, packed, norms, tf.ones(()), learn=norms.finite & self._may_learn)
        self._mean_factor.assign(tf.minimum(self._mean_factor.read_value(), clipped.factor))
        return clipped.scaled().unpacked()
