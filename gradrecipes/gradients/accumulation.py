"""Gradient accumulation: what is measured, counted and recorded is the update, not the batches that it is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable, rare_cond
from gradrecipes.core.trace import APPLIED
from gradrecipes.gradients.norms import Norms, measure_norms
from gradrecipes.gradients.packing import MISSING, PackedTensors, without_repeated_indices
from gradrecipes.gradients.recorder import DETAILS, SampledUpdate, copied_where, describe_gradients
from gradrecipes.gradients.update import Accumulation, PipelineSettings, StepResult, Update


def measure_accumulated(
    update: Update,
    accumulation: Accumulation,
    outcome: tf.Tensor,
    of_batch: Norms,
    settings: PipelineSettings,
    *,
    due: tf.Tensor | None,
) -> StepResult:
    """Measure the mean with which the weights will be updated; where they will not, keep what is known of the batch.

    The decision is by the gradient of the batch: one that is skipped does not enter the mean, and another one takes its
    place.

    Args:
        update: The gradients of the batch.
        accumulation: How they are gathered.
        outcome: What was decided of the batch.
        of_batch: The norms of its gradients, multiplied by the loss scale.
        settings: Of the pipeline.
        due: bool scalar, whether a sample is due; None in a graph that takes none.

    Returns:
        What happens, but for the factor of the clipping.
    """
    loss_scale = tf.cast(update.loss_scale, tf.float32)
    taken_in = tf.equal(outcome, APPLIED)
    if update.lower_scale is not None:  # the loss scaler leaves the batch out by itself
        taken_in &= of_batch.finite
    completes = list({id(one): one for one in accumulation.completes}.values())
    is_update = taken_in & tf.reduce_any(tf.stack(completes))
    is_step = is_update | ~taken_in
    sample = tf.constant(False) if due is None else is_step & due
    measured, described = _measure(update, accumulation, of_batch, settings, is_update, is_step, sample)
    of_each = measured.of_each / loss_scale
    if len(completes) > 1:
        of_each = tf.where(tf.stack(accumulation.completes) | ~taken_in, of_each, MISSING)
    of_each = tf.where(is_step, of_each, MISSING)
    sampled = None
    if settings.record:
        variables = update.variables or ()
        before = None if due is None else copied_where(due, update.weights or list, variables, settings.xla)
        sampled = SampledUpdate(described, loss_scale, before, update.weights)
    return StepResult(
        outcome,
        measured.total / loss_scale,
        tf.ones(()),
        of_each,
        measured.finite | ~is_step,
        sampled,
        update.variables,
        is_update=is_update,
        is_step=is_step,
    )


def _measure(
    update: Update,
    accumulation: Accumulation,
    of_batch: Norms,
    settings: PipelineSettings,
    is_update: tf.Tensor,
    is_step: tf.Tensor,
    sample: tf.Tensor,
) -> tuple[Norms, tf.Tensor]:
    loss_scale = tf.cast(update.loss_scale, tf.float32)
    width = len(update.gradients) if settings.record else 0
    nothing = tf.fill([width, DETAILS], MISSING)

    def describe(packed: PackedTensors, finite: tf.Tensor) -> tf.Tensor:
        if not settings.record:
            return nothing
        return rare_cond(sample | ~finite, lambda: describe_gradients(packed, loss_scale), lambda: nothing)

    def mean() -> list[tf.Tensor]:
        pairs = zip(accumulation.means(), accumulation.completes, strict=True)
        if len({id(one) for one in accumulation.completes}) == 1:
            means = [gradient for gradient, _ in pairs]
        else:
            means = [tf.where(complete, tf.convert_to_tensor(g), tf.zeros_like(g)) for g, complete in pairs]
        packed = PackedTensors(without_repeated_indices(means, xla=settings.xla), xla=settings.xla)
        norms = measure_norms(packed)
        return [*norms, describe(packed, norms.finite)]

    def batch() -> list[tf.Tensor]:
        packed = PackedTensors(without_repeated_indices(update.gradients, xla=settings.xla), xla=settings.xla)
        return [*of_batch, describe(packed, of_batch.finite | ~is_step)]

    *norms, described = rare_cond(is_update, mean, batch)
    return Norms(*norms), described


class AccumulatedSteps:
    """Count batches and average their losses where a step of the record is an update made of several batches.

    Attributes:
        batches: int64, batches seen.
        variables: The state, by name.
    """

    def __init__(self):
        self.batches = plain_variable(0, dtype=tf.int64, name="batches")
        self._losses = plain_variable(np.zeros(2, np.float32), name="sum_and_count_of_losses")

    @property
    def variables(self) -> dict[str, Any]:
        """The part of the state that belongs to the update that is being gathered."""
        return {"accumulated_losses": self._losses}

    def add(self, result: StepResult, loss: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Count a batch.

        Args:
            result: What happened with it.
            loss: float32 scalar, its loss.

        Returns:
            The number of the batch, counted from 0, and the loss of the step that it completes: the mean over the
            batches of the update, or its own where it was left out.
        """
        number = self.batches.read_value()
        self.batches.assign_add(1)
        taken_in = result.is_update | tf.logical_not(result.is_step)
        losses = self._losses.read_value() + tf.where(taken_in, tf.stack([loss, 1.0]), tf.zeros(2))
        self._losses.assign(tf.where(result.is_update, tf.zeros(2), losses))
        return number, tf.where(result.is_update, losses[0] / losses[1], loss)
