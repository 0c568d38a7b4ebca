"""One order for everything that happens to a gradient: measure, decide, transform, apply, record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import computed_once, held, host_value, optimized, plain_variable, rare_cond
from gradrecipes.core.trace import APPLIED
from gradrecipes.gradients.norms import (
    Norms,
    PlainSquares,
    as_float32,
    judge_range,
    plain_squares,
    scaled_norms,
)
from gradrecipes.gradients.packing import (
    Columns,
    Indices,
    PackedTensors,
    combine_norms,
    in_columns,
    large_held_back,
    without_repeated_indices,
)
from gradrecipes.gradients.recorder import (
    DETAILS,
    Activation,
    Recorder,
    SampledUpdate,
    copied_where,
    describe_gradients,
    is_due,
    no_copies,
)
from gradrecipes.gradients.update import (
    NO_LOSS,
    Accumulation,
    EpochNorms,
    PipelineSettings,
    StepResult,
    Update,
    combined,
    is_rescaled,
    lower_scale,
    updates_weights,
)

if TYPE_CHECKING:
    from gradrecipes.gradients.accumulation import AccumulatedSteps
    from gradrecipes.gradients.clipping import Clipper
    from gradrecipes.gradients.skipping import OutlierDetector


class Pipeline:
    """Put each gradient through one order of steps, inside the graph, and own the state they need.

    The order is that of the literature: unscale, accumulate, reduce across replicas, measure, decide, clip,
    apply. The norm that is reported is the one before clipping. Skipping means that nothing at all is applied:
    a zeroed gradient would still let Adam's moments decay and weight decay act.

    An ordinary step costs one `L2Loss` a tensor and one comparison. What it leaves open (exact norms, the reason for a
    skip, statistics, a sample) is computed in a branch that is taken only then.

    Args:
        settings: What to do.

    Attributes:
        clipper: Clips, and owns what the clipping method remembers; None without one.
        columns: Which variables the record has columns for; None while they are those of the first step.
        accumulated: The batches seen, where a step of the record may be an update of several; None elsewhere.
        epoch_norms: Mean and maximum of the norm in this epoch, where the step returns them in its logs.
        last_loss: float32, what the logs hold for the loss before an epoch's first step that is applied: the loss of
            the epoch before, and the largest number there is in the first. No improvement for a callback that saves or
            stops by it, and finite, since `TerminateOnNaN` would end the training for a step that was left out.
    """

    def __init__(self, settings: PipelineSettings):
        self.settings = settings
        self.columns: Columns | None = None
        self.recorder: Recorder | None = None
        self.detectors: dict[str, OutlierDetector] = {}
        self.accumulated: AccumulatedSteps | None = None
        self.epoch_norms = EpochNorms()
        self.clipper: Clipper | None = None
        if settings.clipping is not None:
            from gradrecipes.gradients.clipping import Clipper

            self.clipper = Clipper(
                settings.clipping, any_norm=not settings.skip, xla=settings.xla, new_state=self._resume
            )
        self.step = plain_variable(0, dtype=tf.int64, name="step")
        self.skipped_steps = plain_variable(0, dtype=tf.int64, name="skipped_steps")
        self.consecutive_skips = plain_variable(0, dtype=tf.int64, name="consecutive_skips")
        self.clipped_steps = plain_variable(0, dtype=tf.int64, name="clipped_steps")
        self.last_loss = plain_variable(NO_LOSS, dtype=tf.float32, name="last_loss")
        self.rate_caps: dict[str, tf.Variable] = {}
        self._to_resume: dict[str, np.ndarray] = {}

    def apply(self, update: Update, *, sample: bool = False) -> StepResult:
        """Measure the gradients, decide, and hand them on, clipped, unless the update is to be skipped.

        Args:
            update: The gradients and what is known of them.
            sample: Whether samples may be due in the graph that is being built.

        Returns:
            What happened, as tensors; `record` takes it at the end of the step.
        """
        loss_scale = tf.cast(update.loss_scale, tf.float32)
        if update.accumulation is not None and not self.settings.by_batch:
            return self._accumulate(update, update.accumulation, loss_scale, sample)
        outcome, norms, sampled = self._measure_and_decide(
            update, loss_scale, sample=sample, record=self.settings.record
        )
        factor = self._transform(update, outcome, norms, loss_scale)
        total, of_each = norms.total / loss_scale, norms.of_each / loss_scale
        is_update = updates_weights(update, outcome, norms) if self.settings.skip or update.lower_scale else None
        rescaled = is_rescaled(update, outcome, loss_scale) if self.settings.skip else None
        return StepResult(
            outcome, total, factor, of_each, norms.finite, sampled, update.variables, is_update, rescaled=rescaled
        )

    def _accumulate(
        self, update: Update, accumulation: Accumulation, loss_scale: tf.Tensor, sample: bool
    ) -> StepResult:
        from gradrecipes.gradients.accumulation import measure_accumulated

        outcome, norms, _ = self._measure_and_decide(update, loss_scale)
        due = is_due(self.step.read_value(), self.settings.sample_every) if sample else None
        result = measure_accumulated(update, accumulation, outcome, norms, self.settings, due=due)
        return replace(result, clip_factor=self._transform(update, outcome, norms, loss_scale))

    # -- measure and decide ------------------------------------------------------------------------
    def _measure_and_decide(
        self, update: Update, loss_scale: tf.Tensor, *, sample: bool = False, record: bool = False
    ) -> tuple[tf.Tensor, Norms, SampledUpdate | None]:
        settings = self.settings
        gradients = without_repeated_indices(update.gradients, xla=settings.xla)
        squares = plain_squares(gradients)
        pair = tf.stack([as_float32(update.loss, missing=0.0), tf.sqrt(squares.total) / loss_scale])
        detector = self._detector(update.optimizer_key)
        due = is_due(self.step.read_value(), settings.sample_every) if sample else tf.constant(False)
        # Of a step with one update, the branch that finds the gradient not finite writes the sample itself.
        at_end = record and (sample or not update.alone)
        recorder = self._make_recorder(len(gradients), 0) if record and not at_end else None
        undescribed, weights = tf.zeros([len(gradients) if at_end else 0, DETAILS]), update.weights or list
        variables = update.variables or ()
        # Without a record this may be a loop of the user's own, which XLA may compile without our knowing.
        kept = held(gradients) if settings.record and not settings.xla else lambda: gradients

        def usual_step() -> list[Any]:
            if detector is not None:
                detector.remember(pair)
            before = [] if not sample else no_copies(variables, settings.xla)
            return [tf.constant(APPLIED, tf.int64), *squares.norms(), undescribed, *before]

        def other_step() -> list[Any]:
            packed = PackedTensors(kept(), xla=settings.xla)
            norms = Norms(*rare_cond(squares.within_float32, squares.norms, lambda: scaled_norms(packed)))
            finite, overflows = judge_range(norms, packed.tensors, loss_scale)
            norms = norms._replace(finite=finite)
            if settings.skip:
                from gradrecipes.gradients.skipping import decide

                clips = settings.clipping is not None
                outcome = decide(update, norms, loss_scale, detector, overflows=overflows, clips=clips)
            else:
                outcome = tf.constant(APPLIED, tf.int64)
            describe, described = lambda: describe_gradients(packed, loss_scale), undescribed
            if at_end:
                described = rare_cond(due | ~norms.finite, describe, lambda: undescribed)
            elif recorder is not None:
                recorder.write_nonfinite(describe, norms.finite, indices=self._indices(update.variables))
            before = [] if not sample else copied_where(due, weights, variables, settings.xla)
            return [outcome, *norms, described, *before]

        usual = self._is_usual(squares, pair, update, detector) & ~due
        outcome, of_each, largest, of_scaled, finite, described, *before = rare_cond(usual, usual_step, other_step)
        sampled = SampledUpdate(described, loss_scale, before if sample else None, weights) if at_end else None
        return outcome, Norms(of_each, largest, of_scaled, finite), sampled

    def _is_usual(
        self, squares: PlainSquares, pair: tf.Tensor, update: Update, detector: OutlierDetector | None
    ) -> tf.Tensor:
        usual = squares.within_float32
        if self.settings.skip and update.loss is not None:
            usual &= tf.math.is_finite(pair[0])
        return usual if detector is None else usual & ~detector.needs_judgement(pair)

    def _detector(self, optimizer_key: str) -> OutlierDetector | None:
        if not self.settings.skip or self.settings.sigmas is None:
            return None
        if optimizer_key not in self.detectors:
            from gradrecipes.gradients.skipping import OutlierDetector

            self.detectors[optimizer_key] = OutlierDetector(self.settings.sigmas)
            self._resume()
        return self.detectors[optimizer_key]

    # -- transform ---------------------------------------------------------------------------------
    def _transform(self, update: Update, outcome: tf.Tensor, norms: Norms, loss_scale: tf.Tensor) -> tf.Tensor:
        if not self.settings.skip:
            # An update that has begun could no longer reuse the memory of a gradient that is measured after it; a small
            # one is better updated as soon as it is there, while the cache still holds it.
            update = replace(update, gradients=large_held_back(update.gradients, outcome))
            return self._update_clipped(update, norms, loss_scale, learn=norms.finite)
        is_applied = tf.equal(outcome, APPLIED)
        if self.settings.xla and update.assigned_where is not None:
            with update.assigned_where(is_applied):
                factor = self._update_clipped(update, norms, loss_scale, learn=is_applied)
            lower_scale(update, outcome)
            return tf.where(is_applied, factor, 1.0)

        def updated() -> tf.Tensor:
            with computed_once():
                return self._update_clipped(update, norms, loss_scale, learn=norms.finite)

        def skipped() -> tf.Tensor:
            lower_scale(update, outcome)
            return tf.ones(())

        return rare_cond(is_applied, updated if update.as_written else optimized(updated), skipped)

    def _update_clipped(self, update: Update, norms: Norms, loss_scale: tf.Tensor, *, learn: tf.Tensor) -> tf.Tensor:
        if self.clipper is None:
            update.apply(update.gradients)
            return tf.ones(())
        if update.accumulation is not None:
            return self.clipper.apply_accumulating(update, learn)
        packed = PackedTensors(update.gradients, xla=self.settings.xla)
        clipped = self.clipper.clipped(update, packed, norms, loss_scale, learn=learn)
        if clipped.scale is None:
            update.apply(clipped.packed.unpacked())
        else:
            update.apply(packed.tensors, scale=clipped.scale)
        return clipped.factor

    def rate_cap(self, optimizer: str) -> tf.Variable:
        """Return the variable that bounds an optimizer's learning rate; it is infinite until a guard sets it."""
        if optimizer not in self.rate_caps:
            self.rate_caps[optimizer] = plain_variable(np.inf, dtype=tf.float32, name="rate_cap")
            self._resume()
        return self.rate_caps[optimizer]

    # -- the end of a step -------------------------------------------------------------------------
    def record(
        self,
        results: Sequence[StepResult],
        *,
        loss: tf.Tensor | None = None,
        activations: Sequence[Activation] | None = None,
    ) -> StepResult:
        """Count and record a step, all of whose updates were applied or skipped.

        Args:
            results: What `apply` returned, of one update or of several.
            loss: float scalar, the loss of the batch, if it is known.
            activations: (output, gradient with respect to it) of layers, in a graph in which samples may be due.

        Returns:
            The result of the whole step: skipped if an update was, the norm of all gradients, the least factor.
        """
        whole = combined(results)
        self._count(whole)
        if not self.settings.record:
            return whole
        indices = self._indices(whole.variables)
        recorder = self._make_recorder(int(whole.norms.shape[0]), len(activations or ()))
        loss = as_float32(loss, missing=np.nan)
        if whole.is_step is None:
            self._write(recorder, results, whole, indices, loss, activations)
            return whole
        if self.accumulated is None:
            from gradrecipes.gradients.accumulation import AccumulatedSteps

            self.accumulated = AccumulatedSteps()
            self._resume()
        batch, loss = self.accumulated.add(whole, loss)

        def write() -> tf.Tensor:
            self._write(recorder, results, whole, indices, loss, activations, batch=batch)
            return tf.constant(True)

        rare_cond(whole.is_step, write, lambda: tf.constant(False))
        return whole

    def _write(
        self,
        recorder: Recorder,
        results: Sequence[StepResult],
        whole: StepResult,
        indices: Indices | None,
        loss: tf.Tensor,
        activations: Sequence[Activation] | None,
        batch: tf.Tensor | None = None,
    ) -> None:
        sampled = [result for result in results if result.sampled is not None]
        if sampled:
            joint, updates = combined(sampled), [result.sampled for result in sampled if result.sampled is not None]
            of_updates = self._indices(joint.variables)
            recorder.write_sample(updates, joint.finite, activations=activations, indices=of_updates)
        head = [loss, whole.gradient_norm, whole.clip_factor, tf.cast(whole.outcome, tf.float32)]
        norms = in_columns(whole.norms, indices, recorder.gradients, combine_norms)
        recorder.write_row(tf.concat([tf.stack(head), norms], axis=0), batch=batch)

    def logs(self) -> dict[str, tf.Tensor]:
        """Return what joins the logs of the last step, as float32 scalars: `epoch_norms`, and counts."""
        counts = {name: tf.cast(count.read_value(), tf.float32) for name, count in self._logged_counts().items()}
        return self.epoch_norms.logs() | counts

    def read_counts(self) -> dict[str, float]:
        """Return the counts alone, read by the host."""
        return {name: float(host_value(count)) for name, count in self._logged_counts().items()}

    def _logged_counts(self) -> dict[str, tf.Variable]:
        counts = {"skipped_steps": self.skipped_steps} if self.settings.skip else {}
        return counts if self.settings.clipping is None else counts | {"clipped_steps": self.clipped_steps}

    @property
    def batches(self) -> int:
        """Batches seen, as many as there were steps unless an optimizer accumulates."""
        return int((self.step if self.accumulated is None else self.accumulated.batches).numpy())

    def _indices(self, variables: Sequence[Any] | None) -> Indices | None:
        return None if self.columns is None or variables is None else self.columns.indices(variables)

    def _count(self, result: StepResult) -> None:
        if self.settings.skip:
            skipped = tf.minimum(result.outcome, 1)  # every other outcome than `APPLIED`, which is 0
            self.skipped_steps.assign_add(skipped)
            # While a loss scale comes down, as it does without us, steps without an update are no sign of anything.
            counted = skipped if result.rescaled is None else skipped * tf.cast(~result.rescaled, tf.int64)
            self.consecutive_skips.assign((self.consecutive_skips.read_value() + counted) * skipped)
        if self.settings.clipping is not None:  # the factor of a step that was skipped is 1
            self.clipped_steps.assign_add(tf.cast(result.clip_factor < 1.0, tf.int64))

    def _make_recorder(self, gradients: int, activations: int) -> Recorder:
        if self.recorder is None:
            self.recorder = Recorder(
                gradients=gradients if self.columns is None else len(self.columns),
                activations=activations,
                sample_every=self.settings.sample_every,
                capacity=self.settings.capacity,
                step=self.step,
            )
        return self.recorder

    # -- state -------------------------------------------------------------------------------------
    @property
    def variables(self) -> dict[str, tf.Variable]:
        """All state that decides about later steps, by name: what a resumed run needs beside the model's own."""
        found = {name: getattr(self, name) for name in ("skipped_steps", "clipped_steps", "last_loss")}
        found |= {f"rate_cap_{name}": cap for name, cap in self.rate_caps.items()}
        found |= {} if self.accumulated is None else self.accumulated.variables
        for key, detector in self.detectors.items():
            found |= {f"outliers_{key}/{name}": variable for name, variable in detector.variables.items()}
        for key, state in self._clipping_states.items():
            found |= {f"clipping_{key}/{index}": variable for index, variable in enumerate(state)}
        return found

    @property
    def _clipping_states(self) -> dict[str, tuple[tf.Variable, ...]]:
        return {} if self.clipper is None else self.clipper.states

    def course(self, *, gathered: bool = True) -> list[tf.Variable]:
        """Return the variables that describe the course of the training so far: they go back when it does."""
        detectors = [variable for detector in self.detectors.values() for variable in detector.variables.values()]
        sums = [] if self.accumulated is None or not gathered else list(self.accumulated.variables.values())
        return sums + detectors + [variable for state in self._clipping_states.values() for variable in state]

    def forget(self) -> None:
        """Begin anew, with other weights: what was remembered of losses, norms and rates means nothing any more."""
        for variable in [*self.course(gathered=False), *self.rate_caps.values(), self.consecutive_skips]:
            variable.assign(variable.beginning)

    def restore(self, values: dict[str, np.ndarray]) -> None:
        """Set the state of `variables` to saved values; what does not exist before the first step is set then."""
        self._to_resume = dict(values)
        self._resume()

    def _resume(self) -> None:
        with tf.init_scope():
            for name, variable in self.variables.items():
                if name in self._to_resume:
                    variable.assign(self._to_resume.pop(name))
