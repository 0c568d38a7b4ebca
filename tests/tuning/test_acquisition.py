"""Where the Bayesian search looks next, asked directly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from gradrecipes.tuning.acquisition import evenly_spread, expected_improvement, rank_candidates


def test_expected_improvement_is_the_integral_that_defines_it():
    for mean, deviation, best in ((0.0, 1.0, 0.3), (2.0, 0.5, 1.0), (-1.0, 0.1, 0.0)):
        integral, _ = quad(lambda v, m=mean, d=deviation, b=best: (b - v) * norm.pdf(v, m, d), mean - 9, best)
        found = expected_improvement(np.array([mean]), np.array([deviation]), best)
        assert found[0] == pytest.approx(integral, abs=1e-6)


@pytest.mark.parametrize("settings", [1, 2, 5])
def test_the_first_points_leave_no_holes(settings):
    points = np.stack([evenly_spread(one, settings, seed=3) for one in range(8)])
    assert points.shape == (8, settings)
    for column in points.T:
        assert sorted((8 * column).astype(int)) == list(range(8))
    assert not np.array_equal(points[0], evenly_spread(0, settings, seed=4))


def ranked(points, losses, severities, **settings):
    return rank_candidates(
        np.array(points, float),
        np.array(losses, float),
        np.array(severities, float),
        random=np.random.default_rng(0),
        **settings,
    )


def test_while_everything_fails_the_milder_failures_show_the_way():
    places = np.array([[0.3], [0.5], [0.6], [0.8], [0.95]])
    best = ranked(places, [np.nan] * 5, [0.2, 0.4, 0.55, 0.75, 0.9])[0]
    assert best[0] < 0.3


def test_many_failures_in_one_place_do_not_spoil_another():
    random = np.random.default_rng(1)
    lost = random.uniform(0.7, 1.0, size=(20, 1))
    alive = np.array([[0.1], [0.2], [0.3]])
    losses = np.r_[np.full(20, np.nan), 3.0, 2.0, 1.0]  # it gets better towards what is not known
    severities = np.r_[np.full(20, 0.8), np.full(3, np.nan)]
    best = ranked(np.r_[lost, alive], losses, severities)[0]
    assert 0.3 < best[0] < 0.7


def test_running_trials_are_not_proposed_again():
    places = np.array([[0.0], [0.25], [0.75], [1.0]])
    losses = (places[:, 0] - 0.5) ** 2
    first = ranked(places, losses, [np.nan] * 4)[0]
    second = ranked(places, losses, [np.nan] * 4, pending=first[None])[0]
    assert abs(first[0] - 0.5) < 0.2 and abs(second[0] - first[0]) > 0.02


def test_candidates_stand_where_a_trial_can_be():
    def snap(points):
        return np.stack([points[:, 0], (np.minimum((3 * points[:, 1]).astype(int), 2) + 0.5) / 3], 1)

    places = np.array([[0.1, 0.5 / 3], [0.4, 0.5], [0.7, 2.5 / 3], [0.2, 0.5]])
    found = ranked(places, [1.0, 2.0, 3.0, 1.5], [np.nan] * 4, unordered=np.array([False, True]), snap=snap)
    assert set(np.round(6 * found[:, 1]).astype(int)) == {1, 3, 5}
