"""One order for everything that happens to a gradient: measure, decide, transform, apply, record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from gradrecipes.compat.plain_variable import plain_variable
from gradrecipes.core.trace import (
    APPLIED,
    SKIPPED_GRADIENT,
    SKIPPED_LOSS,
    SKIPPED_LOSS_SPIKE,
    SKIPPED_NORM_SPIKE,
    SKIPPED_OVERFLOW,
)
from gradrecipes.gradients.clipping import LARGEST_SINGLE_FACTOR_NORM, Clipping, StepGradients
from gradrecipes.gradients.columns import Columns, Places, in_columns, length
from gradrecipes.gradients.norms import LARGEST_PLAIN_NORM, Norms, measure_norms
from gradrecipes.gradients.outliers import SpikeWatch
from gradrecipes.gradients.packing import PackedTensors, TensorLike
from gradrecipes.gradients.recorder import Recorder, SampledUpdate, Tap
from gradrecipes.gradients.update import StepOutcome, Update, joined


@dataclass(frozen=True)
class PipelineSettings:
    """What a pipeline does.

    Args:
        clipping: A method of `gradrecipes.clipping`, or None.
        skip: Whether steps with a non-finite loss or gradient are left out.
        sigmas: Standard deviations above the mean from which on a finite loss or norm is absurd and the step
            left out as well; None for never.
        record: Whether the readings are kept for the host.
        sample_every: Steps from one sample of the dearer readings to the next.
        capacity: Steps that the record holds until the host takes them.
        steps_at_once: Steps of one execution.
        xla: Whether the step is compiled by XLA.
    """

    clipping: Clipping | None = None
    skip: bool = False
    sigmas: float | None = None
    record: bool = False
    sample_every: int = 50
    capacity: int = 256
    steps_at_once: int = 1
    xla: bool = False


class Pipeline:
    """Put each gradient through one order of steps, inside the graph, and own the state they need.

    The order is that of the literature: unscale, accumulate, reduce across replicas, measure, decide, clip,
    apply. The norm that is reported is the one before clipping. Skipping means that nothing at all is applied:
    a zeroed gradient would still let Adam's moments decay and weight decay act.

    Args:
        settings: What to do.

    Attributes:
        columns: Which variables the record has columns for; None while they are those of the first step.
    """

    def __init__(self, settings: PipelineSettings):
        self.settings = settings
        self.columns: Columns | None = None
        self.recorder: Recorder | None = None
        self.watches: dict[str, SpikeWatch] = {}
        self._clipping_states: dict[str, tuple[tf.Variable, ...]] = {}
        self._tensors: dict[str, int] = {}
        self.skipped_steps = plain_variable(0, dtype=tf.int64, name="skipped_steps")
        self.consecutive_skips = plain_variable(0, dtype=tf.int64, name="consecutive_skips")
        self.clipped_steps = plain_variable(0, dtype=tf.int64, name="clipped_steps")
        self.rate_caps: dict[str, tf.Variable] = {}
        self._to_take_up: dict[str, np.ndarray] = {}

    def apply(self, update: Update, *, sample: bool = False) -> StepOutcome:
        """Measure the gradients, decide, and hand them on, clipped, unless the update is to be skipped.

        Args:
            update: The gradients and what is known of them.
            sample: Whether the dearer readings are due in this step.

        Returns:
            What happened, as tensors; `record` takes it at the end of the step.
        """
        settings = self.settings
        unit = tf.cast(update.unit, tf.float32)
        packed = PackedTensors(update.gradients if update.measured is None else update.measured, xla=settings.xla)
        when_rare = None
        if settings.record and update.alone and not sample:
            self._make_recorder(len(packed), 0)
            write, places = self.recorder.write_sample_if_nonfinite, self._places(update.variables)
            when_rare = functools.partial(write, packed, unit, places=places)
        weights_before = update.weights() if sample else None
        norms = measure_norms(packed, when_rare=when_rare)
        code = self._decide(norms, unit, update)

        factor, transformed = self._transform(update, packed, norms, unit, tf.equal(code, APPLIED))
        self._apply_where(code, update, transformed)
        sampled = None
        if sample:
            sampled = SampledUpdate(packed, unit, weights_before, update.weights())
        return StepOutcome(code, norms.total / unit, factor, norms.of_each / unit, sampled, update.variables)

    def _transform(
        self, update: Update, packed: PackedTensors, norms: Norms, unit: tf.Tensor, applied: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[], Sequence[TensorLike]]]:
        settings, gradients = self.settings, update.gradients
        dense = update.measured is None and not any(isinstance(gradient, tf.IndexedSlices) for gradient in gradients)
        transformed = packed.unpacked if settings.skip and dense else lambda: gradients  # few tensors enter the cond
        if settings.clipping is None:
            return tf.ones(()), transformed
        learn = applied if update.measured is None else False  # with accumulation `clip` learns, at the update
        clipped = settings.clipping.clip(self._to_clip(update, packed, norms, unit, learn))
        return clipped.factor, clipped.packed.unpacked if update.measured is None else transformed

    def _to_clip(self, update: Update, packed, norms, unit, learn) -> StepGradients:
        owner = update.owner
        if self._tensors.setdefault(owner, len(packed)) != len(packed):
            owner = f"{owner}_of_{len(packed)}"  # fewer gradients than at first: what is remembered is not of these
        if owner not in self._clipping_states:
            with tf.init_scope():
                self._clipping_states[owner] = self.settings.clipping.make_state(len(packed))
            self._take_up()
        return StepGradients(
            packed,
            norms,
            unit,
            any_norm=not self.settings.skip,
            state=self._clipping_states[owner],
            learn=learn,
            weights=update.weights,
            unit_axes=update.unit_axes,
        )

    def clip(self, update: Update, gradients: Sequence[TensorLike]) -> list[TensorLike]:
        """Clip gradients that were measured elsewhere: the unscaled mean of accumulated micro-batches."""
        packed = PackedTensors(gradients, xla=self.settings.xla)
        norms = measure_norms(packed)
        step = self._to_clip(update, packed, norms, tf.ones(()), norms.finite)
        return self.settings.clipping.clip(step).packed.unpacked()

    def _apply_where(self, code: tf.Tensor, update: Update, transformed: Callable[[], Sequence[TensorLike]]) -> None:
        if not self.settings.skip:
            update.apply(transformed())
            return
        tf.cond(
            tf.equal(code, APPLIED),
            lambda: _done(update.apply(transformed())),
            lambda: tf.constant(False),
        )
        if update.lower_scale is not None:
            too_high = tf.equal(code, SKIPPED_GRADIENT)
            tf.cond(too_high, lambda: _done(update.lower_scale()), lambda: tf.constant(False))

    def _decide(self, norms: Norms, unit: tf.Tensor, update: Update) -> tf.Tensor:
        if not self.settings.skip:
            return tf.constant(APPLIED, tf.int64)
        if self.settings.clipping is not None:
            overflows = norms.total > LARGEST_SINGLE_FACTOR_NORM
        elif update.bounded_elsewhere:
            overflows = tf.constant(False)
        else:
            overflows = norms.total > LARGEST_PLAIN_NORM * unit
        code = tf.constant(APPLIED)
        if self.settings.sigmas is not None:
            if update.owner not in self.watches:
                self.watches[update.owner] = SpikeWatch(self.settings.sigmas)
                self._take_up()
            watch = self.watches[update.owner]
            verdict = watch.judge(None if update.loss is None else tf.cast(update.loss, tf.float32), norms.total / unit)
            code = tf.where(verdict.norm, SKIPPED_NORM_SPIKE, code)
            code = tf.where(verdict.loss, SKIPPED_LOSS_SPIKE, code)
        code = tf.where(overflows, SKIPPED_OVERFLOW, code)
        code = tf.where(norms.finite, code, SKIPPED_GRADIENT)
        if update.loss is not None:
            code = tf.where(tf.math.is_finite(update.loss), code, SKIPPED_LOSS)
        return tf.cast(code, tf.int64)

    def rate_cap(self, optimizer: str) -> tf.Variable:
        """Return the variable that bounds an optimizer's learning rate; it is infinite until a guard sets it."""
        if optimizer not in self.rate_caps:
            self.rate_caps[optimizer] = plain_variable(np.inf, dtype=tf.float32, name="rate_cap")
            self._take_up()
        return self.rate_caps[optimizer]

    # -- the end of a step -------------------------------------------------------------------------
    def record(
        self,
        outcomes: Sequence[StepOutcome],
        *,
        loss: tf.Tensor | None = None,
        taps: Sequence[Tap] | None = None,
        every_step: bool = False,
    ) -> StepOutcome:
        """Count and record a step, all of whose updates were applied or skipped.

        Args:
            outcomes: What `apply` returned, of one update or of several.
            loss: float scalar, the loss of the batch, if it is known.
            taps: (output, gradient with respect to it) of layers, in a step that is sampled.
            every_step: Whether the graph that is being built serves the other steps too.

        Returns:
            The outcome of the whole step: skipped if an update was, the norm of all gradients, the least factor.
        """
        whole = outcomes[0] if len(outcomes) == 1 else joined(outcomes)
        self._count(whole)
        if not self.settings.record:
            return whole
        places = self._places(whole.variables)
        self._make_recorder(int(whole.norms.shape[0]), len(taps or ()))
        sampled = [outcome.sampled for outcome in outcomes]
        if taps is not None and every_step:
            finite = tf.math.is_finite(whole.gradient_norm)
            self.recorder.write_sample_if_due(sampled, taps, finite, places=places)
        elif taps is not None:
            self.recorder.write_sample(sampled, taps, places=places)
        loss = tf.constant(np.nan, tf.float32) if loss is None else tf.cast(loss, tf.float32)
        head = [loss, whole.gradient_norm, whole.clip_factor, tf.cast(whole.code, tf.float32)]
        norms = in_columns(whole.norms, places, self.recorder.gradients, length)
        self.recorder.write_row(tf.concat([tf.stack(head), norms], axis=0))
        return whole

    def _places(self, variables: Sequence[Any] | None) -> Places | None:
        return None if self.columns is None or variables is None else self.columns.places(variables)

    def _count(self, outcome: StepOutcome) -> None:
        if self.settings.skip:
            skipped = tf.cast(tf.not_equal(outcome.code, APPLIED), tf.int64)
            self.skipped_steps.assign_add(skipped)
            self.consecutive_skips.assign((self.consecutive_skips.read_value() + 1) * skipped)
        if self.settings.clipping is not None:
            clipped = (outcome.clip_factor < 1.0) & tf.equal(outcome.code, APPLIED)
            self.clipped_steps.assign_add(tf.cast(clipped, tf.int64))

    def _make_recorder(self, gradients: int, taps: int) -> None:
        if self.recorder is not None:
            return
        settings = self.settings
        self.recorder = Recorder(
            gradients=gradients if self.columns is None else len(self.columns),
            taps=taps,
            sample_every=settings.sample_every,
            capacity=settings.capacity,
            steps_at_once=settings.steps_at_once,
        )

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """All state that decides about later steps, by name: what a resumed run needs beside the model's own."""
        found = {name: getattr(self, name) for name in ("skipped_steps", "clipped_steps")}
        found |= {f"rate_cap_{name}": cap for name, cap in self.rate_caps.items()}
        for owner, watch in self.watches.items():
            found |= {f"watch_{owner}/{name}": variable for name, variable in watch.variables.items()}
        for owner, state in self._clipping_states.items():
            found |= {f"clipping_{owner}/{index}": variable for index, variable in enumerate(state)}
        return found

    def remembered(self) -> list[tf.Variable]:
        """Return the variables that describe the course of the training so far: they go back when it does."""
        watches = [variable for watch in self.watches.values() for variable in watch.variables.values()]
        return watches + [variable for state in self._clipping_states.values() for variable in state]

    def restore(self, values: dict[str, np.ndarray]) -> None:
        """Set the state of `variables` to saved values; what does not exist before the first step is set then."""
        self._to_take_up = dict(values)
        self._take_up()

    def _take_up(self) -> None:
        with tf.init_scope():
            for name, variable in self.variables.items():
                if name in self._to_take_up:
                    variable.assign(self._to_take_up.pop(name))


def _done(_: None) -> tf.Tensor:
    return tf.constant(True)
