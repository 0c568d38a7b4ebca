"""One order for everything that happens to a gradient: measure, decide, transform, apply, record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from gradrecipes.core.trace import APPLIED, SKIPPED_GRADIENT, SKIPPED_LOSS, SKIPPED_OVERFLOW
from gradrecipes.gradients.clipping import LARGEST_SINGLE_FACTOR_NORM, Clipping, StepGradients
from gradrecipes.gradients.norms import LARGEST_PLAIN_NORM, Norms, measure_norms
from gradrecipes.gradients.packing import PackedTensors, TensorLike
from gradrecipes.gradients.plain_variable import plain_variable
from gradrecipes.gradients.recorder import Recorder, Tap, weigh_update


@dataclass(frozen=True)
class PipelineSettings:
    """What a pipeline does.

    Args:
        clipping: A method of `gradrecipes.clipping`, or None.
        skip: Whether steps with a non-finite loss or gradient are left out.
        record: Whether the readings are kept for the host.
        sample_every: Steps from one sample of the dearer readings to the next.
        capacity: Steps that the record holds until the host takes them.
        steps_at_once: Steps of one execution.
        xla: Whether the step is compiled by XLA.
    """

    clipping: Clipping | None = None
    skip: bool = False
    record: bool = False
    sample_every: int = 50
    capacity: int = 256
    steps_at_once: int = 1
    xla: bool = False


@dataclass(frozen=True)
class Sample:
    """What is measured besides the gradients in a step that is sampled.

    Args:
        weights: Reads the variables that the gradients belong to, as they are at the time of the call.
        taps: Returns (output, gradient with respect to it) of layers.
    """

    weights: Callable[[], PackedTensors]
    taps: Callable[[], list[Tap]]


class Pipeline:
    """Put each gradient through one order of steps, inside the graph, and own the state they need.

    The order is that of the literature: unscale, accumulate, measure, decide, clip, apply. The norm that is
    reported is the one before clipping. Skipping means that nothing at all is applied: a zeroed gradient
    would still let Adam's moments decay and weight decay act.

    Args:
        settings: What to do.
    """

    def __init__(self, settings: PipelineSettings):
        self.settings = settings
        self.recorder: Recorder | None = None
        self.skipped_steps = plain_variable(0, dtype=tf.int64, name="skipped_steps")
        self.consecutive_skips = plain_variable(0, dtype=tf.int64, name="consecutive_skips")
        self.clipped_steps = plain_variable(0, dtype=tf.int64, name="clipped_steps")

    def apply(
        self,
        gradients: Sequence[TensorLike],
        apply_gradients: Callable[[Sequence[TensorLike]], None],
        *,
        measured: Sequence[TensorLike] | None = None,
        loss: tf.Tensor | None = None,
        unit: tf.Tensor | float = 1.0,
        bounded_elsewhere: bool = False,
        sample: Sample | None = None,
        lower_scale: Callable[[], None] | None = None,
    ) -> StepOutcome:
        """Measure the gradients, decide, and hand them on, clipped, unless the step is to be skipped.

        Args:
            gradients: What `apply_gradients` takes, none of them None.
            apply_gradients: Applies them through the optimizer; called once, perhaps inside a `tf.cond`.
            measured: The true gradients where they differ from what is handed on (gradient accumulation);
                they are measured and not clipped here.
            loss: float scalar, the loss of the batch; None when it is not known.
            unit: What the gradients come multiplied by: a loss scale.
            bounded_elsewhere: Whether a later bound makes a gradient above 1.8e19 harmless.
            sample: Given where this step is to be sampled: what else is measured in it.
            lower_scale: What a loss scaler does about a gradient that is not finite while the loss is. Were the
                step skipped without it, a scale that is too high would stay so, and every step be skipped.

        Returns:
            What happened, as tensors.
        """
        settings = self.settings
        unit = tf.cast(unit, tf.float32)
        packed = PackedTensors(gradients if measured is None else measured, xla=settings.xla)
        if settings.record and self.recorder is None:
            self._make_recorder(len(packed), len(sample.taps()) if sample else 0)
        sample_if_nonfinite = None
        if settings.record and sample is None:
            sample_if_nonfinite = functools.partial(self.recorder.write_sample_if_nonfinite, packed, unit)
        weights_before = sample.weights() if sample else None
        norms = measure_norms(packed, when_rare=sample_if_nonfinite)
        outcome = self._decide(norms, loss, unit, bounded_elsewhere)

        dense = measured is None and not any(isinstance(gradient, tf.IndexedSlices) for gradient in gradients)
        factor = tf.ones(())
        transformed = packed.unpacked if settings.skip and dense else lambda: gradients  # few tensors enter the cond
        if settings.clipping is not None:
            clipped = settings.clipping.clip(StepGradients(packed, norms, unit, any_norm=not settings.skip))
            factor = clipped.factor
            if measured is None:  # else `clip` does it, where the mean of the micro-batches is applied
                transformed = clipped.packed.unpacked

        if settings.skip:
            tf.cond(
                tf.equal(outcome, APPLIED),
                lambda: _done(apply_gradients(transformed())),
                lambda: tf.constant(False),
            )
            if lower_scale is not None:
                too_high = tf.equal(outcome, SKIPPED_GRADIENT)
                tf.cond(too_high, lambda: _done(lower_scale()), lambda: tf.constant(False))
        else:
            apply_gradients(transformed())
        self._count(outcome, factor)
        if settings.record:
            if sample is not None:
                weights = weigh_update(weights_before, sample.weights())
                self.recorder.write_sample(packed, unit, taps=sample.taps(), weights=weights)
            known_loss = tf.constant(np.nan, tf.float32) if loss is None else tf.cast(loss, tf.float32)
            self.recorder.write_row(norms, loss=known_loss, unit=unit, clip_factor=factor, outcome=outcome)
        return StepOutcome(outcome, norms.total / unit, factor)

    def clip(self, gradients: Sequence[TensorLike]) -> list[TensorLike]:
        """Clip gradients that were measured elsewhere (the mean of accumulated micro-batches)."""
        packed = PackedTensors(gradients, xla=self.settings.xla)
        return self.settings.clipping.clip(StepGradients(packed, measure_norms(packed), tf.ones(()))).packed.unpacked()

    def _decide(self, norms: Norms, loss: tf.Tensor | None, unit: tf.Tensor, bounded_elsewhere: bool) -> tf.Tensor:
        if not self.settings.skip:
            return tf.constant(APPLIED, tf.int64)
        if self.settings.clipping is not None:
            overflows = norms.total > LARGEST_SINGLE_FACTOR_NORM
        elif bounded_elsewhere:
            overflows = tf.constant(False)
        else:
            overflows = norms.total > LARGEST_PLAIN_NORM * unit
        outcome = tf.where(overflows, SKIPPED_OVERFLOW, APPLIED)
        outcome = tf.where(norms.finite, outcome, SKIPPED_GRADIENT)
        if loss is not None:
            outcome = tf.where(tf.math.is_finite(loss), outcome, SKIPPED_LOSS)
        return tf.cast(outcome, tf.int64)

    def _count(self, outcome: tf.Tensor, factor: tf.Tensor) -> None:
        if self.settings.skip:
            skipped = tf.cast(tf.not_equal(outcome, APPLIED), tf.int64)
            self.skipped_steps.assign_add(skipped)
            self.consecutive_skips.assign((self.consecutive_skips.read_value() + 1) * skipped)
        if self.settings.clipping is not None:
            self.clipped_steps.assign_add(tf.cast((factor < 1.0) & tf.equal(outcome, APPLIED), tf.int64))

    def _make_recorder(self, gradients: int, taps: int) -> None:
        settings = self.settings
        self.recorder = Recorder(
            gradients=gradients,
            taps=taps,
            sample_every=settings.sample_every,
            capacity=settings.capacity,
            steps_at_once=settings.steps_at_once,
        )


@dataclass(frozen=True)
class StepOutcome:
    """What a pipeline did with one step.

    Attributes:
        code: int64 scalar, a key of `gradrecipes.core.trace.OUTCOMES`.
        gradient_norm: float32 scalar, global norm of the unscaled gradient before clipping.
        clip_factor: float32 scalar, what the gradient was multiplied by.
    """

    code: tf.Tensor
    gradient_norm: tf.Tensor
    clip_factor: tf.Tensor


def _done(_: None) -> tf.Tensor:
    return tf.constant(True)
