"""Multiply gradients so that their norm is within a bound, however large the norm is."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import rare_cond
from gradrecipes.gradients.norms import MAX_SINGLE_FACTOR_NORM, Norms
from gradrecipes.gradients.step_gradients import Clipped, StepGradients

LARGEST_BOUND = float(np.finfo(np.float32).max)  # stands for "no bound": the largest norm float32 can name
SMALLEST_BOUND = float(np.finfo(np.float32).tiny)  # smaller ones count as 0 on many devices, and 0 / 0 is NaN
NEARLY_ONE = float(np.nextafter(np.float32(1), np.float32(0)))  # of a factor that rounds to 1 though it clips


def bounded_globally(step: StepGradients, max_norm: tf.Tensor | float) -> Clipped:
    """Bound the norm of the whole gradient, in the units of the loss, and keep its direction."""
    packed, norms = step.packed, step.norms
    bound = in_units_of(step, max_norm)
    factor = bound / tf.maximum(norms.total, bound)
    if not step.any_norm:
        return Clipped(packed, factor, scale=factor)

    def in_two_steps() -> list[tf.Tensor]:
        return packed.divided(norms.largest).scaled(bound / norms.of_scaled).cast_like(packed).flat()

    parts = rare_cond(
        norms.total <= tf.maximum(bound, MAX_SINGLE_FACTOR_NORM),
        lambda: packed.scaled(factor).flat(),
        in_two_steps,
    )
    return Clipped(packed.with_flat(parts), factor)


def bounded_each(step: StepGradients, max_norms: tf.Tensor | float) -> Clipped:
    """Bound the norm of each tensor by the same number or by its own, float32 `[n]`, in the units of the loss."""
    packed, norms = step.packed, step.norms
    bounds = in_units_of(step, max_norms)
    in_one_step = norms.of_each <= tf.maximum(bounds, MAX_SINGLE_FACTOR_NORM)
    factors_of_plain = bounds / tf.maximum(norms.of_each, bounds)

    def in_two_steps() -> list[tf.Tensor]:
        divided = packed.divided(tf.where(in_one_step, 1.0, packed.largest()))
        factors = tf.where(in_one_step, factors_of_plain, bounds / tf.sqrt(divided.squared_norms()))
        return divided.scaled(factors).cast_like(packed).flat()

    parts = rare_cond(tf.reduce_all(in_one_step), lambda: packed.scaled(factors_of_plain).flat(), in_two_steps)
    largest = tf.reduce_max(bounds)
    shares = tf.minimum(norms.of_each, bounds) / largest  # none above 1: squared, they cannot overflow
    after = largest * tf.sqrt(tf.reduce_sum(tf.square(shares)))
    clipped = tf.logical_not(tf.reduce_all(norms.of_each <= bounds))
    return Clipped(packed.with_flat(parts), factor_where(clipped, after / norms.total, norms))


def in_units_of(step: StepGradients, bounds: tf.Tensor | float) -> tf.Tensor:
    """Return bounds multiplied as the gradients of the step are, kept within what float32 can name."""
    bounds = float(bounds) if isinstance(bounds, int) else bounds  # which may be more than an int64 holds
    return tf.clip_by_value(tf.cast(bounds, tf.float32) * step.loss_scale, SMALLEST_BOUND, LARGEST_BOUND)


def factor_where(clipped: tf.Tensor, ratio: tf.Tensor, before: Norms) -> tf.Tensor:
    """Return the ratio of the norms where something was clipped, else 1; also 1 where there is no ratio."""
    ratio = tf.where(clipped, tf.minimum(ratio, NEARLY_ONE), 1.0)
    return tf.where(before.finite & (before.total > 0), ratio, 1.0)
