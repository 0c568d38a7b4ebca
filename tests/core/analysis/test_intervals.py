"""Intervals beside scipy's, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from gradrecipes.core.analysis import intervals
from gradrecipes.core.analysis.intervals import bootstrap_interval, wilson_interval


@pytest.mark.parametrize(
    ("distribution", "truth", "count", "least"),
    [
        ("normal", 0.0, 5, 0.91),
        pytest.param("normal", 0.0, 8, 0.93, marks=pytest.mark.slow),
        ("normal", 0.0, 12, 0.93),
        ("uniform", 0.5, 5, 0.91),
    ],
)
def test_an_interval_holds_the_truth_about_as_often_as_it_says(distribution, truth, count, least, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 2000)
    draws = getattr(np.random.default_rng(0), distribution)(size=(1500, count))
    assert least <= np.mean([truth in bootstrap_interval(values) for values in draws]) <= 0.97


def test_an_interval_is_the_same_each_time_and_moves_with_the_values():
    values = np.random.default_rng(0).normal(size=20)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    there = bootstrap_interval(values + 10)
    assert there.low == pytest.approx(bootstrap_interval(values).low + 10)
    assert values.mean() + 10 in there
    assert bootstrap_interval([2.0, 2.0, 2.0]).width == 0


def test_one_value_sets_no_ends():
    interval = bootstrap_interval([0.5])
    assert (interval.low, interval.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(("events", "count"), [(0, 5), (1, 5), (5, 5), (3, 20)])
def test_the_share_is_that_of_scipy(events, count):
    theirs = scipy.stats.binomtest(events, count).proportion_ci(method="wilson")
    mine = wilson_interval(events, count)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert (wilson_interval(0, 0).low, wilson_interval(0, 0).high) == (0, 1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf], [[1.0]]])
def test_what_is_no_list_of_finite_numbers_is_refused(values):
    with pytest.raises(ValueError, match="must be one or more finite numbers"):
        bootstrap_interval(values)


def test_counts_out_of_range_are_refused():
    with pytest.raises(ValueError, match="events=6"):
        wilson_interval(6, 5)
