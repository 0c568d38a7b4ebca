"""The ways to bound a gradient: by a fixed norm or value, by its own past, or by the weights it changes.

Each is one small object that holds its arguments (`by_global_norm(1.0)` and so on), which callbacks and models
take and which serializes with them. Where no memory is needed there is a function of tensors besides
(`clip_by_global_norm` and so on).

| method | bounds | by |
|---|---|---|
| `by_global_norm` | the whole gradient | a number |
| `by_norm` | each tensor | a number |
| `by_value` | each entry | a number |
| `adaptive` | each output unit | a share of the norm of its weights |
| `by_percentile` | the whole gradient | a percentile of its past norms |
| `by_z_score` | the whole gradient, where it stands out | mean and deviation of its past norms |
| `adaptive_by_tensor` | each tensor | the moving average of its own norm |
| `by_layer` | groups of layers, or optimizers | a method for each |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable
from gradrecipes.gradients.clipping.by_layer import by_layer
from gradrecipes.gradients.clipping.global_norm import by_global_norm, clip_by_global_norm
from gradrecipes.gradients.clipping.method import Clipped, Clipping, StepGradients
from gradrecipes.gradients.clipping.percentile import by_percentile, percentile_of_past
from gradrecipes.gradients.clipping.tensor_average import adaptive_by_tensor
from gradrecipes.gradients.clipping.tensor_norm import by_norm, clip_by_norm
from gradrecipes.gradients.clipping.unit_wise import adaptive, clip_adaptively, unit_axes_by_rank
from gradrecipes.gradients.clipping.value import by_value, clip_by_value
from gradrecipes.gradients.clipping.z_score import by_z_score, z_score_bound
from gradrecipes.gradients.norms import MAX_SINGLE_FACTOR_NORM, Norms, measure_norms
from gradrecipes.gradients.packing import PackedTensors, TensorLike
from gradrecipes.gradients.update import Update

METHODS = (by_global_norm, by_norm, by_value, adaptive, by_percentile, by_z_score, adaptive_by_tensor)

__all__ = [
    "MAX_SINGLE_FACTOR_NORM",
    "METHODS",
    "Clipped",
    "Clipping",
    "StepGradients",
    "adaptive",
    "adaptive_by_tensor",
    "as_clipping",
    "by_global_norm",
    "by_layer",
    "by_norm",
    "by_percentile",
    "by_value",
    "by_z_score",
    "clip_adaptively",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "percentile_of_past",
    "unit_axes_by_rank",
    "z_score_bound",
]


def as_clipping(clipping: Any, caller: str) -> Clipping | None:
    """Return a clipping method, made of a mapping where one came; refuse what is none.

    Raises:
        TypeError: With what came, the choices and the remedy.
    """
    if isinstance(clipping, Mapping):
        return by_layer(dict(clipping))
    is_method = hasattr(clipping, "clip") and hasattr(clipping, "make_state")  # numbers of numpy have a `clip` too
    if clipping is None or (is_method and not isinstance(clipping, type)):
        return clipping
    choices = ", ".join(f"gr.clipping.{method.__name__}(...)" for method in METHODS)
    raise TypeError(
        f"`clipping` of {caller} must be a clipping method or None. Received: {clipping!r}. Choose one of: {choices}; "
        "or give a mapping of layer patterns to methods."
    )


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
