"""The pictures of a search: what they hold, and that they can be drawn of anything."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gradrecipes.core.analysis.search_trial import SearchTrial, SpaceAxis
from gradrecipes.plots.search import ParallelCoordinates, SettingImportance, StabilityMap, explained_share

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


def test_an_optimum_in_the_middle_is_seen_and_noise_is_not():
    random = np.random.default_rng(0)
    x, noise = random.uniform(-1, 1, 200), random.normal(size=200)
    bowl = x**2
    assert abs(stats.spearmanr(x, bowl)[0]) < 0.2 < 0.6 < explained_share(list(x), bowl)
    assert explained_share(list(noise), bowl) < 0.05
    assert explained_share(["a", "b"] * 100, bowl) < 0.05


def test_what_decides_all_explains_all():
    assert explained_share(["a"] * 6 + ["b"] * 6, [0.0] * 6 + [1.0] * 6) == 1.0
    assert explained_share([None] * 6 + [3] * 6, [0.0] * 6 + [1.0] * 6) == 1.0


@pytest.mark.parametrize("outcome", [[1.0] * 10, [1.0, 2.0]])
def test_too_little_to_tell_is_not_a_number(outcome):
    assert math.isnan(explained_share(list(range(len(outcome))), outcome))


def test_places_on_an_axis():
    assert SpaceAxis("rate", logarithmic=True).places([0.01, 10, None]).tolist()[:2] == [-2.0, 1.0]
    places = SpaceAxis("kind", choices=("a", "b")).places(["b", "a", "c"])
    assert places[:2].tolist() == [1.0, 0.0] and math.isnan(places[2])
