"""Ring buffers in variables: every step is written in the graph, the host copies them now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gradrecipes.compat.control_flow import rare_cond
from gradrecipes.compat.plain_variable import plain_variable
from gradrecipes.core.trace import HISTOGRAM_BINS, HISTOGRAM_HIGHEST, HISTOGRAM_LOWEST
from gradrecipes.gradients.columns import Indices, combine_max, combine_mean, combine_sum, in_columns
from gradrecipes.gradients.norms import measure_norms
from gradrecipes.gradients.packing import PackedTensors

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
        before: The weights before the update; empty tensors in a step that is not sampled. None where only steps are
            sampled whose gradient is not finite.
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
        self._sample_count = plain_variable(0, dtype=tf.int64)
        self._nonfinite_run = plain_variable(0, dtype=tf.int64)
        self._last_nonfinite = plain_variable(-2, dtype=tf.int64)
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
        self._rows.scatter_nd_update([[step % self.capacity]], row[None])
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

        def write_whole() -> tf.Tensor:
            return self._write(gradients, indices, self._weights_and_activations(updates, activations, indices))

        def write() -> tf.Tensor:
            if activations is None:
                return self.write_nonfinite(lambda: gradients, finite, indices=indices)
            return rare_cond(due, write_whole, lambda: self.write_nonfinite(lambda: gradients, finite, indices=indices))

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
            lambda: self._write(describe(), indices, tf.zeros([0])),
            lambda: tf.constant(False),
        )

    def _count_nonfinite(self, step: tf.Tensor, finite: tf.Tensor) -> tf.Tensor:
        """Return how many steps in a row, up to this one, were not finite."""
        last = self._last_nonfinite.read_value()
        run = tf.where(tf.equal(last, step - 1), self._nonfinite_run.read_value() + 1, 1)
        self._nonfinite_run.assign(tf.where(finite, self._nonfinite_run.read_value(), run))
        self._last_nonfinite.assign(tf.where(finite, last, step))
        return run

    def _write(self, details: tf.Tensor, indices: Indices | None, rest: tf.Tensor) -> tf.Tensor:
        place = self._sample_count.read_value() % self._sample_capacity
        parts = [
            in_columns(details[:, column], indices, self.gradients, combine)
            for column, combine in enumerate(GRADIENT_COLUMNS.values())
        ]
        histogram = in_columns(details[:, len(GRADIENT_COLUMNS) :], indices, self.gradients, combine_sum)
        sample = tf.concat([*parts, tf.reshape(histogram, [-1]), rest], axis=0)
        sample = tf.pad(sample, [[0, self._sample_width - sample.shape[0]]], constant_values=np.nan)
        self._samples.scatter_nd_update([[place]], sample[None])
        self._sample_steps.scatter_nd_update([[place]], self.step.read_value()[None])
        self._sample_count.assign_add(1)
        return tf.constant(True)

    def _weights_and_activations(self, updates, activations, indices: Indices | None) -> tf.Tensor:
        before = [weight for update in updates for weight in update.before]
        after = [weight for update in updates for weight in update.weights()]
        if indices is not None and len(set(indices)) < len(indices):  # a variable takes part in several updates
            first = {column: number for number, column in reversed(list(enumerate(indices)))}
            last = {column: number for number, column in enumerate(indices)}
            before, after = [before[number] for number in first.values()], [after[last[column]] for column in first]
            indices = list(first)
        measured = tf.split(measure_update(before, after), len(WEIGHT_COLUMNS))
        parts = [in_columns(values, indices, self.gradients, combine_max) for values in measured]
        return tf.concat([*parts, *_describe_activations(activations, updates[0].loss_scale)], axis=0)

    def take(self) -> Rows:
        """Copy to the host what was written since the last call; rows that were overwritten are lost."""
        step, count = int(self.step.numpy()), int(self._sample_count.numpy())
        first = max(self._taken, step - self.capacity)
        first_sample = max(self._samples_taken, count - self._sample_capacity)
        numbers = np.arange(first, step)
        rows = self._rows.numpy()[numbers % self.capacity]
        batches = numbers if self._batches is None else self._batches.numpy()[numbers % self.capacity]
        places = np.arange(first_sample, count) % self._sample_capacity
        taken = Rows(first, batches, rows, self._sample_steps.numpy()[places], self._samples.numpy()[places])
        self._taken, self._samples_taken = step, count
        return taken

    def outcome_and_loss(self, step: int) -> tuple[int, float]:
        """Return what one of the last steps came to."""
        row = dict(zip(STEP_COLUMNS, self._rows[step % self.capacity].numpy(), strict=False))
        return int(row["outcome"]), float(row["loss"])

    @property
    def counts(self) -> list[tf.Variable]:
        """What says where the next row and the next sample are written."""
        return [self.step, self._sample_count, self._nonfinite_run, self._last_nonfinite]

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

    Returns:
        float32 `[3n]`: norms before the step, means before the step, norms of the change.
    """
    before = [
        tf.ensure_shape(tf.reshape(old, tf.shape(new)), new.shape) for old, new in zip(before, after, strict=True)
    ]
    changes = [new - old for old, new in zip(before, after, strict=True)]
    packed = PackedTensors(before)
    means = packed.each(lambda rows: tf.reduce_mean(rows, axis=1))
    return tf.concat([measure_norms(packed).of_each, means, measure_norms(PackedTensors(changes)).of_each], axis=0)


