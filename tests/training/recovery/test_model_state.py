"""A ring of snapshots: the whole state and nothing but sound ones."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradrecipes.compat.tensorflow_private import plain_variable
from gradrecipes.training.recovery.model_state import SnapshotRing, is_finite
from tests.training.nets import assert_same_state, digits, seeded, with_state


def train(model, steps=2):
    x, y = digits(32 * steps)
    return model.fit(x, y, batch_size=32, shuffle=False, verbose=0).history["loss"]


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.01, use_ema=True, gradient_accumulation_steps=2),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9)),
    ],
    ids=["adam", "loss scaler"],
)
def test_from_a_snapshot_a_training_goes_on_to_the_bit(optimizer):
    one, other = (seeded(with_state, optimizer()) for _ in range(2))
    ring = SnapshotRing(one)
    train(one)
    train(other)
    assert ring.keep(2)
    assert ring.is_current()
    train(one)
    one.layers[0].kernel.assign(np.full((64, 16), np.nan))
    assert not ring.is_current()
    assert ring.restore().step == 2
    assert ring.is_current()
    train(one)
    train(other)
    assert_same_state(one, other)


def test_it_holds_the_last_few_and_drops_the_newest():
    model = seeded(with_state)
    ring, kernel = SnapshotRing(model, capacity=2), model.layers[0].kernel
    for step in range(4):
        kernel.assign(np.full((64, 16), float(step)))
        ring.keep(step)
    assert (len(ring), ring.newest.step) == (2, 3)
    ring.drop_newest()
    assert ring.restore().step == 2
    np.testing.assert_array_equal(kernel, np.full((64, 16), 2.0))


def test_what_is_not_finite_is_not_kept():
    model = seeded(with_state)
    train(model)
    ring = SnapshotRing(model)
    for variable in (model.layers[0].bias, model.optimizer.variables[-1], model.layers[1].moving_variance):
        for value in (np.nan, np.inf, -np.inf):
            assert ring.state_is_finite()
            good = np.array(variable)
            spoiled = good.copy()
            spoiled.reshape(-1)[-1] = value
            variable.assign(spoiled)
            assert not ring.state_is_finite(), (variable.path, value)
            assert not ring.keep(1)
            variable.assign(good)
    assert len(ring) == 0


def test_a_metric_may_be_what_it_likes_and_so_may_what_was_never_finite():
    class Masked(keras.layers.Layer):
        def build(self, shape):
            low = keras.initializers.Constant(-np.inf)
            self.mask = self.add_weight(shape=(3,), initializer=low, trainable=False)

        def call(self, x):
            return x

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Masked()])
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 4)), np.ones((2, 3)), verbose=0)
    model.metrics_variables[0].assign(np.nan)
    ring = SnapshotRing(model)
    assert ring.keep(0) and ring.state_is_finite()
    model.layers[0].bias.assign([0.0, np.nan, 0.0])
    assert not ring.state_is_finite()
    assert not SnapshotRing(model).keep(0)  # a weight that is to be trained has to be finite from the beginning


def test_variables_of_others_go_back_too():
    mine = plain_variable(1.0)
    ours = [mine]
    ring = SnapshotRing(seeded(with_state), also=lambda: ours)
    mine.assign(2.0)
    ring.keep(0)
    mine.assign(5.0)
    ours.append(plain_variable([3.0]))  # which came into being after the snapshot
    ours[1].assign([4.0])
    ring.restore()
    assert [float(mine), ours[1].numpy().tolist()] == [2.0, [3.0]]


values = arrays.arrays(np.float32, st.integers(0, 6), elements=st.floats(width=32, allow_nan=True, allow_infinity=True))


@given(values)
def test_finite_is_what_numpy_says_even_where_a_sum_overflows(part):
    assert is_finite(part) == np.isfinite(part).all()


def test_whole_numbers_and_short_floats_are_judged_as_well():
    import ml_dtypes

    assert not is_finite(np.array([1, np.inf], ml_dtypes.bfloat16))
    assert all(map(is_finite, (np.array([3e38, 3e38], np.float32), np.array([2**31 - 1]), np.array([True]))))


@pytest.mark.parametrize(
    "dtype, was, now, far",
    [
        ("float32", [3.0, 4.0], [3.0, 9.0], False),  # moved by 5, as large as they were
        ("float32", [3.0, 4.0], [3.0, 9.1], True),
        ("bfloat16", [3.0, 4.0], [3.0, 9.5], True),
        ("float64", [1e200, 0.0], [1.5e200, 0.0], True),  # whose squares no number holds
        ("float32", [1e-3, 0.0], [1e30, 0.0], True),
        ("float32", [3.0, 4.0], [3.0, np.nan], True),
    ],
)
def test_weights_have_moved_far_where_the_move_is_longer_than_they_are(dtype, was, now, far):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1, use_bias=False, dtype=dtype)])
    ring, kernel = SnapshotRing(model), model.layers[0].kernel
    kernel.assign(np.array(was)[:, None])
    assert not ring.moved_far()  # from nothing
    ring.keep(0)
    kernel.assign(np.array(now)[:, None])
    assert ring.moved_far() == far
