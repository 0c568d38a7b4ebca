"""The rings: what is written comes out once, in order, and a sample is numpy's own description."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from gradrecipes.core.trace import HISTOGRAM_BINS, HISTOGRAM_HIGHEST, HISTOGRAM_LOWEST
from gradrecipes.gradients.norms import measure_norms, row_moments
from gradrecipes.gradients.packing import PackedTensors
from gradrecipes.gradients.recorder import (
    EARLY_STEPS,
    MAX_NONFINITE_RUN,
    Recorder,
    SampledUpdate,
    describe_gradients,
    exponent_histogram,
    is_due,
)


def write(recorder: Recorder, value: float, *, sample: bool = False, loss_scale: float = 1.0) -> None:
    packed = PackedTensors([tf.fill([4], value), tf.zeros([3])])
    loss_scale = tf.constant(loss_scale)
    norms = measure_norms(packed)
    weights = [tf.ones([4]), tf.ones([3])]
    update = SampledUpdate(describe_gradients(packed, loss_scale), loss_scale, weights, lambda: weights)
    recorder.write_sample([update], norms.finite, activations=[] if sample else None)
    head = tf.stack([tf.convert_to_tensor(value), norms.total / loss_scale, tf.ones(()), tf.zeros(())])
    recorder.write_row(tf.concat([head, norms.of_each / loss_scale], axis=0))


def make(capacity: int = 8, sample_every: int = 4) -> Recorder:
    return Recorder(gradients=2, activations=0, sample_every=sample_every, capacity=capacity)


@settings(max_examples=12)
@given(portions=st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_the_ring_gives_every_row_once_and_of_too_many_the_last(portions):
    recorder, written = make(), 0
    for portion in portions:
        for _ in range(portion):
            write(recorder, float(written + 1))
            written += 1
        rows = recorder.take()
        kept = min(portion, recorder.capacity)
        assert rows.first == written - kept
        expected = np.arange(written - kept, written, dtype=np.float32) + 1
        np.testing.assert_array_equal(rows.steps[:, 0], expected)
        np.testing.assert_allclose(rows.steps[:, 4], 2 * expected)
        assert not recorder.take().steps.size


def test_a_sample_is_due_in_the_first_steps_and_every_so_many():
    assert [step for step in range(21) if is_due(step, 5)] == [*range(EARLY_STEPS), 5, 10, 15, 20]


def test_of_steps_that_are_not_finite_the_first_in_each_row_are_sampled():
    recorder = make(capacity=64)
    for value in [1.0, np.inf, 1.0, *[np.nan] * (MAX_NONFINITE_RUN + 3), 1e-20, np.nan]:
        write(recorder, value)
    rows = recorder.take()
    assert rows.sample_steps.tolist() == [1, *range(3, 3 + MAX_NONFINITE_RUN), 3 + MAX_NONFINITE_RUN + 4]
    sample = recorder.split_sample(rows.samples)
    assert sample["nonfinite_share"].tolist() == [[1, 0]] * len(rows.samples)
    assert sample["zero_share"].tolist() == [[0, 1]] * len(rows.samples)


def test_readings_are_unscaled():
    recorder = make()
    write(recorder, 8.0, sample=True, loss_scale=4.0)
    rows = recorder.take()
    assert rows.steps[0, 1] == pytest.approx(4.0)
    sample = recorder.split_sample(rows.samples)
    assert sample["gradient_max"].tolist() == [[2.0, 0.0]]
    assert sample["histogram"][0, 0].argmax() == 1 - HISTOGRAM_LOWEST


def test_a_recorder_writes_the_same_within_a_compiled_graph():
    recorder = make()

    @tf.function(jit_compile=True)
    def steps(value):
        write(recorder, value, sample=True)

    for value in (1.0, 2.0, np.nan):
        steps(tf.constant(value))
    rows = recorder.take()
    np.testing.assert_array_equal(rows.steps[:, 0], np.float32([1, 2, np.nan]))
    assert rows.sample_steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize("jit_compile", [None, True], ids=["graph", "xla"])
def test_the_histogram_is_numpys_of_the_binary_order(jit_compile):
    histogram = tf.function(exponent_histogram, jit_compile=jit_compile)

    @given(
        rows=arrays_of.arrays(np.float32, (2, 12), elements=st.floats(width=32, allow_subnormal=False))
        | arrays_of.arrays(np.float32, (2, 12), elements=st.integers(-45, 45).map(lambda order: 2.0**order))
    )
    def check(rows):
        counts = histogram(tf.constant(rows)).numpy()
        for row, count in zip(rows, counts, strict=True):
            finite = np.abs(row[np.isfinite(row) & (row != 0)])
            orders = np.frexp(finite)[1] - 1  # floor(log2), exactly
            edges = np.arange(HISTOGRAM_LOWEST, HISTOGRAM_HIGHEST + 1)
            inside = np.clip(orders, HISTOGRAM_LOWEST, HISTOGRAM_HIGHEST - 1)
            np.testing.assert_array_equal(count, np.histogram(inside, edges)[0])

    check()
    assert histogram(tf.zeros([1, 3])).shape == (1, HISTOGRAM_BINS)


@given(values=arrays_of.arrays(np.float32, 7, elements=st.floats(-(2.0**126), 2.0**126, width=32)))
def test_moments_of_rows_are_numpys(values):
    largest, squares, norm, mean, root_mean_square = row_moments(tf.constant(values[None]))[0].numpy()
    wide = values.astype(np.float64)
    assert largest == np.abs(values).max()
    np.testing.assert_allclose(largest * np.sqrt(np.float64(squares)), np.linalg.norm(wide), rtol=1e-5, atol=2e-38)
    np.testing.assert_allclose(norm, np.linalg.norm(wide), rtol=1e-5, atol=2e-38)
    np.testing.assert_allclose(root_mean_square, np.sqrt(np.mean(np.square(wide))), rtol=1e-5, atol=2e-38)
    if np.abs(wide).sum() < 3e38:
        np.testing.assert_allclose(mean, wide.mean(), rtol=1e-5, atol=1e-6 * largest)
