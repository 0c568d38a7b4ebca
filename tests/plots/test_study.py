"""The picture of a study: what stands where."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradrecipes.core.analysis.intervals import Interval
from gradrecipes.plots.study import StudyPlot

NAN = math.nan
VALUES = {"as it is": {0: NAN, 1: 0.2}, "clipped": {0: 0.7, 1: 0.8}, "lost": {0: NAN, 1: NAN}}
INTERVALS = {"as it is": Interval(-math.inf, math.inf), "clipped": Interval(0.65, 0.85), "lost": None}


def drawn(values=VALUES, direction="max", intervals=INTERVALS):
    return StudyPlot(values, intervals=intervals, name="val_accuracy", direction=direction).plot()


def lines(picture, label):
    return [line for line in picture.axes_.get_lines() if line.get_label() == label]


def test_runs_of_one_seed_are_joined_and_a_lost_one_breaks_the_line():
    picture = drawn()
    joined = [line.get_xdata() for line in picture.axes_.get_lines() if line.get_linestyle() == "-"]
    assert any(np.array_equal(line, [NAN, 0.7, NAN], equal_nan=True) for line in joined)
    assert any(np.array_equal(line, [0.2, 0.8, NAN], equal_nan=True) for line in joined)


@pytest.mark.parametrize(("direction", "side"), [("max", "left"), ("min", "right")])
def test_crosses_for_lost_runs_stand_at_the_worse_edge(direction, side):
    (crosses,) = lines(drawn(direction=direction), "diverged")
    assert len(crosses.get_xdata()) == 3
    assert (crosses.get_xdata()[0] < 0.1) == (side == "left")


def test_means_and_intervals_are_where_they_are_said_to_be():
    picture = drawn()
    (interval,) = lines(picture, "95% interval of the mean") or [
        line for line in picture.axes_.get_lines() if list(line.get_xdata()) == [0.65, 0.85]
    ]
    assert list(interval.get_xdata()) == [0.65, 0.85] and list(interval.get_ydata()) == [1, 1]
    assert any(list(line.get_xdata()) == [0.75, 0.75] for line in picture.axes_.get_lines())
    assert [text.get_text() for text in picture.axes_.get_yticklabels()] == list(VALUES)
    assert "larger is better" in picture.axes_.get_xlabel()


def test_losses_over_many_magnitudes_get_a_logarithmic_axis(tmp_path):
    values = {"a": {0: 1e-3, 1: 1e3}, "$b$ with a name that is much too long to stand beside an axis": {0: 1.0}}
    picture = drawn(values, "min", dict.fromkeys(values))
    assert picture.axes_.get_xscale() == "log"
    picture.save(tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 1000


def test_where_everything_is_lost_there_is_still_a_picture(tmp_path):
    for name, runs in (("study.svg", {0: NAN}), ("none.svg", {})):
        drawn({"a": runs}, intervals={"a": None}).save(tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="without arms"):
        StudyPlot({}, intervals={}, name="a", direction="max")
    with pytest.raises(ValueError, match="'min' or 'max'"):
        StudyPlot(VALUES, intervals=INTERVALS, name="a", direction="up")
