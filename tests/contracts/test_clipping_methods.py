"""What holds for every clipping method; a new one gets its row in `CONTRACT` or this file fails."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import gradrecipes as gr
from gradrecipes.gradients import clipping
from gradrecipes.gradients.clipping import StepGradients
from gradrecipes.gradients.norms import measure_norms
from gradrecipes.gradients.packing import PackedTensors

SHAPES = [(4, 3), (3,), (4, 3), (2,)]
Arrays = list[np.ndarray]


def norm64(values: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(values.astype(np.float64)))))


def global_norm64(arrays: Arrays) -> float:
    return float(np.sqrt(sum(norm64(a) ** 2 for a in arrays)))


def global_sizes(arrays: Arrays) -> np.ndarray:
    return np.array([global_norm64(arrays)])


def bounded_globally64(arrays: Arrays, c: float) -> Arrays:
    return [a.astype(np.float64) * min(1.0, c / max(global_norm64(arrays), 1e-300)) for a in arrays]


def unit_norms64(array: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.square(array.astype(np.float64)), axis=0, keepdims=True))


def fresh(method, bound: float) -> tuple:
    return method.make_state(len(SHAPES))


def after_calm_steps(method, bound: float) -> tuple:
    past, entered = method.make_state(len(SHAPES))
    past.scatter_nd_update([[0], [1]], [bound, bound])
    entered.assign(2)
    return past, entered


@dataclasses.dataclass(frozen=True)
class Contract:
    """What a method bounds, in numpy: the sizes that end at the bound, and the gradient it should give.

    Methods with a memory are held to it in the state that `state` makes; the weights all have units of norm 1.
    """

    sizes: Callable[[Arrays], np.ndarray]
    expected: Callable[[Arrays, float], Arrays]
    keeps_direction: bool = False
    bound_name: str = "max_norm"
    may_be_none: bool = False
    state: Callable[..., tuple] = fresh


CONTRACT = {
    clipping.by_global_norm: Contract(global_sizes, bounded_globally64, keeps_direction=True),
    clipping.by_norm: Contract(
        lambda arrays: np.array([norm64(a) for a in arrays]),
        lambda arrays, c: [a.astype(np.float64) * min(1.0, c / max(norm64(a), 1e-300)) for a in arrays],
    ),
    clipping.by_value: Contract(
        lambda arrays: np.abs(np.concatenate([a.ravel() for a in arrays])).astype(np.float64),
        lambda arrays, c: [np.clip(a.astype(np.float64), -c, c) for a in arrays],
        bound_name="max_value",
    ),
    clipping.adaptive: Contract(
        lambda arrays: np.concatenate([unit_norms64(a).ravel() for a in arrays]),
        lambda arrays, c: [
            a.astype(np.float64) * np.minimum(1.0, c / np.maximum(unit_norms64(a), 1e-300)) for a in arrays
        ],
        bound_name="max_ratio",
    ),
    clipping.by_percentile: Contract(
        global_sizes, bounded_globally64, keeps_direction=True, may_be_none=True, state=after_calm_steps
    ),
    clipping.by_z_score: Contract(global_sizes, bounded_globally64, keeps_direction=True, may_be_none=True),
    clipping.adaptive_by_tensor: Contract(global_sizes, bounded_globally64, keeps_direction=True),
}
FUNCTIONS = {
    clipping.by_global_norm: clipping.clip_by_global_norm,
    clipping.by_norm: clipping.clip_by_norm,
    clipping.by_value: clipping.clip_by_value,
}
every_method = pytest.mark.parametrize("method", clipping.METHODS, ids=lambda method: method.__name__)


def draw_arrays(seed: int, power: float, dtype: str = "float32", shapes=SHAPES) -> Arrays:
    random = np.random.default_rng(seed)
    kind = tf.as_dtype(dtype).as_numpy_dtype
    return [(random.uniform(-1, 1, shape) * 10.0**power).astype(kind) for shape in shapes]


def make(method, bound: float):
    return method(**{CONTRACT[method].bound_name: bound})


def step_of(tensors, *, loss_scale: float = 1.0, state: tuple = (), xla: bool = False) -> StepGradients:
    packed = PackedTensors(tensors, xla=xla)

    def weights() -> PackedTensors:
        return PackedTensors([tf.fill(t.shape, t.shape[0] ** -0.5) for t in tensors])

    return StepGradients(
        packed, measure_norms(packed), tf.constant(loss_scale), state=state, learn=False, weights=weights
    )


def clip(method, arrays: Arrays, bound: float, loss_scale: float = 1.0) -> tuple[Arrays, float]:
    one = make(method, bound)
    step = step_of([tf.constant(a) for a in arrays], loss_scale=loss_scale, state=CONTRACT[method].state(one, bound))
    clipped = one.clip(step)
    return [t.numpy() for t in clipped.scaled().unpacked()], float(clipped.factor)


def test_every_method_has_its_row():
    assert set(CONTRACT) == set(clipping.METHODS)


@every_method
@given(seed=st.integers(0, 999), power=st.floats(-30, 38), bound=st.floats(-10, 37))
def test_afterwards_the_size_is_the_bound_whatever_it_was(method, seed, power, bound):
    bound = float(np.float32(10.0**bound))
    arrays = draw_arrays(seed, power)
    after, factor = clip(method, arrays, bound)
    contract = CONTRACT[method]
    sizes = np.minimum(contract.sizes(arrays), bound)
    np.testing.assert_allclose(contract.sizes(after), sizes, rtol=1e-5)
    for mine, theirs in zip(after, contract.expected(arrays, bound), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-37)
    if global_norm64(arrays) < 3.4e38:
        np.testing.assert_allclose(factor, global_norm64(after) / global_norm64(arrays), rtol=1e-5, atol=1e-37)


@every_method
@given(seed=st.integers(0, 999), power=st.floats(-10, 38), bound=st.floats(-6, 6))
def test_clipping_twice_is_clipping_once(method, seed, power, bound):
    once, _ = clip(method, draw_arrays(seed, power), 10.0**bound)
    twice, factor = clip(method, once, 10.0**bound)
    for first, second in zip(once, twice, strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-6)
    np.testing.assert_allclose(factor, 1.0, rtol=1e-6)


@every_method
@given(
    seed=st.integers(0, 999),
    power=st.floats(-30, 37),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    room=st.sampled_from([1.001, 10.0]),
)
def test_within_the_bound_nothing_changes_to_the_bit(method, seed, power, dtype, room):
    arrays = draw_arrays(seed, power, dtype)
    after, factor = clip(method, arrays, room * float(CONTRACT[method].sizes(arrays).max()))
    assert [a.tobytes() for a in after] == [a.tobytes() for a in arrays]
    assert factor == 1.0


@every_method
def test_a_zero_gradient_stays_zero(method):
    after, factor = clip(method, [np.zeros(shape, np.float32) for shape in SHAPES], 0.1)
    assert not any(a.any() for a in after)
    assert factor == 1.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@every_method
def test_the_dtype_is_kept_and_half_precision_costs_no_more_than_its_rounding(method, dtype):
    arrays = draw_arrays(1, 3, dtype)
    after, _ = clip(method, arrays, 0.7)
    assert [a.dtype for a in after] == [a.dtype for a in arrays]
    rounding = {"float16": 2**-11, "bfloat16": 2**-8}.get(dtype, 1e-6)
    for mine, theirs in zip(after, CONTRACT[method].expected(arrays, 0.7), strict=True):
        np.testing.assert_allclose(mine.astype(np.float64), theirs, rtol=1.01 * rounding, atol=1e-6)


@every_method
@given(scale=st.sampled_from([2.0**-4, 128.0, 2.0**15]), power=st.floats(-3, 10))
def test_under_a_loss_scale_the_bound_is_that_of_the_unscaled_gradient(method, scale, power):
    arrays = draw_arrays(3, power)
    scaled, factor = clip(method, [a * np.float32(scale) for a in arrays], 0.5, loss_scale=scale)
    plain, plain_factor = clip(method, arrays, 0.5)
    for mine, theirs in zip(scaled, plain, strict=True):
        np.testing.assert_allclose(mine / scale, theirs, rtol=1e-6)
    np.testing.assert_allclose(factor, plain_factor, rtol=1e-6)


@pytest.mark.parametrize("jit_compile", [None, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "xla"])
@every_method
def test_it_is_the_same_in_a_graph_and_under_xla(method, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def in_graph(*tensors):
        clipped = one.clip(step_of(tensors, state=state, xla=bool(jit_compile)))
        return clipped.scaled().unpacked(), clipped.factor

    one = make(method, 0.3)
    state = CONTRACT[method].state(one, 0.3)

    for power in (-2, 0, 25, 37):
        arrays = draw_arrays(power, power) if power > 0 else draw_arrays(5, power)
        after, factor = in_graph(*[tf.constant(a) for a in arrays])
        eager, eager_factor = clip(method, arrays, 0.3)
        for mine, theirs in zip(after, eager, strict=True):
            np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-6)
        np.testing.assert_allclose(float(factor), eager_factor, rtol=1e-6)


@every_method
def test_slices_with_repeated_indices_are_clipped_as_the_dense_gradient(method):
    values, indices = draw_arrays(0, 1, shapes=[(4, 3)])[0], [2, 0, 2, 2]
    dense = np.zeros((5, 3), np.float32)
    np.add.at(dense, indices, values)
    slices = tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant([5, 3]))
    one = make(method, 0.5)
    state = one.make_state(2)
    clipped = one.clip(step_of([slices, tf.ones([2])], state=state)).scaled().unpacked()
    theirs = CONTRACT[method].expected([dense, np.ones(2, np.float32)], 0.5)
    np.testing.assert_allclose(tf.convert_to_tensor(clipped[0]).numpy(), theirs[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(clipped[1].numpy(), theirs[1], rtol=1e-5)


@every_method
@given(power=st.floats(-3, 30))
def test_direction_is_kept_by_the_methods_that_say_so(method, power):
    if not CONTRACT[method].keeps_direction:
        return
    arrays = draw_arrays(7, power)
    clipped, _ = clip(method, arrays, 0.01)
    after = np.concatenate([t.ravel() for t in clipped])
    before = np.concatenate([a.ravel() for a in arrays]).astype(np.float64)
    np.testing.assert_allclose(after / norm64(after), before / norm64(before), rtol=1e-5)


@pytest.mark.parametrize("method", FUNCTIONS, ids=lambda method: method.__name__)
def test_the_function_is_the_method(method):
    arrays = draw_arrays(2, 1)
    for mine, theirs in zip(
        FUNCTIONS[method]([tf.constant(a) for a in arrays], 0.3), clip(method, arrays, 0.3)[0], strict=True
    ):
        np.testing.assert_array_equal(mine.numpy(), theirs)


@pytest.mark.parametrize("norm", [1e18, 2e19, 1e20, 1e30, 1e37])
def test_where_keras_gives_nan_the_norm_is_the_bound(norm):
    def step(tensors) -> float:
        variable = keras.Variable(np.zeros(4, np.float32))
        keras_clips = isinstance(tensors, tf.Tensor)
        optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0 if keras_clips else None)
        optimizer.apply([tensors if keras_clips else tensors[0]], [variable])
        return norm64(keras.ops.convert_to_numpy(variable))

    gradient = tf.constant([0.5, -0.5, 0.5, -0.5]) * norm
    ours, keras_alone = step(clipping.clip_by_global_norm([gradient], 1.0)), step(gradient)
    np.testing.assert_allclose(ours, 1.0, rtol=1e-5)
    if norm < 1.8e19:
        np.testing.assert_allclose(keras_alone, 1.0, rtol=1e-5)
    else:
        assert np.isnan(keras_alone)


@every_method
def test_it_goes_through_keras_serialization(method):
    one = make(method, 0.25)
    other = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(one))
    assert other == one
    assert type(other) is method


@every_method
def test_it_comes_back_inside_a_saved_model(method, tmp_path):
    inputs = keras.Input((4,))
    model = gr.RecipeModel(inputs, keras.layers.Dense(2)(inputs), clipping=make(method, 0.25), skip_nonfinite=True)
    model.compile(optimizer="sgd", loss="mse")
    model.save(tmp_path / "m.keras")
    read = keras.saving.load_model(tmp_path / "m.keras")
    assert type(read) is gr.RecipeModel
    assert read.clipping == make(method, 0.25)
    assert read.skip_nonfinite is True
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(read.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf"), "1", None, True])
@every_method
def test_a_bad_bound_is_refused_and_not_mended(method, bad):
    name = CONTRACT[method].bound_name
    if bad is None and CONTRACT[method].may_be_none:
        return
    received = re.escape(f"`{name}` must be a positive number. Received: {name}={bad!r}.")
    with pytest.raises(ValueError, match=rf"{received} .*leave `.*` out"):
        make(method, bad)
