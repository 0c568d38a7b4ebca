"""What is asked of the pipeline, what enters it, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable
from gradrecipes.core.trace import APPLIED, SKIPPED_GRADIENT
from gradrecipes.gradients.norms import Norms
from gradrecipes.gradients.packing import TensorLike
from gradrecipes.gradients.recorder import SampledUpdate

if TYPE_CHECKING:
    from gradrecipes.gradients.clipping.method import Clipping


@dataclass(frozen=True)
class Accumulation:
    """How optimizers gather the gradients of several batches before they update the weights.

    Args:
        means: Returns for each gradient the mean over the batches of its update, this one included, multiplied by the
            loss scale; to be called before the update.
        completes: bool scalars, one for each gradient: whether its update is made with this batch.
    """

    means: Callable[[], list[TensorLike]]
    completes: Sequence[tf.Tensor]


@dataclass(frozen=True)
class Update:
    """The gradients that one optimizer is about to apply, and what is known of them.

    Args:
        gradients: What `apply` takes, none of them None.
        apply: Applies them through the optimizer; called once, perhaps inside a `tf.cond`.
        accumulation: How the optimizer gathers the gradients of several batches, or None where it does not. Their mean
            is clipped within `apply`, by `Pipeline.clip`.
        loss: float scalar, the loss of the batch; None when it is not known.
        loss_scale: What the gradients come multiplied by.
        bounded_elsewhere: Whether a later bound makes a gradient above 1.8e19 harmless.
        lower_scale: What a loss scaler does about a gradient that is not finite while the loss is. Were the
            step skipped without it, a scale that is too high would stay so, and every step be skipped.
        weights: Reads the variables that the gradients belong to, as they are at the time of the call.
        assigned_where: Makes a context in which what `apply` assigns keeps its value unless a bool scalar is true; for
            XLA only, and None where there is no such context.
        unit_axes: See `StepGradients`.
        optimizer_key: Names the optimizer, and which of its updates in a step it is: each has a memory of its own.
        alone: Whether no update came before it in the step, and no other optimizer applies gradients.
        variables: What the gradients belong to, where they are recorded by variable.
        optimizers: The optimizer, and those within it.
        as_written: Whether TensorFlow's graph optimizer would leave the arithmetic of `apply` as it is, to the bit.
    """

    gradients: Sequence[TensorLike]
    apply: Callable[..., None]
    accumulation: Accumulation | None = None
    loss: tf.Tensor | None = None
    loss_scale: tf.Tensor | float = 1.0
    bounded_elsewhere: bool = False
    lower_scale: Callable[[], None] | None = None
    weights: Callable[[], list[tf.Tensor]] | None = None
    assigned_where: Callable[[tf.Tensor], AbstractContextManager[None]] | None = None
    unit_axes: Sequence[tuple[int, ...] | None] | None = None
    optimizer_key: str = "0"
    alone: bool = True
    variables: Sequence[Any] | None = None
    optimizers: Sequence[Any] = ()
    as_written: bool = False


@dataclass(frozen=True)
class StepResult:
    """What a pipeline did with one update.

    Attributes:
        outcome: int64 scalar, a key of `gradrecipes.core.trace.OUTCOMES`.
        gradient_norm: float32 scalar, global norm of the unscaled gradient before clipping. Where an optimizer
            accumulates: that of the mean with which the weights are updated, and in between that of the batch.
        clip_factor: float32 scalar, what the gradient was multiplied by; 1 in a step that was skipped.
        norms: float32 `[n]`, norm of each unscaled gradient before clipping.
        finite: bool scalar, whether every entry of the gradient is finite.
        sampled: What else was measured, in a graph that samples at the end of the step.
        variables: What the gradients belong to, where that is known.
        is_update: bool scalar, whether the weights were updated: not where the step was skipped, a loss scaler left it
            out, or the gradients were only accumulated. None for always.
        is_step: bool scalar, whether it is a step of the record: an update, or a batch that was left out. None for
            always.
        rescaled: bool scalar, whether all that was wrong is a loss scale that is too high, and was lowered. None
            without a loss scaler.
    """

    outcome: tf.Tensor
    gradient_norm: tf.Tensor
    clip_factor: tf.Tensor
    norms: tf.Tensor
    finite: tf.Tensor
    sampled: SampledUpdate | None = None
    variables: Sequence[Any] | None = None
    is_update: tf.Tensor | None = None
    is_step: tf.Tensor | None = None
    rescaled: tf.Tensor | None = None


def combined(results: Sequence[StepResult]) -> StepResult:
    """Return the result of a step of several updates, whether of several optimizers or of one."""
    if len(results) == 1:
        return results[0]
    outcome = tf.reduce_max(tf.stack([result.outcome for result in results]))
    totals = tf.stack([_norm_of_step(result) for result in results])
    largest = tf.maximum(tf.reduce_max(totals), 1.0)
    is_update = _any([result.is_update for result in results])
    return StepResult(
        outcome,
        largest * tf.sqrt(tf.reduce_sum(tf.square(totals / largest))),
        tf.reduce_min(tf.stack([result.clip_factor for result in results])),
        tf.concat([result.norms for result in results], axis=0),
        tf.reduce_all(tf.stack([result.finite for result in results])),
        variables=[variable for result in results for variable in result.variables or ()] or None,
        is_update=None if is_update is None else is_update & tf.equal(outcome, APPLIED),
        is_step=_any([result.is_step for result in results]),
        rescaled=_any([result.rescaled for result in results]),
    )


def _norm_of_step(result: StepResult) -> tf.Tensor:
    return result.gradient_norm if result.is_step is None else tf.where(result.is_step, result.gradient_norm, 0.0)


def _any(conditions: Sequence[tf.Tensor | None]) -> tf.Tensor | None:
    """Return whether one of several conditions holds, None standing for one that always does."""
    return None if any(one is None for one in conditions) else tf.reduce_any(tf.stack(conditions))


def updates_weights(update: Update, outcome: tf.Tensor, norms: Norms) -> tf.Tensor:
    """Return whether a step changes the weights: it is applied, and no loss scaler leaves it out by itself."""
    applied = tf.equal(outcome, APPLIED)
    return applied if update.lower_scale is None else applied & norms.finite


def is_rescaled(update: Update, outcome: tf.Tensor, loss_scale: tf.Tensor) -> tf.Tensor | None:
    """Return whether a step was skipped for a loss scale that can still be lowered; None without a loss scaler."""
    return None if update.lower_scale is None else tf.equal(outcome, SKIPPED_GRADIENT) & (loss_scale > 1.0)


def lower_scale(update: Update, outcome: tf.Tensor) -> None:
    """Let a loss scaler lower its scale where a step was skipped for a gradient that is not finite."""
    if update.lower_scale is not None:
        too_high = tf.equal(outcome, SKIPPED_GRADIENT)
        tf.cond(too_high, lambda: _done(update.lower_scale()), lambda: tf.constant(False))


def _done(_: None) -> tf.Tensor:
    return tf.constant(True)


NO_LOSS = 3.4028234663852886e38  # the largest float32: finite, and no improvement to what saves or stops by it


@dataclass(frozen=True)
class PipelineSettings:
    """What a pipeline does.

    Args:
        clipping: A method of `gradrecipes.clipping`, or None.
        skip: Whether steps with a non-finite loss or gradient are left out.
        sigmas: Standard deviations above the mean from which on a finite loss or norm is an outlier and the step
            left out as well; None for never.
        record: Whether the readings are kept for the host.
        sample_every: Steps from one sample to the next.
        capacity: Steps that the record holds until the host takes them.
        by_batch: Whether each batch is a step of the record, by its own gradient, where the optimizer accumulates.
        xla: Whether the step is compiled by XLA.
        fused: Whether the update goes through TensorFlow's fused kernels.
    """

    clipping: Clipping | None = None
    skip: bool = False
    sigmas: float | None = None
    record: bool = False
    sample_every: int = 50
    capacity: int = 256
    by_batch: bool = False
    xla: bool = False
    fused: bool = False


_NOTHING = np.zeros(3)


class EpochNorms:
    """Keep the mean and the maximum of the gradient norm over the updates since the epoch began.

    Steps that were skipped, and batches whose gradients were only accumulated, do not count, as they do not in the
    mean of the loss.
    """

    def __init__(self):
        self._state = plain_variable(_NOTHING, dtype=tf.float64, name="epoch_norms")  # sum, maximum, count

    def add(self, result: StepResult) -> None:
        """Count a step."""
        before, norm = self._state.read_value(), tf.cast(result.gradient_norm, tf.float64)
        total = before[0] + norm
        largest = tf.where(tf.math.is_nan(total), total, tf.maximum(before[1], norm))  # XLA's maximum may pass NaN over
        state = tf.stack([total, largest, before[2] + 1.0])
        if result.is_update is not None:
            state = tf.where(result.is_update, state, before)
        self._state.assign(state)

    def logs(self) -> dict[str, tf.Tensor]:
        """Return float32 scalars by the name that the logs have for them; NaN before the first update."""
        total, largest, count = tf.unstack(self._state.read_value())
        mean, largest = total / count, largest / tf.minimum(count, 1.0)
        return {"gradient_norm": tf.cast(mean, tf.float32), "gradient_norm_max": tf.cast(largest, tf.float32)}

    def reset(self) -> None:
        """Begin a new epoch."""
        self._state.assign(_NOTHING)
