from __future__ import annotations

import numpy as np
import pytest

from gradrecipes.core.trace import SKIPPED_GRADIENT, Trace
from gradrecipes.plots.clipping import DECADES_AT_MOST, ClippedNorms


def labels_of(ax):
    return ax.get_legend_handles_labels()[1]


def make_trace(norms, factor, outcome=None):
    trace = Trace()
    trace.extend(
        step=np.arange(len(norms)), gradient_norm=norms, clip_factor=factor, outcome=outcome or [0] * len(norms)
    )
    return trace


def test_every_kind_of_step_and_both_bounds_are_in_the_legend():
    norms = [2.0, 1.0] * 12 + [np.nan]
    trace = make_trace(norms, [0.5, 1.0] * 12 + [1.0], [0] * 24 + [SKIPPED_GRADIENT])
    drawn = ClippedNorms.from_trace(trace, bound=1.0).plot()
    assert labels_of(drawn.axes_[0]) == [
        *("before clipping", "after clipping", "bound 1", "recommended bound 2"),
        *("clipped step", "not finite", "skipped step"),
    ]
    assert "12 of 24 applied steps clipped" in drawn.axes_[0].get_title(loc="left")


def test_what_was_applied_is_the_norm_after_and_nothing_else():
    drawn = ClippedNorms(
        [0, 1, 2, 3], gradient_norm=[4, 1, np.inf, 9], clip_factor=[0.5, np.nan, 0, 0.1], skipped=[0, 0, 0, 1]
    )
    np.testing.assert_array_equal(drawn.norm_after, [2, 1, np.nan, np.nan])
    assert drawn.clipped.tolist() == [True, False, False, False]


def test_the_distribution_counts_every_finite_norm_before_and_after():
    random = np.random.default_rng(0)
    norms = np.exp(random.normal(size=500))
    drawn = ClippedNorms(range(500), gradient_norm=norms, clip_factor=np.minimum(1, 1 / norms)).plot()
    before, after = (patch.get_data().values.sum() for patch in drawn.axes_[1].patches)
    assert (before, after) == (500, 500)
    assert drawn.axes_[1].get_ylim() == drawn.axes_[0].get_ylim()


def test_one_absurd_norm_does_not_flatten_the_rest():
    norms = np.full(100, 1.0)
    norms[50] = 1e35
    axes = ClippedNorms(range(100), gradient_norm=norms).plot().axes_[0]
    assert axes.get_yscale() == "log"
    assert np.log10(axes.get_ylim()[1]) < DECADES_AT_MOST + 1.5
    assert np.nanmax(axes.lines[0].get_ydata()) == pytest.approx(axes.get_ylim()[1])


@pytest.mark.parametrize("norms", [[], [np.nan], [0.0, 0.0], [1.0], [3e38, 1e-38], [1.0] * 5000], ids=len)
def test_small_spoilt_and_long_runs_are_drawn(norms, tmp_path):
    drawn = ClippedNorms.from_trace(make_trace(norms, [1.0] * len(norms)))
    drawn.save(tmp_path / "norms.png")
    assert (tmp_path / "norms.png").stat().st_size > 1000
    if not np.isfinite(norms).any() or not np.any(norms):
        assert "no finite norm" in drawn.axes_[0].texts[0].get_text()


@pytest.mark.parametrize("pair", [True, False])
def test_it_draws_on_the_axes_of_the_user(pair, tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    drawn = ClippedNorms([0, 1], gradient_norm=[1, 2]).plot(figure.subplots(1, 2) if pair else figure.add_subplot())
    assert drawn.figure_ is figure
    drawn.save(tmp_path / "norms.svg")


def test_columns_of_another_length_and_bounds_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"`clip_factor` must have one value for each of the 2 steps.*\(1,\)"):
        ClippedNorms([0, 1], gradient_norm=[1, 2], clip_factor=[1])
    with pytest.raises(ValueError, match=r"`bounds` must be positive numbers. Received: \{'mine': -1.0\}"):
        ClippedNorms([0], gradient_norm=[1], bounds={"mine": -1})
