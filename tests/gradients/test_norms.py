"""Norms against numpy in float64, over the whole of float32."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.gradients.norms import global_norm, measure_norms
from gradrecipes.gradients.packing import STACK_BELOW, PackedTensors

DTYPES = {"float16": (-5, 4), "bfloat16": (-37, 38), "float32": (-37, 38)}  # powers of ten that entries may have
SMALLEST = 1.2e-38  # below it lie denormals, which may read as zero
SHAPES = [(5,), (5,), (3, 4), (1,), (2, 3, 2), (5,)]  # some alike, so that they are stacked


def array(seed: int, shape, power: float, dtype: str = "float32", zeros: float = 0.0) -> np.ndarray:
    """Draw entries around 10**power, some of them zero, as the dtype holds them."""
    random = np.random.default_rng(seed)
    values = np.asarray(random.uniform(-1, 1, shape) * 10.0**power)
    values[random.uniform(size=shape) < zeros] = 0.0
    return values.astype(tf.as_dtype(dtype).as_numpy_dtype)


def norm64(values: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(values.astype(np.float64)))))


def assert_norms(measured, arrays: list[np.ndarray]) -> None:
    each = np.array([norm64(values) for values in arrays])
    total = float(np.sqrt(np.sum(np.square(each))))
    denormal = SMALLEST * np.sqrt(sum(values.size for values in arrays))
    assert bool(measured.finite)
    np.testing.assert_allclose(float(measured.total), total, rtol=1e-5, atol=denormal)
    # a tensor far below its neighbours may read 0, see `measure_norms`
    readable = (each > 1e-18) | (total < 1e-12)
    np.testing.assert_allclose(measured.of_each.numpy()[readable], each[readable], rtol=1e-5, atol=denormal)


@st.composite
def gradients(draw):
    arrays = []
    for seed in range(draw(st.integers(1, 5))):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        power = draw(st.floats(*DTYPES[dtype]))
        zeros = draw(st.sampled_from([0.0, 0.5, 1.0]))
        arrays.append(array(draw(st.integers(0, 99)) + seed, shape, power, dtype, zeros))
    return arrays


@given(arrays=gradients())
def test_norms_are_those_of_numpy(arrays):
    assert_norms(measure_norms(PackedTensors([tf.constant(a) for a in arrays])), arrays)


@pytest.mark.parametrize("jit_compile", [None, True], ids=["graph", "xla"])
def test_norms_are_the_same_in_a_graph_and_under_xla(jit_compile):
    @tf.function(jit_compile=jit_compile)
    def measure(*tensors):
        return measure_norms(PackedTensors(tensors, xla=bool(jit_compile)))

    @given(powers=st.lists(st.floats(-37, 37.5), min_size=len(SHAPES), max_size=len(SHAPES)), seed=st.integers(0, 99))
    def check(powers, seed):
        arrays = [array(seed + i, shape, p) for i, (shape, p) in enumerate(zip(SHAPES, powers, strict=True))]
        assert_norms(measure(*[tf.constant(a) for a in arrays]), arrays)

    check()
    assert measure.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@given(place=st.integers(0, 2), power=st.floats(-37, 38))
def test_what_is_not_finite_is_reported_and_nothing_is_computed_from_it(bad, place, power):
    arrays = [array(i, (4,), power) for i in range(3)]
    arrays[place][2] = bad
    norms = measure_norms(PackedTensors([tf.constant(a) for a in arrays]))
    assert not bool(norms.finite)
    assert not np.isfinite(norms.total.numpy())
    assert np.isfinite(norms.of_each.numpy()).tolist() == [i != place for i in range(3)]
    assert np.isnan(norms.total.numpy()) == np.isnan(bad)


def test_a_gradient_that_vanishes_layer_by_layer_is_exact_in_each():
    arrays = [array(layer, (8, 8), -layer) for layer in range(36)]
    measured = measure_norms(PackedTensors([tf.constant(a) for a in arrays])).of_each.numpy()
    np.testing.assert_allclose(measured, [norm64(a) for a in arrays], rtol=1e-5)


def test_zeros_have_the_norm_zero_and_so_has_an_empty_tensor():
    norms = measure_norms(PackedTensors([tf.zeros([3]), tf.zeros([0, 4])]))
    assert norms.of_each.numpy().tolist() == [0, 0]
    assert float(norms.total) == 0
    assert bool(norms.finite)


def test_above_the_largest_float32_the_norm_is_inf_and_yet_finite():
    norms = measure_norms(PackedTensors([tf.fill([4], 3e38)]))
    assert bool(norms.finite)
    assert np.isinf(norms.total.numpy())


def test_where_plain_squares_overflow_tensorflow_says_inf():
    tensors = [tf.constant([3e30, 4e30])]
    assert np.isinf(tf.linalg.global_norm(tensors).numpy())
    np.testing.assert_allclose(global_norm(tensors).numpy(), 5e30, rtol=1e-6)


@pytest.mark.parametrize("xla", [False, True])
@given(indices=st.lists(st.integers(0, 3), min_size=1, max_size=8), power=st.sampled_from([0, 25]))
def test_slices_with_repeated_indices_have_the_norm_of_the_dense_gradient(xla, indices, power):
    values = array(len(indices), (len(indices), 3), power)
    slices = tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant([4, 3]))
    dense = np.zeros((4, 3))
    np.add.at(dense, indices, values.astype(np.float64))
    norms = measure_norms(PackedTensors([slices, tf.ones([2])], xla=xla))
    np.testing.assert_allclose(norms.of_each.numpy()[0], norm64(dense), rtol=1e-4)


def test_packed_and_unpacked_the_order_is_that_in_which_they_came():
    shapes = [(3,), (2, 2), (3,), (STACK_BELOW + 1,), (2, 2), (1,)]
    arrays = [array(i, shape, 0) for i, shape in enumerate(shapes)]
    packed = PackedTensors([tf.constant(a) for a in arrays])
    assert len(packed) == len(arrays)
    np.testing.assert_allclose(packed.largest().numpy(), [np.abs(a).max() for a in arrays])
    for array_in, tensor in zip(arrays, packed.unpacked(), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array_in)