def nothing_like(weight: tf.Tensor, xla: bool) -> tf.Tensor:
    """Return what stands for a copy that is not needed: empty, but under XLA, where both branches have one shape."""
    return tf.zeros_like(weight) if xla else tf.zeros([0], weight.dtype)


def copied_where(due: tf.Tensor, weights: list[tf.Tensor], xla: bool) -> list[tf.Tensor]:
    """Return copies of weights where a sample is due, to be compared with those after the update."""
    return rare_cond(
        due,
        lambda: [weight if xla else tf.reshape(weight, [-1]) for weight in weights],
        lambda: [nothing_like(weight, xla) for weight in weights],
    )


def describe_gradients(packed: PackedTensors, loss_scale: tf.Tensor) -> tf.Tensor:
    """Return float32 `[n, DETAILS]` of gradients: the `GRADIENT_COLUMNS`, then counts of log2|g|."""

    def describe(rows: tf.Tensor) -> tf.Tensor:
        largest = tf.reduce_max(tf.abs(rows), axis=1) / loss_scale
        nonfinite = tf.reduce_mean(tf.cast(~tf.math.is_finite(rows), tf.float32), axis=1)
        zero = tf.reduce_mean(tf.cast(tf.equal(rows, 0.0), tf.float32), axis=1)
        return tf.concat([tf.stack([largest, nonfinite, zero], axis=1), exponent_histogram(rows / loss_scale)], axis=1)

    return packed.each(describe)


def _describe_activations(activations: Sequence[Activation], loss_scale: tf.Tensor) -> list[tf.Tensor]:
    missing = tf.constant(np.nan, tf.float32)
    forward = [missing if output is None else root_mean_square(output) for output, _ in activations]
    backward = [missing if gradient is None else _norm(gradient) / loss_scale for _, gradient in activations]
    return [tf.stack(forward + backward)] if activations else []


def root_mean_square(tensor: tf.Tensor) -> tf.Tensor:
    """Return sqrt(mean(x²)) as a float32 scalar, right for any finite entries."""
    tensor = tf.cast(tensor, tf.float32)
    largest = tf.reduce_max(tf.abs(tensor))
    divisor = tf.where(largest > 0, largest, 1.0)
    return largest * tf.sqrt(tf.reduce_mean(tf.square(tensor / divisor)))


def _norm(tensor: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
    values = tensor.values if isinstance(tensor, tf.IndexedSlices) else tensor
    return root_mean_square(values) * tf.sqrt(tf.cast(tf.size(values), tf.float32))


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
