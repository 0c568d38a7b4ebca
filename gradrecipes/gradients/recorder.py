"""Ring buffers in variables: every step is written in the graph, the host copies them now and then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gradrecipes.compat.plain_variable import plain_variable
from gradrecipes.core.trace import HISTOGRAM_BINS, HISTOGRAM_HIGHEST, HISTOGRAM_LOWEST
from gradrecipes.gradients.columns import Places, average, in_columns, most, total
from gradrecipes.gradients.norms import measure_norms
from gradrecipes.gradients.packing import PackedTensors

EARLY_STEPS = 3  # the first steps are always sampled: an initialization shows there
LARGEST_RUN = 8  # consecutive non-finite steps that are sampled; after that there is nothing new to see
STEP_COLUMNS = ("loss", "gradient_norm", "clip_factor", "outcome")
GRADIENT_COLUMNS = ("gradient_max", "nonfinite_share", "zero_share")
TAP_COLUMNS = ("output_rms", "output_gradient_norm")
WEIGHT_COLUMNS = ("weight_norm", "weight_mean", "update_norm")


Tap = tuple[tf.Tensor | None, tf.Tensor | None]


class SampledUpdate(NamedTuple):
    """What a sample is made of, for the gradients of one update.

    Attributes:
        packed: The gradients.
        unit: float32 scalar, what they come multiplied by.
        before: The weights before the update, where they were read.
        after: The weights after the update.
    """

    packed: PackedTensors
    unit: tf.Tensor
    before: PackedTensors | None = None
    after: PackedTensors | None = None


class Rows(NamedTuple):
    """What the host took out of the rings.

    Attributes:
        first: Step of the first row.
        steps: float32 `[rows, 4 + n]`: `STEP_COLUMNS`, then the norm of each of n gradients.
        sample_steps: int64 `[samples]`.
        samples: float32 `[samples, columns]`, see `Recorder.split_sample`.
    """

    first: int
    steps: np.ndarray
    sample_steps: np.ndarray
    samples: np.ndarray


class Recorder:
    """Write a row for every step, and a wide row when a sample is due, without a word to the host.

    A sample is due in the first three steps and every `sample_every` steps: the host knows when, and runs a
    step that measures more. A step whose gradient is not finite (the first eight in a row) is sampled by the
    graph itself, without the layers' outputs.

    Args:
        gradients: How many variables have a column of their own.
        taps: How many layer outputs are measured in a sample.
        sample_every: Steps from sample to sample.
        capacity: Steps that the ring holds; `take` must be called within as many.
        steps_at_once: Steps of one execution, which are sampled all or none.
    """

    def __init__(self, *, gradients: int, taps: int, sample_every: int, capacity: int, steps_at_once: int = 1):
        self.gradients = gradients
        self.taps = taps
        self.sample_every = sample_every
        self.capacity = capacity
        sampled_at_once = capacity // max(sample_every, steps_at_once) + EARLY_STEPS
        self._sample_capacity = 2 * (sampled_at_once * steps_at_once + LARGEST_RUN)
        self._sample_width = sum(self._sample_sizes().values())
        self.step = plain_variable(0, dtype=tf.int64, name="step")
        self._rows = plain_variable(np.zeros([capacity, len(STEP_COLUMNS) + gradients], np.float32))
        self._samples = plain_variable(np.zeros([self._sample_capacity, self._sample_width], np.float32))
        self._sample_steps = plain_variable(np.zeros([self._sample_capacity], np.int64))
        self._sample_count = plain_variable(0, dtype=tf.int64)
        self._nonfinite_run = plain_variable(0, dtype=tf.int64)
        self._last_nonfinite = plain_variable(-2, dtype=tf.int64)
        self._taken = 0
        self._samples_taken = 0

    def is_due(self, step: int | tf.Tensor) -> bool | tf.Tensor:
        """Say whether a sample is due at a step, in the graph too."""
        return (step < EARLY_STEPS) | (step % self.sample_every == 0)

    def write_row(self, row: tf.Tensor) -> None:
        """Write the row of this step, float32 `[4 + n]`: `STEP_COLUMNS`, then the norms; and count the step."""
        step = self.step.read_value()
        self._rows.scatter_nd_update([[step % self.capacity]], row[None])
        self.step.assign_add(1)

    def write_sample(
        self, updates: Sequence[SampledUpdate], taps: Sequence[Tap] = (), *, places: Places | None = None
    ) -> None:
        """Write the sample of this step; call it before `write_row`.

        Args:
            updates: What was measured of each update's gradients.
            taps: (output, gradient with respect to it) of layers, where they were heard.
            places: The columns of the gradients, one update after the other; see `in_columns`.
        """
        place = self._sample_count.read_value() % self._sample_capacity
        described = zip(*map(_describe_gradients, updates), (most, average, average, total), strict=True)
        parts = [in_columns(tf.concat(of_all, axis=0), places, self.gradients, join) for *of_all, join in described]
        if updates[0].before is not None:
            weighed, places = _weigh(updates, places)
            parts += [in_columns(values, places, self.gradients, most) for values in weighed]
            parts += _describe_taps(taps, updates[0].unit)
        sample = tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)
        sample = tf.pad(sample, [[0, self._sample_width - sample.shape[0]]], constant_values=np.nan)
        self._samples.scatter_nd_update([[place]], sample[None])
        self._sample_steps.scatter_nd_update([[place]], self.step.read_value()[None])
        self._sample_count.assign_add(1)

    def write_sample_if_due(
        self, updates: Sequence[SampledUpdate], taps: Sequence[Tap], finite: tf.Tensor, *, places: Places | None = None
    ) -> None:
        """Write the sample if the step is one of those for which it is due; for a graph that serves all steps."""
        first = updates[0]
        of_first = None if places is None else places[: len(first.packed)]

        def write() -> tf.Tensor:
            self.write_sample(updates, taps, places=places)
            return tf.constant(True)

        def write_if_nonfinite() -> tf.Tensor:
            self.write_sample_if_nonfinite(first.packed, first.unit, finite, places=of_first)
            return tf.constant(False)

        tf.cond(self.is_due(self.step.read_value()), write, write_if_nonfinite)

    def write_sample_if_nonfinite(
        self, packed: PackedTensors, unit: tf.Tensor, finite: tf.Tensor, *, places: Places | None = None
    ) -> None:
        """Write the sample of a step whose gradient is not finite, unless the steps before were no better."""
        step = self.step.read_value()
        run = tf.where(tf.equal(self._last_nonfinite.read_value(), step - 1), self._nonfinite_run.read_value() + 1, 1)

        def note() -> tf.Tensor:
            self._nonfinite_run.assign(run)
            self._last_nonfinite.assign(step)
            return run

        def write() -> tf.Tensor:
            self.write_sample([SampledUpdate(packed, unit)], places=places)
            return tf.constant(True)

        run = tf.cond(finite, lambda: tf.zeros((), tf.int64), note)
        tf.cond((run > 0) & (run <= LARGEST_RUN), write, lambda: tf.constant(False))

    def take(self) -> Rows:
        """Copy to the host what was written since the last call; rows that were overwritten are lost."""
        step, count = int(self.step.numpy()), int(self._sample_count.numpy())
        first = max(self._taken, step - self.capacity)
        first_sample = max(self._samples_taken, count - self._sample_capacity)
        rows = self._rows.numpy()[np.arange(first, step) % self.capacity]
        places = np.arange(first_sample, count) % self._sample_capacity
        taken = Rows(first, rows, self._sample_steps.numpy()[places], self._samples.numpy()[places])
        self._taken, self._samples_taken = step, count
        return taken

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
            **dict.fromkeys(TAP_COLUMNS, self.taps),
        }


def weigh_update(before: PackedTensors, after: PackedTensors) -> tf.Tensor:
    """Measure weights and what a step did to them.

    Returns:
        float32 `[3n]`: norms before the step, means before the step, norms of the change.
    """
    change = after.with_flat([new - old for new, old in zip(after.flat(), before.flat(), strict=True)])
    means = before.each(lambda rows: tf.reduce_mean(rows, axis=1))
    return tf.concat([measure_norms(before).of_each, means, measure_norms(change).of_each], axis=0)


def _weigh(updates: Sequence[SampledUpdate], places: Places | None) -> tuple[list[tf.Tensor], Places | None]:
    """Weigh what each update did, or all of them together if a variable takes part in several."""
    pairs = [(update.before, update.after) for update in updates]
    if places is not None and len(set(places)) < len(places):
        first = {place: index for index, place in reversed(list(enumerate(places)))}
        last = {place: index for index, place in enumerate(places)}
        before, after = (
            [tensor for packed in side for tensor in packed.unpacked()] for side in zip(*pairs, strict=True)
        )
        places = list(first)
        pairs = [
            (
                PackedTensors([before[first[place]] for place in places]),
                PackedTensors([after[last[place]] for place in places]),
            )
        ]
    weighed = [tf.split(weigh_update(*pair), len(WEIGHT_COLUMNS)) for pair in pairs]
    return [tf.concat(of_all, axis=0) for of_all in zip(*weighed, strict=True)], places


def _describe_gradients(update: SampledUpdate) -> list[tf.Tensor]:
    packed, unit = update.packed, update.unit

    def share(predicate):
        return packed.each(lambda rows: tf.reduce_mean(tf.cast(predicate(rows), tf.float32), axis=1))

    def finite_largest(rows: tf.Tensor) -> tf.Tensor:
        return tf.reduce_max(tf.abs(rows), axis=1)

    histogram = packed.each(lambda rows: exponent_histogram(rows / unit))
    nonfinite = share(lambda rows: ~tf.math.is_finite(rows))
    zero = share(lambda rows: tf.equal(rows, 0.0))
    return [packed.each(finite_largest) / unit, nonfinite, zero, histogram]


def _describe_taps(taps: Sequence[Tap], unit: tf.Tensor) -> list[tf.Tensor]:
    missing = tf.constant(np.nan, tf.float32)
    forward = [missing if output is None else root_mean_square(output) for output, _ in taps]
    backward = [missing if gradient is None else _norm(gradient) / unit for _, gradient in taps]
    return [tf.stack(forward + backward)] if taps else []


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
