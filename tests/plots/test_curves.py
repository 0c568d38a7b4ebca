from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.core.trace import SKIPPED_LOSS, Trace
from gradrecipes.plots.canvas import envelope
from gradrecipes.plots.curves import TrainingCurves, TrialCurves
from tests.records import with_records


def curves(loss, norm=None, **others):
    return TrainingCurves(range(len(loss)), loss=loss, gradient_norm=loss if norm is None else norm, **others)


def labels_of(ax):
    return ax.get_legend_handles_labels()[1]


def test_curves_come_from_a_trace():
    trace = Trace()
    trace.extend(step=[0, 1], loss=[2, 1], gradient_norm=[8, 4], clip_factor=[0.5, 1], outcome=[0, SKIPPED_LOSS])
    drawn = TrainingCurves.from_trace(trace)
    assert drawn.clipped.tolist() == [True, False]
    assert drawn.skipped.tolist() == [False, True]
    assert labels_of(drawn.plot().axes_[1]) == ["before clipping", "after clipping", "clipped step", "skipped step"]


def test_both_axes_are_logarithmic_and_named():
    above, below = curves([3.0, 2.0, 1.0]).plot().axes_
    assert (above.get_yscale(), below.get_yscale()) == ("log", "log")
    assert above.get_ylabel() and below.get_ylabel() and below.get_xlabel() and above.get_title(loc="left")


def test_steps_that_are_not_finite_are_marked():
    above, below = curves([1.0, np.nan, np.inf], [1.0, 2.0, np.inf]).plot().axes_
    marks = {ax: next(line for line in ax.lines if line.get_label() == "not finite") for ax in (above, below)}
    assert marks[above].get_xdata().tolist() == [1, 2]
    assert marks[below].get_xdata().tolist() == [2]


def test_a_loss_below_zero_is_drawn_on_both_sides_of_zero():
    assert curves([-3.0, 0.0, 2.0], [1, 1, 1]).plot().axes_[0].get_yscale() == "symlog"


@pytest.mark.parametrize("loss", [[], [1.0], [np.nan], [0.0, 0.0], [3e38, 1e-38]], ids=str)
def test_small_and_extreme_runs_are_drawn(loss, tmp_path):
    curves(loss).save(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_run_without_a_finite_loss_says_so():
    above, below = curves([np.nan, np.nan], [1, 1]).plot().axes_
    assert "no finite value" in above.texts[0].get_text()
    assert not below.texts


@given(values=st.lists(st.floats(-1e6, 1e6) | st.just(np.nan), min_size=1, max_size=300), at_most=st.integers(1, 20))
def test_thinning_keeps_the_highest_and_the_lowest(values, at_most):
    values = np.array(values)
    chosen = envelope(values, at_most)
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) <= 2 * at_most
    if np.isfinite(values).any():
        assert np.nanmax(values[chosen]) == np.nanmax(values)
        assert np.nanmin(values[chosen]) == np.nanmin(values)


@pytest.mark.parametrize("pair", [True, False])
def test_it_draws_on_the_axes_of_the_user(pair, tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    given_axes = figure.subplots(2, 1) if pair else figure.add_subplot()
    drawn = curves([2.0, 1.0]).plot(given_axes)
    assert drawn.figure_ is figure
    drawn.save(tmp_path / "curves.svg")


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"`gradient_norm` must have one value for each of the 2 steps.*\(1,\)"):
        TrainingCurves([0, 1], loss=[1, 2], gradient_norm=[1])


VARIED = {"scaled_inputs": {"start": 4.0, "end": 1.0}, "rate_0.1": {"start": None, "end": None, "broken": 2}}


def trace_of(loss):
    trace = Trace(["dense"])
    trace.extend(step=np.arange(len(loss)), loss=loss)
    with_records(trace, {}, {"trial": {"batches": 2, "chance": 2.0, "varied": VARIED}})
    return trace


def test_each_pass_is_the_median_of_its_finite_losses():
    curves = TrialCurves([1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 7.0], batches=2)
    assert curves.passes == pytest.approx([2.0, 5.0, np.nan, 7.0], nan_ok=True)
    assert TrialCurves([1.0, 2.0, 6.0]).passes.tolist() == [2.0]


def test_the_picture_shows_losses_passes_chance_and_each_variation():
    curves = TrialCurves.from_trace(trace_of([8.0, 6.0, 900.0, np.nan]), names={"scaled_inputs": "inputs scaled"})
    losses, ends = curves.plot().axes_
    assert list(curves.varied) == ["inputs scaled", "rate_0.1"]
    assert losses.get_yscale() == "log"
    labels = [text.get_text() for text in losses.get_legend().get_texts()]
    assert labels == ["each batch", "median of a pass", "not finite", "best constant prediction"]
    assert [label.get_text() for label in ends.get_xticklabels()] == ["inputs scaled", "rate_0.1"]
    crosses = [line for line in ends.get_lines() if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[1]]


@pytest.mark.parametrize("loss", [[], [np.nan], [0.0, -1.0], [3e38, 1e-38]])
def test_odd_losses_are_drawn(loss, tmp_path):
    TrialCurves(loss, varied={"a": (1.0, 2.0), "b": None}).save(tmp_path / "trial.png")
    TrialCurves.from_trace(Trace()).save(tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="one value for each step"):
        TrialCurves([[1.0]])
