"""Readings of updates come to the columns of their variables, whatever the updates were."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from gradrecipes.gradients.packing import (
    MISSING,
    Columns,
    combine_max,
    combine_mean,
    combine_norms,
    combine_sum,
    in_columns,
)


def test_a_variable_has_one_column_and_a_stranger_none():
    a, b, c = (tf.Variable(0.0) for _ in range(3))
    columns = Columns([a, b, a])
    assert len(columns) == 2
    assert columns.indices([b, c, a, b]) == [1, None, 0, 1]


def test_what_is_in_order_is_left_as_it_is():
    values = tf.constant([1.0, 2.0])
    assert in_columns(values, [0, 1], 2, combine_norms) is values
    assert in_columns(values, None, 2, combine_norms) is values


def test_one_reading_a_column_is_moved_and_the_rest_is_missing():
    values = tf.constant([[1.0, np.nan], [2.0, 5.0], [3.0, 6.0]])
    moved = in_columns(values, [2, None, 0], 3, combine_sum).numpy()
    np.testing.assert_array_equal(moved, [[3.0, 6.0], [MISSING, MISSING], [1.0, np.nan]])


def test_several_readings_of_a_variable_become_one():
    values, places = tf.constant([3e30, 1.0, 4e30, np.inf, np.nan]), [0, 1, 0, 2, 3]
    np.testing.assert_allclose(
        in_columns(values, places, 5, combine_norms), [5e30, 1.0, np.inf, np.nan, MISSING], rtol=1e-6
    )
    values, places = tf.constant([3.0, 1.0, 5.0]), [0, 1, 0]
    for join, expected in [(combine_max, 5.0), (combine_mean, 4.0), (combine_sum, 8.0)]:
        np.testing.assert_allclose(in_columns(values, places, 2, join), [expected, 1.0])
