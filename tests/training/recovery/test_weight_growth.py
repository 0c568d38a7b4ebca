"""Weights that have doubled or are not finite are noticed, and nothing else is."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from gradrecipes.training.recovery.policy import WeightGrowth


class Masked(keras.layers.Layer):
    """Hold a kernel, a statistic, and a mask that is not finite from the beginning."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(4, 4), initializer="ones")
        self.statistic = self.add_weight(shape=(4,), initializer="ones", trainable=False)
        self.mask = self.add_weight(shape=(4,), initializer=keras.initializers.Constant(-np.inf), trainable=False)

    def call(self, inputs):
        return inputs @ self.kernel


@pytest.fixture
def layer():
    return Masked()


@pytest.fixture
def growth(layer):
    model = keras.Sequential([keras.Input((4,)), layer])
    growth = WeightGrowth(model)
    growth.begin()
    return growth


@pytest.mark.parametrize(
    ("times", "far", "finite"),
    [
        (1.0, False, True),
        (1.9, False, True),
        (0.0, False, True),
        (2.1, True, True),
        (1e30, True, True),
        (np.nan, True, False),
        (np.inf, True, False),
    ],
)
def test_weights(growth, layer, times, far, finite):
    layer.kernel.assign(times * np.ones((4, 4), "float32"))
    assert (growth.moved_far(), growth.state_is_finite()) == (far, finite)


def test_a_statistic_that_is_not_finite(growth, layer):
    layer.statistic.assign([1.0, 1.0, np.nan, 1.0])
    assert growth.moved_far() and not growth.state_is_finite()


def test_small_growth_adds_up_until_it_is_accepted_and_shrinking_counts(growth, layer):
    found = []
    for norm in (1.5, 2.2, 2.2):
        layer.kernel.assign(norm * np.ones((4, 4), "float32"))
        found.append(growth.moved_far())
    growth.accept()
    for norm in (4.0, 1.0, 2.1):
        layer.kernel.assign(norm * np.ones((4, 4), "float32"))
        found.append(growth.moved_far())
    assert found == [False, True, True, False, False, True]


def test_what_was_never_measured_has_moved_far(layer):
    growth = WeightGrowth(keras.Sequential([keras.Input((4,)), layer]))
    assert growth.moved_far()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(dtype):
    model = keras.Sequential([keras.Input((400,)), keras.layers.Dense(400, dtype=dtype)])
    growth = WeightGrowth(model)
    growth.begin()
    model.layers[0].kernel.assign(np.full((400, 400), 300.0))  # whose squares float16 does not hold
    assert growth.moved_far() and growth.state_is_finite()
    growth.accept()
    assert not growth.moved_far()
