"""The table that the record is made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.core.trace.record import Table


def table() -> Table:
    return Table({"step": ((), np.int64), "loss": ((), np.float32), "norm": ((2,), np.float32)})


def filled() -> Table:
    full = table()
    full.extend(step=[0, 1, 2], loss=[3.0, 2.0, 1.0], norm=[[1, 2], [3, 4], [5, 6]])
    return full


def test_an_empty_table_has_empty_columns_of_the_right_kind():
    empty = table()
    assert len(empty) == 0
    assert list(empty) == ["step", "loss", "norm"]
    assert {name: (column.shape, column.dtype.name) for name, column in empty.items()} == {
        "step": ((0,), "int64"),
        "loss": ((0,), "float32"),
        "norm": ((0, 2), "float32"),
    }


@given(blocks=st.lists(st.lists(st.floats(width=32), max_size=5), max_size=6), read_between=st.booleans())
def test_blocks_join_in_order_whenever_they_are_read(blocks, read_between):
    grown = table()
    for block in blocks:
        grown.extend(loss=block)
        if read_between:
            assert len(grown["loss"]) == len(grown)
    expected = np.array([value for block in blocks for value in block], np.float32)
    np.testing.assert_array_equal(grown["loss"], expected)
    assert len(grown) == len(expected) == len(grown["norm"])


def test_what_is_left_out_is_nan_and_zero_in_whole_numbers():
    part = table()
    part.extend(loss=[1.0])
    assert part["step"].tolist() == [0]
    assert np.isnan(part["norm"]).all()


def test_the_table_keeps_a_copy_of_what_it_is_given():
    values = np.array([1.0, 2.0], np.float32)
    part = table()
    part.extend(loss=values)
    values[0] = 99
    assert part["loss"].tolist() == [1, 2]


def test_numbers_too_large_for_float32_become_inf_without_a_warning():
    part = table()
    part.extend(loss=[1e39, -1e39])
    assert part["loss"].tolist() == [np.inf, -np.inf]


def test_low_precision_numbers_are_taken():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    part = table()
    part.extend(loss=np.array([1.5, np.inf], ml_dtypes.bfloat16))
    assert part["loss"].tolist() == [1.5, np.inf]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"noise": [1]}, "Unknown readings: ['noise']. Known readings: step, loss, norm"),
        ({"step": [0, 1], "loss": [1.0]}, "'loss' must have the shape (2,). Received: (1,)"),
        ({"step": [0], "norm": [[1, 2, 3]]}, "'norm' must have the shape (1, 2). Received: (1, 3)"),
        ({"step": [0], "norm": [1]}, "'norm' must have the shape (1, 2). Received: (1,)"),
        ({"norm": [[1, 2], [3]]}, "'norm' must all have one shape"),
        ({"step": 3}, "'step' must have one row for each step. Received: 3"),
        ({"step": [0.5]}, "'step' must be whole numbers that fit int64. Received: [0.5]"),
        ({"step": np.array([np.nan])}, "'step' must be whole numbers"),
        ({"step": [2**70]}, "'step' must be numbers"),
        ({"loss": ["1.0"]}, "'loss' must be real numbers. Received: ['1.0']"),
        ({"loss": [1j]}, "'loss' must be real numbers"),
        ({"loss": [object()]}, "'loss' must be numbers"),
    ],
)
def test_a_bad_row_is_refused_by_name_and_the_table_stays_as_it_was(rows, words):
    full = filled()
    with pytest.raises(ValueError) as caught:
        full.extend(**{"step": [7], **rows})
    assert words in str(caught.value)
    assert len(full) == 3
    assert all(len(column) == 3 for _, column in full.items())


def test_an_int32_column_refuses_what_would_wrap_around():
    small = Table({"batch": ((), np.int32)})
    with pytest.raises(ValueError, match="fit int32"):
        small.extend(batch=[2**31])


def test_an_unknown_column_lists_the_known_ones():
    with pytest.raises(KeyError, match="Known readings: step, loss, norm"):
        table()["lozz"]


def test_parts_unions_and_shifts_are_new_tables():
    full = filled()
    part, whole, later = full.take(np.array([2, 0])), full.joined(full), full.shifted(10)
    for other in (part, whole, later):
        for _, column in other.items():
            column[:] = 0
    assert part["loss"].shape == (2,)
    assert whole["norm"].shape == (6, 2)
    assert full["step"].tolist() == [0, 1, 2]
    assert full["loss"].tolist() == [3, 2, 1]
    assert filled().take(np.array([2, 0]))["step"].tolist() == [2, 0]
    assert filled().shifted(10)["step"].tolist() == [10, 11, 12]


def test_an_empty_table_can_be_taken_from_joined_and_shifted():
    empty = table()
    assert len(empty.take(np.array([], int))) == len(empty.shifted(5)) == 0
    assert len(empty.joined(filled())) == len(filled().joined(empty)) == 3


@pytest.mark.parametrize("row", range(8))
def test_the_last_rows_are_those_of_the_joined_column(row):
    grown = filled()
    for part in (filled(), filled()):
        grown.extend(**dict(part.items()))
    last = {name: grown.since(name, row).tolist() for name in grown}
    assert last == {name: grown[name][row:].tolist() for name in grown}
    assert len(grown.since("loss", len(grown))) == len(table().since("norm", 0)) == 0
