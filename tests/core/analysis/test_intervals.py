"""Intervals beside scipy's, and how often they hold the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from gradrecipes.core.analysis import intervals
from gradrecipes.core.analysis.intervals import (
    bootstrap_interval,
    holm,
    seeds_needed,
    sign_flip_test,
    smallest_p,
    wilson_interval,
)


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


@pytest.mark.parametrize("count", [2, 3, 5, 8, 11])
def test_every_pattern_of_signs_is_counted(count):
    values = np.random.default_rng(count).normal(0.5, size=count)
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((1.0, -1.0), repeat=count)]
    assert sign_flip_test(values) == pytest.approx(np.mean(np.array(sums) >= abs(values.sum()) * (1 - 1e-12)))


@pytest.mark.parametrize("count", [4, 6, 9, 12])
def test_with_an_infinite_difference_it_is_wilcoxons_test(count):
    values = np.random.default_rng(count).normal(0.5, size=count)
    values[0] = math.inf
    theirs = scipy.stats.wilcoxon(np.where(np.isinf(values), 1e9, values), method="exact")
    assert sign_flip_test(values) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("values", [[-1.0, 1.7, 2.1, -0.8, -0.7, -1.3], [0.1, 0.2, -0.3], [0.7, -0.6, -0.1, 0.0]])
def test_sums_that_cancel_up_to_rounding_are_the_least_extreme(values):
    assert sign_flip_test(values) == 1.0


def test_many_pairs_are_drawn_and_agree_with_the_normal_theory():
    values = np.random.default_rng(0).normal(0.3, size=40)
    assert sign_flip_test(values) == pytest.approx(scipy.stats.ttest_1samp(values, 0.0).pvalue, abs=0.01)
    assert sign_flip_test(values) == sign_flip_test(values)


def test_it_cannot_fall_below_what_few_pairs_allow():
    for count in (2, 5, 8):
        assert sign_flip_test(np.linspace(1, 2, count)) == pytest.approx(smallest_p(count))
        assert sign_flip_test([math.inf] * count) == pytest.approx(smallest_p(count))
    assert sign_flip_test([0.0, 0.0]) == 1


def test_where_nothing_differs_it_cries_wolf_no_more_often_than_it_says():
    random = np.random.default_rng(0)
    alarms = [sign_flip_test(random.standard_t(2, size=8)) <= 0.05 for _ in range(1500)]
    assert np.mean(alarms) < 0.065


def test_holm_by_hand_and_below_bonferroni():
    assert holm([0.01, 0.02, 0.03, 0.5]) == pytest.approx([0.04, 0.06, 0.06, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    p_values = np.random.default_rng(0).uniform(size=6) / 10
    adjusted = holm(p_values)
    assert all(p <= q <= min(1.0, 6 * p) for p, q in zip(p_values, adjusted, strict=True))
    assert np.argsort(adjusted, kind="stable").tolist() == np.argsort(p_values).tolist()


@pytest.mark.parametrize(("effect", "tests"), [(1.2, 1), pytest.param(0.8, 1, marks=pytest.mark.slow), (1.4, 4)])
def test_with_the_seeds_it_asks_for_the_test_decides_four_times_in_five(effect, tests):
    pilot = np.array([-1.0, 0.0, 1.0]) + effect  # mean `effect`, standard deviation 1
    count = seeds_needed(pilot, tests=tests)
    random = np.random.default_rng(0)
    decided = [sign_flip_test(random.normal(effect, size=count)) <= 0.05 / tests for _ in range(400)]
    assert 0.72 < np.mean(decided) < 0.92, count


def test_a_clear_case_needs_as_many_as_the_exact_test_needs_at_all():
    clear = [1.0, 1.01, 1.02]
    assert seeds_needed(clear) == 6 and smallest_p(6) <= 0.05 < smallest_p(5)
    assert seeds_needed(clear, tests=4) == 8
    assert seeds_needed([1.0, 1.0, 1.0]) == 6
    assert seeds_needed([math.inf, math.inf, 0.1]) >= 6


def test_where_nothing_is_known_it_says_nothing():
    assert seeds_needed([0.1]) is None
    assert seeds_needed([0.1, -0.1]) is None
    assert seeds_needed([0.1, -0.0999, 0.0001]) is None


@pytest.mark.parametrize("differences", [[], [math.nan], [[1.0]]])
def test_what_is_no_difference_is_refused(differences):
    with pytest.raises(ValueError, match="must be one or more numbers"):
        sign_flip_test(differences)
