"""The penalty on the gradient with respect to the parameters: prefer flat minima."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.regularizers.penalty import Serializable, at_least_float32, require_number


def penalized_gradients(
    variables: Sequence[Any],
    compute_gradients: Callable[[], Sequence[Any]],
    *,
    radius: float,
    share: float,
) -> list[tf.Tensor | None]:
    r"""Return (1 − α)·∇L(θ) + α·∇L(θ + r·∇L/‖∇L‖), the gradient of L + α·r·‖∇L‖ to first order in r.

    Args:
        variables: θ, Keras or TensorFlow variables; moved for a moment, and back to the bit on return.
        compute_gradients: Returns ∇L at the weights as they are, in any unit; called twice.
        radius: r, how far the second look goes.
        share: α, weight of the second look.

    Returns:
        One gradient for each variable, in the unit of `compute_gradients`; None where that gave none. If the first
        is not finite, so is the result.

    Example:
        >>> weight = tf.Variable([3.0, 4.0])  # L = sum of squares / 2, so the gradient is the weight itself
        >>> penalized_gradients([weight], lambda: [tf.identity(weight)], radius=1.0, share=0.5)[0].numpy()
        array([3.3, 4.4], dtype=float32)
    """
    first = [None if part is None else tf.convert_to_tensor(part) for part in compute_gradients()]
    moved = [(variable, part) for variable, part in zip(variables, first, strict=True) if part is not None]
    if not moved:
        return first
    places = [tf.identity(variable) for variable, _ in moved]
    largest, inverse_norm = _inverse_norm([part for _, part in moved])
    for (variable, part), place in zip(moved, places, strict=True):
        step = radius * (at_least_float32(part) / largest) * inverse_norm
        variable.assign(place + tf.cast(step, place.dtype))
    second = compute_gradients()
    for (variable, _), place in zip(moved, places, strict=True):
        variable.assign(place)
    return [
        None if there is None else (1.0 - share) * there + share * _same_kind(there, beyond)
        for there, beyond in zip(first, second, strict=True)
    ]


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class ParameterGradientPenalty(Serializable):
    r"""Seek flat minima by a second look at the gradient: (1 − α)·∇L(θ) + α·∇L(θ + r·∇L/‖∇L‖).

    It aims at generalization. It does *not* bound gradients: against explosions use clipping. Every step costs two.
    α = 0 would be plain training, α = 1 is sharpness-aware minimization.

    Args:
        radius: r, positive: how far the second look goes, in the units of the weights.
        share: α, above 0 and at most 1. The strength of the penalty is λ = α·r.

    Example:
        >>> ParameterGradientPenalty(share=0.8).radius
        0.05

    References:
        Zhao, Zhang, Hu 2022, arXiv 2202.03599, algorithm 1.
    """

    radius: float = 0.05
    share: float = 0.5

    def __post_init__(self):
        require_number("radius", self.radius)
        require_number("share", self.share, most=1.0)

    def gradients(
        self, variables: Sequence[Any], compute_gradients: Callable[[], Sequence[Any]]
    ) -> list[tf.Tensor | None]:
        """Return the gradients to apply; see `GradientCombination.gradients`."""
        return penalized_gradients(variables, compute_gradients, radius=self.radius, share=self.share)


def _inverse_norm(parts: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return m = max|g| and m/‖g‖, for plain squares leave float32 above 1.8e19 and below 1e-19."""
    parts = [at_least_float32(part) for part in parts]
    largest = tf.reduce_max(tf.stack([tf.reduce_max(tf.abs(part)) for part in parts]))
    largest = tf.where(largest == 0, tf.ones_like(largest), largest)  # not `> 0`: a NaN has to stay one
    squares = tf.add_n([tf.reduce_sum(tf.square(part / largest)) for part in parts])
    return largest, tf.math.rsqrt(tf.where(squares == 0, tf.ones_like(squares), squares))


def _same_kind(first: tf.Tensor, second: Any) -> tf.Tensor:
    return tf.zeros_like(first) if second is None else tf.cast(tf.convert_to_tensor(second), first.dtype)
