"""The record: what goes in comes out, in parts, in unions and from disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from gradrecipes.core.trace import (
    APPLIED,
    HISTOGRAM_BINS,
    OUTCOMES,
    SAMPLE_READINGS,
    SKIPPED_GRADIENT,
    SKIPPED_LOSS,
    STEP_READINGS,
    Trace,
)
from gradrecipes.core.trace.description import Description, OptimizerDescription
from gradrecipes.core.trace.trace import Event

WHOLE = ("epoch", "batch", "outcome")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
DESCRIPTIONS = st.builds(
    Description,
    model=st.text(max_size=5),
    layers=st.just(()),
    calls=st.none(),
    inputs=st.just(()),
    outputs=st.just(()),
    optimizer=st.none() | st.builds(OptimizerDescription, st.text(max_size=5), st.none() | st.floats(allow_nan=False)),
)


def float32(shape):
    return arrays_of.arrays(np.float32, shape, elements=st.floats(width=32))


@st.composite
def traces(draw, layers=None, most=5):
    """Draw a record whose steps count from 0, with any floats in it, NaN and Inf too."""
    if layers is None:
        layers = draw(st.lists(st.text(max_size=6), max_size=3))
    depth, length = len(layers), draw(st.integers(0, most))
    trace = Trace(layers, description=draw(DESCRIPTIONS))
    names = draw(st.sets(st.sampled_from([name for name in STEP_READINGS if name not in WHOLE])))
    trace.extend(
        step=np.arange(length),
        epoch=np.arange(length) // 2,
        batch=np.arange(length) % 2,
        outcome=draw(arrays_of.arrays(np.int32, length, elements=st.sampled_from(list(OUTCOMES)))),
        layer_gradient_norm=draw(float32((length, depth))),
        **{name: draw(float32(length)) for name in sorted(names)},
    )
    sampled = sorted(draw(st.sets(st.integers(0, max(0, length - 1))))) if length else []
    trace.extend_samples(
        step=np.array(sampled, np.int64),
        weight_norm=draw(float32((len(sampled), depth))),
        histogram=np.full((len(sampled), depth, HISTOGRAM_BINS), draw(st.floats(width=32)), np.float32),
    )
    for step in draw(st.lists(st.integers(0, max(0, length - 1)), max_size=2)) if length else []:
        trace.add_event(Event("skip", step, 0, step, draw(st.text(max_size=4)), {"value": draw(JSON)}))
    return trace


def assert_same(one: Trace, other: Trace, *, description: bool = True) -> None:
    assert one.layers == other.layers
    assert one.events == other.events
    if description:
        assert one.description == other.description
    for mine, theirs in ((one.steps, other.steps), (one.samples, other.samples)):
        assert list(mine) == list(theirs)
        for name, column in mine.items():
            assert column.dtype == theirs[name].dtype
            np.testing.assert_array_equal(column, theirs[name], err_msg=name)


def test_a_new_trace_has_every_reading_and_no_row():
    trace = Trace(["dense", "out"])
    assert len(trace) == len(trace.samples) == 0
    assert list(trace.steps) == ["step", *STEP_READINGS, "layer_gradient_norm"]
    assert list(trace.samples) == ["step", *SAMPLE_READINGS, "histogram"]
    assert trace.layer_gradient_norm.shape == (0, 2)
    assert trace.samples["histogram"].shape == (0, 2, HISTOGRAM_BINS)
    assert {name for name, column in trace.steps.items() if column.dtype == np.int32} == set(WHOLE)


@given(trace=traces())
def test_append_row_by_row_is_extend_at_once(trace):
    slow = Trace(trace.layers, description=trace.description)
    for row in range(len(trace)):
        slow.append(**{name: column[row] for name, column in trace.steps.items()})
    slow.extend_samples(**dict(trace.samples.items()))
    slow.events = list(trace.events)
    assert_same(slow, trace)


@given(trace=traces())
def test_saved_and_loaded_it_is_the_same_to_the_bit(trace):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "new", "run.trace")
        trace.save(path)
        assert [entry.name for entry in path.parent.iterdir()] == ["run.trace"]
        assert_same(Trace.load(path), trace)
        assert_same(Trace.load(str(path)), trace)


def test_nan_inf_signed_zero_and_the_smallest_number_survive_the_disk(tmp_path):
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4028235e38], np.float32)
    trace = Trace(description=Description(optimizer=OptimizerDescription("SGD", float("inf"))))
    trace.extend(step=range(len(special)), loss=special)
    trace.save(tmp_path / "t")
    read = Trace.load(tmp_path / "t")
    assert read.loss.tobytes() == special.tobytes()
    assert read.description.optimizer.learning_rate == float("inf")


@given(trace=traces(), start=st.integers(-7, 7), stop=st.none() | st.integers(-7, 7), stride=st.sampled_from([1, 2, 3]))
def test_a_slice_takes_rows_samples_and_events_together(trace, start, stop, stride):
    rows = slice(start, stop, stride)
    part = trace[rows]
    assert part.layers == trace.layers
    assert part.description == trace.description
    for name, column in trace.steps.items():
        np.testing.assert_array_equal(part.steps[name], column[rows])
    kept = set(trace.steps["step"][rows].tolist())
    assert part.samples["step"].tolist() == [step for step in trace.samples["step"].tolist() if step in kept]
    assert part.events == [event for event in trace.events if event.step in kept]


@given(trace=traces(), cut=st.integers(0, 5))
def test_cut_in_two_and_merged_it_is_whole_again(trace, cut):
    whole = trace[:cut].merge(trace[cut:])
    whole.events.sort(key=lambda event: event.step)
    trace.events.sort(key=lambda event: event.step)
    assert_same(whole, trace)


@given(parts=st.lists(traces(layers=["a", "b"], most=3), min_size=3, max_size=3))
def test_merging_counts_on_and_its_order_of_work_does_not_matter(parts):
    first, second, third = parts
    whole = first.merge(second).merge(third)
    assert whole.steps["step"].tolist() == list(range(len(first) + len(second) + len(third)))
    assert_same(whole, first.merge(second.merge(third)))


def test_merging_leaves_both_as_they_were_and_shifts_samples_and_events():
    first, second = (
        Trace(["a"], description=Description(batch_size=8)),
        Trace(["a"], description=Description(batch_size=9, loss="mse")),
    )
    for trace in (first, second):
        trace.extend(step=[0, 1])
        trace.extend_samples(step=[0], weight_norm=[[1.0]])
        trace.add_event(Event("skip", 1, 0, 1))
    whole = first.merge(second)
    assert whole.samples["step"].tolist() == [0, 2]
    assert [event.step for event in whole.events] == [1, 3]
    assert whole.description == Description(batch_size=8, loss="mse")
    assert second.steps["step"].tolist() == [0, 1]
    assert second.samples["step"].tolist() == [0]
    assert len(first.events) == len(second.events) == 1


def test_a_run_that_was_resumed_keeps_its_own_count():
    first, second = Trace(), Trace()
    first.extend(step=[0, 1])
    second.extend(step=[5, 6])
    assert first.merge(second).steps["step"].tolist() == [0, 1, 5, 6]


def test_other_layers_are_not_merged():
    with pytest.raises(ValueError, match=r"same layers.*1 layers \['a'\] and 2 layers \['a', 'b'\]"):
        Trace(["a"]).merge(Trace(["a", "b"]))


def test_views_and_places():
    trace = Trace(["a"])
    trace.extend(
        step=[10, 11, 12],
        epoch=[0, 0, 1],
        batch=[4, 5, 0],
        loss=[1, 2, 3],
        gradient_norm=[4, 5, 6],
        layer_gradient_norm=[[7], [8], [9]],
        outcome=[APPLIED, SKIPPED_LOSS, SKIPPED_GRADIENT],
    )
    assert trace.loss.tolist() == [1, 2, 3]
    assert trace.gradient_norm.tolist() == [4, 5, 6]
    assert trace.layer_gradient_norm.tolist() == [[7], [8], [9]]
    assert trace.skipped.tolist() == [False, True, True]
    assert trace.locate(12) == (1, 0)
    assert trace.locate(3) is None
    assert repr(trace) == "<Trace of 3 steps, 1 layers, 0 samples, 0 events, last loss 3>"
    trace.reset_tables()
    assert len(trace) == 0
    assert repr(trace) == "<Trace of 0 steps, 1 layers, 0 samples, 0 events>"


def test_no_part_shares_memory_with_the_record():
    trace = Trace(["a"])
    trace.extend(step=[0, 1], loss=[1.0, 2.0])
    trace[:].loss[:] = 0
    assert trace.loss.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda trace: trace.append(step=0, lozz=1.0), ValueError, "Unknown readings: ['lozz']. Known readings: step"),
        (lambda trace: trace.append(step=0, weight_norm=[1.0, 2.0]), ValueError, "Unknown readings: ['weight_norm']"),
        (lambda trace: trace.extend_samples(step=[0], loss=[1.0]), ValueError, "Unknown readings: ['loss']"),
        (lambda trace: trace.append(step=0, layer_gradient_norm=[1.0]), ValueError, "(1, 2). Received: (1, 1)"),
        (lambda trace: trace.extend(step=[0, 1], loss=[1.0]), ValueError, "(2,). Received: (1,)"),
        (lambda trace: trace.extend(step=0, loss=1.0), ValueError, "one row for each step"),
        (
            lambda trace: trace.extend_samples(step=[0], histogram=[[[1.0]] * 2]),
            ValueError,
            f"(1, 2, {HISTOGRAM_BINS})",
        ),
        (lambda trace: trace.append(step=0, epoch=0.5), ValueError, "'epoch' must be whole numbers"),
        (lambda trace: trace.steps["lozz"], KeyError, "Known readings"),
        (lambda trace: trace[0], TypeError, "sliced by rows"),
        (lambda trace: Trace("dense"), TypeError, "as in ['dense', 'out']. Received: 'dense'"),
        (lambda trace: Trace([3]), TypeError, "Received: [3]"),
    ],
)
def test_a_mistake_is_explained_and_nothing_is_recorded(call, error, words):
    trace = Trace(["a", "b"])
    with pytest.raises(error) as caught:
        call(trace)
    assert words in str(caught.value)
    assert len(trace) == len(trace.samples) == 0
