"""Ring buffers in variables: every step is written in the graph, the host copies them now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import host_value, plain_variable, rare_cond, shared_function
from gradrecipes.core.trace import HISTOGRAM_BINS, HISTOGRAM_HIGHEST, HISTOGRAM_LOWEST
from gradrecipes.gradients.norms import compare_rows, row_moments
from gradrecipes.gradients.packing import (
    Indices,
    PackedTensors,
    combine_max,
    combine_mean,
    combine_sum,
    in_columns,
    stack_specs,
    values_of,
)

MAX_STEPS = 2**62  # no training has as many, and an int64 holds it
EARLY_STEPS = 3  # the first steps are always sampled: an initialization shows there
MAX_NONFINITE_RUN = 8  # consecutive non-finite steps that are sampled; after that there is nothing new to see
STEP_COLUMNS = ("loss", "gradient_norm", "clip_factor", "outcome")
GRADIENT_COLUMNS = {"gradient_max": combine_max, "nonfinite_share": combine_mean, "zero_share": combine_mean}
ACTIVATION_COLUMNS = ("output_rms", "output_gradient_norm")
WEIGHT_COLUMNS = ("weight_norm", "weight_mean", "update_norm")
DETAILS = len(GRADIENT_COLUMNS) + HISTOGRAM_BINS  # numbers of a variable that need more than its norm

Activation = tuple[tf.Tensor | None, tf.Tensor | None]


class SampledUpdate(NamedTuple):
    """What a sample is made of, for the gradients of one update.

    Attributes:
        details: float32 `[n, DETAILS]`, what `describe_gradients` returned; zeros in a step that is not sampled.
        loss_scale: float32 scalar, what the gradients come multiplied by.
        before: The weights before the update, stacked; empty tensors in a step that is not sampled. None where only
            steps are sampled whose gradient is not finite.
        weights: Reads the weights as they are at the time of the call.
    """

    details: tf.Tensor
    loss_scale: tf.Tensor
    before: list[tf.Tensor] | None = None
    weights: Callable[[], list[tf.Tensor]] | None = None


class Rows(NamedTuple):
    """What the host took out of the rings.

    Attributes:
        first: Step of the first row.
        batches: int64 `[rows]`, the number of each row's batch, the last of its update where an optimizer accumulates.
        steps: float32 `[rows, 4 + n]`: `STEP_COLUMNS`, then the norm of each of n gradients.
        sample_steps: int64 `[samples]`.
        samples: float32 `[samples, columns]`, see `Recorder.split_sample`.
    """

    first: int
    batches: np.ndarray
    steps: np.ndarray
    sample_steps: np.ndarray
    samples: np.ndarray


def is_due(step: int | tf.Tensor, sample_every: int) -> bool | tf.Tensor:
    """Return whether a sample is due at a step, in the graph too."""
    return (step < EARLY_STEPS) | (step % min(sample_every, MAX_STEPS) == 0)


class Recorder:
    """Write a row for every step, and a wide row when a sample is due, without a host synchronization.

    A sample is due in the first three steps and every `sample_every` steps. A step whose gradient is not finite (the
    first eight in a row) is sampled too, without weights and activations where none was due.

    Args:
        gradients: How many variables have a column of their own.
        activations: How many layer outputs are measured in a sample.
        sample_every: Steps from sample to sample.
        capacity: Steps that the ring holds; `take` must be called within as many.
        step: int64, the count of steps, if it is there already.
    """

    def __init__(
        self,
        *,
        gradients: int,
        activations: int,
        sample_every: int,
        capacity: int,
        step: tf.Variable | None = None,
    ):
        self.gradients = gradients
        self.activations = activations
        self.sample_every = sample_every
        self.capacity = capacity
        self._sample_capacity = 2 * (capacity // sample_every + EARLY_STEPS + MAX_NONFINITE_RUN)
        self._sample_width = sum(self._sample_sizes().values())
        self.step = plain_variable(0, dtype=tf.int64, name="step") if step is None else step
        self._rows = plain_variable(np.zeros([capacity, len(STEP_COLUMNS) + gradients], np.float32))
        self._samples = plain_variable(np.zeros([self._sample_capacity, self._sample_width], np.float32))
        self._sample_steps = plain_variable(np.zeros([self._sample_capacity], np.int64))
        # How many samples were written, how many steps in a row were not finite, and the last of them: one variable,
        # as each that a step refers to costs some 3 microseconds.
        self._sampling = plain_variable([0, 0, -2], dtype=tf.int64)
        self._batches: tf.Variable | None = None
        self._taken = 0
        self._samples_taken = 0

    def write_row(self, row: tf.Tensor, *, batch: tf.Tensor | None = None) -> None:
        """Write the row of this step, and count the step.

        Args:
            row: float32 `[4 + n]`: `STEP_COLUMNS`, then the norms.
            batch: int64 scalar, the number of its batch; None where each step is one batch.
        """
        step = self.step.read_value()
        if batch is not None:
            if self._batches is None:
                self._batches = plain_variable(np.zeros([self.capacity], np.int64))
            self._batches.scatter_nd_update([[step % self.capacity]], batch[None])
        self._rows.scatter_update(tf.IndexedSlices(row, step % self.capacity))
        self.step.assign_add(1)

    def write_sample(
        self,
        updates: Sequence[SampledUpdate],
        finite: tf.Tensor,
        *,
        activations: Sequence[Activation] | None = None,
        indices: Indices | None = None,
    ) -> None:
        """Write the sample of this step if one is due or its gradient is not finite; call it before `write_row`.

        Args:
            updates: What was measured of each update's gradients.
            finite: bool scalar, whether all gradients are finite.
            activations: (output, gradient with respect to it) of layers; None in a graph where no sample is due.
            indices: The columns of the gradients, one update after the other; see `in_columns`.
        """
        step = self.step.read_value()
        due = tf.constant(False) if activations is None else is_due(step, self.sample_every)
        gradients = tf.concat([update.details for update in updates], axis=0)

        def write() -> tf.Tensor:
            run = self._count_nonfinite(step, finite | due)
            written = due | (~finite & (run <= MAX_NONFINITE_RUN))
            if activations is None:
                return self._write(gradients, indices, tf.zeros([0]), written)
            numbers = len(WEIGHT_COLUMNS) * self.gradients + len(ACTIVATION_COLUMNS) * len(activations)
            rest = rare_cond(
                due,
                lambda: self._weights_and_activations(updates, activations, indices),
                lambda: tf.fill([numbers], np.float32(np.nan)),
            )
            return self._write(gradients, indices, rest, written)

        rare_cond(due | ~finite, write, lambda: tf.constant(False))

    def write_nonfinite(
        self, describe: Callable[[], tf.Tensor], finite: tf.Tensor, *, indices: Indices | None = None
    ) -> tf.Tensor:
        """Write the sample of a step whose gradient is not finite, unless the steps before were no better.

        Args:
            describe: Makes float32 `[n, DETAILS]`, see `describe_gradients`.
            finite: bool scalar, whether all gradients are finite.
            indices: See `write_sample`.

        Returns:
            bool scalar, whether it was written.
        """
        run = self._count_nonfinite(self.step.read_value(), finite)
        return rare_cond(
            ~finite & (run <= MAX_NONFINITE_RUN),
            lambda: self._write(describe(), indices, tf.zeros([0]), tf.constant(True)),
            lambda: tf.constant(False),
        )

    def _count_nonfinite(self, step: tf.Tensor, finite: tf.Tensor) -> tf.Tensor:
        """Return how many steps in a row, up to this one, were not finite."""
        before = self._sampling.read_value()
        count, run, last = tf.unstack(before)
        run = tf.where(tf.equal(last, step - 1), run + 1, 1)
        self._sampling.assign(tf.where(finite, before, tf.stack([count, run, step])))
        return run

    def _write(self, details: tf.Tensor, indices: Indices | None, rest: tf.Tensor, written: tf.Tensor) -> tf.Tensor:
        """Write a sample; one that does not count as `written` leaves its place to the next."""
        place = self._sampling.read_value()[0] % self._sample_capacity
        parts = [
            in_columns(details[:, column], indices, self.gradients, combine)
            for column, combine in enumerate(GRADIENT_COLUMNS.values())
        ]
        histogram = in_columns(details[:, len(GRADIENT_COLUMNS) :], indices, self.gradients, combine_sum)
        sample = tf.concat([*parts, tf.reshape(histogram, [-1]), rest], axis=0)
        sample = tf.pad(sample, [[0, self._sample_width - sample.shape[0]]], constant_values=np.nan)
        self._samples.scatter_nd_update([[place]], sample[None])
        self._sample_steps.scatter_nd_update([[place]], self.step.read_value()[None])
        self._sampling.assign_add(tf.stack([tf.cast(written, tf.int64), 0, 0]))
        return written

    def _weights_and_activations(self, updates, activations, indices: Indices | None) -> tf.Tensor:
        measured = tf.concat([measure_update(update.before, update.weights()) for update in updates], axis=0)
        if indices is not None:  # of a variable that takes part in several updates: from before the first to the end
            first = {column: number for number, column in reversed(list(enumerate(indices)))}
            indices = [column if first[column] == number else None for number, column in enumerate(indices)]
        of_columns = in_columns(measured, indices, self.gradients, combine_max)
        weights = tf.reshape(tf.transpose(of_columns), [-1])
        return tf.concat([weights, *_describe_activations(activations, updates[0].loss_scale)], axis=0)

    def take(self) -> Rows:
        """Copy to the host what was written since the last call; rows that were overwritten are lost."""
        step, count = int(self.step.numpy()), int(self._sampling.numpy()[0])
        first = max(self._taken, step - self.capacity)
        first_sample = max(self._samples_taken, count - self._sample_capacity + 1)  # the next place may be in use
        numbers = np.arange(first, step)
        rows = self._rows.numpy()[numbers % self.capacity]
        batches = numbers if self._batches is None else self._batches.numpy()[numbers % self.capacity]
        places = np.arange(first_sample, count) % self._sample_capacity
        taken = Rows(first, batches, rows, self._sample_steps.numpy()[places], self._samples.numpy()[places])
        self._taken, self._samples_taken = step, count
        return taken

    def results_since(self, first: int) -> np.ndarray:
        """Return the `STEP_COLUMNS` of the steps from `first` on, float32 `[steps, 4]`; not those overwritten."""
        step = int(host_value(self.step))
        places = np.arange(max(first, step - self.capacity), step) % self.capacity
        return self._rows.sparse_read(places).numpy()[:, : len(STEP_COLUMNS)]

    def result_of(self, step: int) -> tuple[int, float, float]:
        """Return what one of the last steps came to: its outcome, its loss and its gradient norm."""
        row = dict(zip(STEP_COLUMNS, self._rows[step % self.capacity].numpy(), strict=False))
        return int(row["outcome"]), float(row["loss"]), float(row["gradient_norm"])

    @property
    def counts(self) -> list[tf.Variable]:
        """What says where the next row and the next sample are written."""
        return [self.step, self._sampling]

    def split_sample(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """Name the columns of samples: float32 `[samples, n]` each, `histogram` `[samples, n, bins]`."""
        sizes = self._sample_sizes()
        parts = dict(zip(sizes, np.split(samples, np.cumsum(list(sizes.values()))[:-1], axis=1), strict=True))
        parts["histogram"] = parts["histogram"].reshape(len(samples), self.gradients, HISTOGRAM_BINS)
        return parts

    def _sample_sizes(self) -> dict[str, int]:
        return {
            **dict.fromkeys(GRADIENT_COLUMNS, self.gradients),
            "histogram": self.gradients * HISTOGRAM_BINS,
            **dict.fromkeys(WEIGHT_COLUMNS, self.gradients),
            **dict.fromkeys(ACTIVATION_COLUMNS, self.activations),
        }


def measure_update(before: Sequence[tf.Tensor], after: Sequence[tf.Tensor]) -> tf.Tensor:
    """Measure weights and how a step changed them.

    Args:
        before: What `copied_where` returned.
        after: The n weights after the step.

    Returns:
        float32 `[n, 3]`: norms before the step, means before the step, norms of the change.
    """
    packed = PackedTensors(after)
    measured = []
    for group, old, new in zip(packed.members, before, packed.flat(), strict=True):
        old, new = tf.reshape(old, [len(group), -1]), tf.reshape(new, [len(group), -1])
        measured.append(compare_rows(tf.cast(old, tf.float32), tf.cast(new - old, tf.float32)))
    measured = packed.in_order(measured)
    measured.set_shape([len(packed), len(WEIGHT_COLUMNS)])
    return measured


def no_copies(variables: Sequence[Any], xla: bool) -> list[tf.Tensor]:
    """Return what stands for copies that are not needed: empty, but under XLA, where both branches have one shape."""
    return [tf.zeros(spec.shape if xla else [0], spec.dtype) for spec in stack_specs(variables)]


def copied_where(
    due: tf.Tensor, weights: Callable[[], list[tf.Tensor]], variables: Sequence[Any], xla: bool
) -> list[tf.Tensor]:
    """Return copies of weights, stacked, where a sample is due, to be compared with those after the update."""

    def copies() -> list[tf.Tensor]:
        stacks = PackedTensors(weights()).flat()
        return stacks if xla else [tf.reshape(stack, [-1]) for stack in stacks]

    return list(rare_cond(due, copies, lambda: no_copies(variables, xla)))


def describe_gradients(packed: PackedTensors, loss_scale: tf.Tensor) -> tf.Tensor:
    """Return float32 `[n, DETAILS]` of gradients: the `GRADIENT_COLUMNS`, then counts of log2|g|."""
    details = packed.each(lambda rows: _describe_rows(rows, loss_scale))
    details.set_shape([len(packed), DETAILS])
    return details


@shared_function(tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([], tf.float32))
def _describe_rows(rows: tf.Tensor, loss_scale: tf.Tensor) -> tf.Tensor:
    largest = tf.reduce_max(tf.abs(rows), axis=1) / loss_scale
    nonfinite = tf.reduce_mean(tf.cast(~tf.math.is_finite(rows), tf.float32), axis=1)
    zero = tf.reduce_mean(tf.cast(tf.equal(rows, 0.0), tf.float32), axis=1)
    return tf.concat([tf.stack([largest, nonfinite, zero], axis=1), exponent_histogram(rows / loss_scale)], axis=1)


def _describe_activations(activations: Sequence[Activation], loss_scale: tf.Tensor) -> list[tf.Tensor]:
    """Return float32 `[2n]`: the root mean square of each output, then the norm of the gradient that arrived there."""
    outputs, gradients = [output for output, _ in activations], [gradient for _, gradient in activations]
    known = [values_of(tensor) for tensor in [*outputs, *gradients] if tensor is not None]
    if not known:
        return [tf.fill([2 * len(activations)], np.float32(np.nan))] if activations else []
    moments = PackedTensors(known).each(row_moments)
    forward = sum(output is not None for output in outputs)
    found = tf.concat([moments[:forward, 4], moments[forward:, 2] / loss_scale], axis=0)
    found.set_shape([len(known)])
    if len(known) == 2 * len(activations):
        return [found]
    places = iter(range(len(known)))
    chosen = [len(known) if tensor is None else next(places) for tensor in [*outputs, *gradients]]
    return [tf.gather(tf.concat([found, [np.float32(np.nan)]], axis=0), chosen)]


def exponent_histogram(rows: tf.Tensor) -> tf.Tensor:
    """Count the entries of each row by their binary order of magnitude, floor(log2|g|).

    Args:
        rows: float32 `[k, entries]`. Zeros and non-finite entries are not counted.

    Returns:
        float32 `[k, bins]`, bins of one binary order; the outermost hold whatever lies beyond them.
    """
    magnitude = tf.abs(rows)
    counted = (magnitude > 0) & tf.math.is_finite(magnitude)
    orders = tf.bitwise.right_shift(tf.bitcast(magnitude, tf.int32), 23) - 127  # exact, as a logarithm is not
    bins = tf.clip_by_value(orders, HISTOGRAM_LOWEST, HISTOGRAM_HIGHEST - 1) - HISTOGRAM_LOWEST
    places = bins + tf.range(tf.shape(rows)[0])[:, None] * HISTOGRAM_BINS
    counts = tf.math.unsorted_segment_sum(
        tf.reshape(tf.cast(counted, tf.float32), [-1]),
        tf.reshape(places, [-1]),
        tf.shape(rows)[0] * HISTOGRAM_BINS,
    )
    return tf.reshape(counts, [-1, HISTOGRAM_BINS])
