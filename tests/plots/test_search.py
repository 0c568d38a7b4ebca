"""The pictures of a search: what they hold, and that they can be drawn of anything."""

from __future__ import annotations

import numpy as np
import pytest

from gradrecipes.core.analysis.search_trial import SearchTrial, SpaceAxis
from gradrecipes.plots.search import ParallelCoordinates, SettingImportance, StabilityMap

RATE, BATCH, NORM = SpaceAxis("rate", logarithmic=True), SpaceAxis("batch", choices=(16, 32, 64)), SpaceAxis("norm")


def trials(count=60, edge=-1.0):
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        exponent, batch = random.uniform(-3, 1), int(random.choice([16, 32, 64]))
        failed = exponent > edge
        values = {"rate": 10**exponent, "batch": batch, **({"norm": 1.0} if batch == 16 else {})}
        score = None if failed else exponent**2
        made.append(SearchTrial(str(number), values, score, "failed" if failed else "completed"))
    return made


def test_the_frontier_lies_where_failures_begin():
    picture = StabilityMap(trials(), RATE, BATCH)
    left, right = picture._extent[:2]
    places = left + (np.arange(80) + 0.5) / 80 * (right - left)
    for row in picture.failure_share[[15, 40, 65]]:
        known = np.isfinite(row)
        assert abs(np.interp(0.5, row[known], places[known]) + 1.0) < 0.35
    picture.plot()
    assert "% of 60 trials failed" in picture.axes_.get_title(loc="left")
    assert picture.axes_.get_xlabel() == "rate"


@pytest.mark.parametrize("edge", [-9.0, 9.0])
def test_without_failures_or_successes_there_is_no_frontier(edge, tmp_path):
    picture = StabilityMap(trials(edge=edge), RATE, BATCH)
    assert np.isnan(picture.failure_share).all()
    picture.save(tmp_path / "map.png")
    ParallelCoordinates(trials(edge=edge), [RATE, BATCH, NORM]).save(tmp_path / "lines.png")
    assert len(list(tmp_path.iterdir())) == 2


def test_every_trial_is_a_line_through_all_axes():
    made = trials()
    picture = ParallelCoordinates(made, [RATE, BATCH, NORM], objective="loss").plot()
    assert picture.heights.shape == (60, 3)
    assert np.isnan(picture.heights[[one.values["batch"] != 16 for one in made], 2]).all()
    assert np.nanmin(picture.heights) == 0.0 and np.nanmax(picture.heights) == 1.0
    names = [label.get_text() for label in picture.axes_.get_xticklabels()]
    assert names == ["rate", "batch", "norm", "loss"]
    texts = [text.get_text() for text in picture.axes_.texts]
    assert "not set" in texts and "64" in texts


def test_the_setting_that_decides_comes_first():
    picture = SettingImportance(trials(), ["batch", "rate"]).plot()
    assert picture.failure["rate"] > 0.6 > 0.1 > picture.failure["batch"]
    assert [label.get_text() for label in picture.axes_.get_yticklabels()] == ["batch", "rate"]  # from below
    assert set(picture.to_dict()) == {"failure", "score"}


def test_nothing_to_show_says_so():
    for picture in (
        StabilityMap([], RATE, BATCH),
        ParallelCoordinates([], [RATE]),
        ParallelCoordinates(trials(3), []),
        SettingImportance(trials(3), ["rate"]),
    ):
        assert len(picture.plot().axes_.texts) == 1
