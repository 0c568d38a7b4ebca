"""Adaptive clipping against loops over units in numpy float64, layer by layer."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.gradients.clipping import StepGradients, adaptive, clip_adaptively, unit_axes_by_rank
from gradrecipes.gradients.clipping.unit_wise import unit_axes
from gradrecipes.gradients.norms import measure_norms
from gradrecipes.gradients.packing import PackedTensors

layers = keras.layers


def norm64(values) -> float:
    values = np.asarray(values, np.float64)
    return float(np.sqrt(np.sum(values**2)))


def looped64(gradient, weights, axes, *, max_ratio=0.01, epsilon=1e-3):
    """Bound unit after unit, as the paper writes it."""
    after = np.array(gradient, np.float64)
    if axes is None:
        return after
    free = [axis for axis in range(after.ndim) if axis not in axes]
    for unit in itertools.product(*[range(after.shape[axis]) for axis in free]):
        place = [slice(None)] * after.ndim
        for axis, index in zip(free, unit, strict=True):
            place[axis] = index
        place = tuple(place)
        bound = max_ratio * max(norm64(weights[place]), epsilon)
        norm = norm64(after[place])
        if norm > bound:
            after[place] *= bound / norm
    return after


def clip_in(gradients, weights, axes, *, jit_compile=None, loss_scale=1.0, method=None):
    @tf.function(jit_compile=jit_compile)
    def clip(*gradients):
        packed = PackedTensors(gradients, xla=bool(jit_compile))
        clipped = (method or adaptive()).clip(
            StepGradients(
                packed,
                measure_norms(packed),
                tf.constant(loss_scale),
                weights=lambda: PackedTensors([tf.constant(w) for w in weights]),
                unit_axes=axes,
            )
        )
        return clipped.scaled().unpacked(), clipped.factor

    after, factor = clip(*[g if isinstance(g, tf.IndexedSlices) else tf.constant(g) for g in gradients])
    return [tf.convert_to_tensor(t).numpy() for t in after], float(factor)


def draw(shapes, seed=0, power=0.0):
    random = np.random.default_rng(seed)
    return [(random.normal(size=shape) * 10.0**power).astype(np.float32) for shape in shapes]


def deep_net():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = layers.Conv2DTranspose(4, 2)(x)
    x = layers.Reshape((25, 4))(x)
    x = layers.EinsumDense("abc,cde->abde", (25, 2, 4), bias_axes="de")(x)
    x = layers.Reshape((25, 8))(x)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.GRU(4)(x)
    x = layers.Dense(4, activation="relu")(layers.Dense(4)(x))
    return keras.Model(inputs, layers.Dense(4)(x))  # shaped as the hidden ones, and left alone


@pytest.mark.parametrize("jit_compile", [None, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "xla"])
@pytest.mark.parametrize("power", [0.0, *(pytest.param(power, marks=pytest.mark.nightly) for power in (-3.0, 22.0))])
def test_every_layer_of_a_net_is_bounded_as_a_loop_over_its_units_does(jit_compile, power):
    model = deep_net()
    variables = model.trainable_variables
    gradients = draw([v.shape for v in variables], power=power)
    weights = [v.numpy() for v in variables]
    axes = unit_axes(model, variables)
    assert sum(chosen is None for chosen in axes) == 2
    expected = [looped64(*each) for each in zip(gradients, weights, axes, strict=True)]
    after, factor = clip_in(gradients, weights, axes, jit_compile=jit_compile)
    for variable, mine, theirs in zip(variables, after, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=1e-12, err_msg=variable.path)
    whole = np.concatenate([a.ravel() for a in gradients])
    np.testing.assert_allclose(factor, norm64(np.concatenate([a.ravel() for a in expected])) / norm64(whole), rtol=1e-5)
    alone = [mine.tobytes() == g.tobytes() for mine, g, a in zip(after, gradients, axes, strict=True) if a is None]
    assert alone == [True, True]


@given(
    seed=st.integers(0, 99),
    power=st.floats(-6, 37),
    weight_power=st.floats(-6, 18),
    axes=st.lists(st.sampled_from([(0,), (1,), (0, 1), (), None]), min_size=3, max_size=3),
    ratio=st.sampled_from([0.01, 0.5]),
)
def test_any_axes_in_one_stack_and_any_magnitude(seed, power, weight_power, axes, ratio):
    gradients, weights = draw([(3, 4)] * 3, seed, power), draw([(3, 4)] * 3, seed + 1000, weight_power)
    packed = PackedTensors([tf.constant(g) for g in gradients])
    clipped = adaptive(ratio).clip(
        StepGradients(
            packed,
            measure_norms(packed),
            tf.constant(1.0),
            weights=lambda: PackedTensors([tf.constant(w) for w in weights]),
            unit_axes=axes,
        )
    )
    touched = 0
    for mine, *each in zip(clipped.scaled().unpacked(), gradients, weights, axes, strict=True):
        theirs = looped64(*each, max_ratio=ratio)
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=2e-5, atol=1e-37)
        touched += not np.array_equal(theirs, each[0].astype(np.float64))
    assert (float(clipped.factor) < 1) == (touched > 0)


@pytest.mark.parametrize("axes", [(1,), (0,), (0, 1)], ids=str)
@pytest.mark.parametrize("jit_compile", [None, True], ids=["graph", "xla"])
def test_slices_are_bounded_as_the_rows_of_the_dense_gradient(axes, jit_compile):
    values, indices = draw([(4, 3)])[0], [2, 0, 2, 5]
    dense = np.zeros((6, 3), np.float32)
    np.add.at(dense, indices, values)
    weights = draw([(6, 3), (6, 3)], seed=1)  # two of a shape: they share a stack where the gradients do not
    slices = tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant([6, 3]))
    other = draw([(6, 3)], seed=2)[0]
    after, factor = clip_in([slices, other], weights, [axes, (0,)], jit_compile=jit_compile)
    expected = [looped64(dense, weights[0], axes), looped64(other, weights[1], (0,))]
    for mine, theirs in zip(after, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-12)
    whole = [np.concatenate([a.ravel() for a in arrays]) for arrays in (expected, [dense, other])]
    np.testing.assert_allclose(factor, norm64(whole[0]) / norm64(whole[1]), rtol=1e-5)


@pytest.mark.parametrize("unit", [1024.0, 2.0**-6, 1000.0])
def test_under_a_loss_scale_the_bound_is_that_of_the_unscaled_gradient(unit):
    gradients, weights = draw([(4, 3), (3,)]), draw([(4, 3), (3,)], seed=1)
    after, factor = clip_in([g * np.float32(unit) for g in gradients], weights, None, loss_scale=unit)
    plain, plain_factor = clip_in(gradients, weights, None)
    for mine, theirs in zip(after, plain, strict=True):
        np.testing.assert_allclose(mine / unit, theirs, rtol=1e-5)
    np.testing.assert_allclose(factor, plain_factor, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_keep_their_dtype(dtype):
    kind = tf.as_dtype(dtype).as_numpy_dtype
    gradients = [g.astype(kind) for g in draw([(4, 3), (4, 3)])]
    weights = [w.astype(kind) for w in draw([(4, 3), (4, 3)], seed=1)]
    after, _ = clip_in(gradients, weights, [(0,), (0, 1)])
    rounding = {"float16": 2**-10, "bfloat16": 2**-7}.get(dtype, 1e-6)
    for mine, gradient, weight, axes in zip(after, gradients, weights, [(0,), (0, 1)], strict=True):
        assert mine.dtype == gradient.dtype
        expected = looped64(gradient, weight.astype(np.float64), axes)
        np.testing.assert_allclose(mine.astype(np.float64), expected, rtol=rounding, atol=1e-6)


def test_a_spoilt_unit_does_not_touch_the_others():
    gradient = np.ones((3, 3), np.float32)
    gradient[0, 0], gradient[1, 1] = np.nan, np.inf
    (after,), factor = clip_in([gradient], [np.ones((3, 3), np.float32)], [(0,)])
    assert np.isnan(after[0, 0])
    np.testing.assert_allclose(after[:, 2], 0.01, rtol=1e-5)
    assert factor == 1.0


def test_without_a_model_vectors_count_whole_and_kernels_by_the_last_axis():
    assert [unit_axes_by_rank(rank) for rank in range(5)] == [(), (0,), (0,), (0, 1), (0, 1, 2)]
    gradients, weights = draw([(), (5,), (5, 2), (3, 3, 2, 4)]), draw([(), (5,), (5, 2), (3, 3, 2, 4)], seed=1)
    after = clip_adaptively([tf.constant(g) for g in gradients], [tf.constant(w) for w in weights])
    for mine, gradient, weight in zip(after, gradients, weights, strict=True):
        expected = looped64(gradient, weight, unit_axes_by_rank(gradient.ndim))
        np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-5)


def test_weights_that_start_at_zero_move():
    (after,) = clip_adaptively([tf.ones([4, 2])], [tf.zeros([4, 2])], max_ratio=0.1, min_weight_norm=0.5)
    np.testing.assert_allclose(tf.norm(after, axis=0), 0.05, rtol=1e-6)


def test_where_all_is_left_alone_nothing_changes():
    gradients = draw([(4, 3)])
    (after,), factor = clip_in(gradients, gradients, [None])
    assert after.tobytes() == gradients[0].tobytes()
    assert factor == 1.0


def test_without_weights_or_with_axes_of_another_model_it_says_what_to_do():
    packed = PackedTensors([tf.ones([2])])
    norms = measure_norms(packed)
    with pytest.raises(ValueError, match=r"compares the gradient with the weights.*StepGradients\(weights="):
        adaptive().clip(StepGradients(packed, norms, tf.constant(1.0)))
    with pytest.raises(ValueError, match=r"one entry for each of the 1 gradients. Received: 2 entries"):
        clip_adaptively([tf.ones([2])], [tf.ones([2])], unit_axes=[(0,), (0,)])
    with pytest.raises(ValueError, match=r"`min_weight_norm` must be a positive number"):
        adaptive(min_weight_norm=0.0)
