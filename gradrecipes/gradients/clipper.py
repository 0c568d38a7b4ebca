"""Where a clipping method meets the gradients of an update, and what it remembers from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable
from gradrecipes.gradients.clipping.method import Clipped, Clipping, StepGradients
from gradrecipes.gradients.norms import Norms, measure_norms
from gradrecipes.gradients.packing import PackedTensors, TensorLike
from gradrecipes.gradients.update import Update


class Clipper:
    """Apply the clipping method of a pipeline, with a memory for each optimizer and update of a step.

    Args:
        clipping: The method.
        any_norm: False where norms above `MAX_SINGLE_FACTOR_NORM` are skipped before they are clipped.
        xla: Whether the step is compiled by XLA.
        new_state: Called when the memory of an update came into being.

    Attributes:
        states: The variables of the method by optimizer and update.
    """

    def __init__(self, clipping: Clipping, *, any_norm: bool, xla: bool, new_state: Callable[[], None]):
        self.states: dict[str, tuple[tf.Variable, ...]] = {}
        self._clipping = clipping
        self._any_norm = any_norm
        self._xla = xla
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
        clipping, weights, key = self._clipping, update.weights, update.optimizer_key
        paths = [getattr(variable, "path", variable.name) for variable in update.variables or ()]
        if self._tensors.setdefault(key, len(packed)) != len(packed):
            key = f"{key}_of_{len(packed)}"  # fewer gradients than at first: what is remembered is not of these
        if key not in self.states:
            with tf.init_scope():
                if hasattr(clipping, "make_state_for"):  # a method for each group of layers
                    self.states[key] = clipping.make_state_for(paths, update.optimizers)
                else:
                    self.states[key] = clipping.make_state(len(packed))
            self._new_state()
        step = StepGradients(
            packed,
            norms,
            loss_scale,
            any_norm=self._any_norm,
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
        packed = PackedTensors(gradients, xla=self._xla)
        norms = measure_norms(packed)
        clipped = self.clipped(update, packed, norms, tf.ones(()), learn=norms.finite & self._may_learn)
        self._mean_factor.assign(tf.minimum(self._mean_factor.read_value(), clipped.factor))
        return clipped.scaled().unpacked()
