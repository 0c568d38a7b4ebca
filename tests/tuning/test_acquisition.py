"""Where the Bayesian search looks next, asked directly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import approx_fprime
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from gradrecipes.tuning.acquisition import GaussianProcess, evenly_spread, expected_improvement, rank_candidates


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


def some_points(seed=0, count=14, settings=3):
    random = np.random.default_rng(seed)
    points = random.uniform(size=(count, settings))
    return points, np.sin(5 * points[:, 0]) + points[:, 1] ** 2, random


def test_it_predicts_what_scikit_learn_predicts_with_the_same_parameters():
    points, values, random = some_points()
    model = GaussianProcess(points, values, random=random)
    *sides, amplitude, noise = np.exp(model._parameters)
    kernel = ConstantKernel(amplitude) * Matern(sides, nu=2.5) + WhiteKernel(noise)
    theirs = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True).fit(points, values)
    elsewhere = random.uniform(size=(50, 3))
    mean, deviation = theirs.predict(elsewhere, return_std=True)
    own_mean, own_deviation = model.predict(elsewhere)
    np.testing.assert_allclose(own_mean, mean, atol=1e-4)
    # Theirs is of an observation, noise included.
    np.testing.assert_allclose(np.sqrt(own_deviation**2 + noise * values.var()), deviation, atol=1e-4)


def test_the_gradient_of_the_posterior_is_its_derivative():
    points, values, random = some_points()
    model = GaussianProcess(points, values, unordered=np.array([False, False, True]), random=random)
    at = random.normal(size=5) - 0.5
    numerical = approx_fprime(at, lambda one: model._objective(one)[0], 1e-6)
    np.testing.assert_allclose(model._objective(at)[1], numerical, rtol=1e-3, atol=1e-3)


def test_a_setting_without_effect_gets_a_longer_side_than_one_with():
    points, values, random = some_points(count=24)
    sides = np.exp(GaussianProcess(points, values, random=random)._parameters[:3])
    assert sides[2] > 2 * sides[0]


def test_the_order_of_choices_without_order_does_not_matter():
    random = np.random.default_rng(1)
    kinds = random.integers(4, size=16)
    rate = random.uniform(size=16)
    values = np.array([0.0, 3.0, 1.0, 2.0])[kinds] + rate
    predicted = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        places = (np.array(order)[kinds] + 0.5) / 4
        model = GaussianProcess(
            np.stack([rate, places], 1),
            values,
            unordered=np.array([False, True]),
            random=np.random.default_rng(0),
        )
        elsewhere = np.array([[0.5, (place + 0.5) / 4] for place in order])
        predicted.append(np.stack(model.predict(elsewhere)))
    np.testing.assert_allclose(*predicted, rtol=1e-6)


@pytest.mark.parametrize("values", [np.zeros(4), np.full(4, 7.0), np.array([1.0, 1.0, 1.0, 1e6])])
def test_equal_and_absurd_values_and_repeated_points_are_no_error(values):
    points = np.array([[0.5], [0.5], [0.2], [0.9]])
    mean, deviation = GaussianProcess(points, values, random=np.random.default_rng(0)).predict(points)
    assert np.isfinite(mean).all() and (deviation > 0).all()


def test_without_standardization_nothing_is_expected_far_away():
    points = np.array([[0.0], [0.01], [0.02]])
    model = GaussianProcess(points, -np.ones(3), standardize=False, random=np.random.default_rng(0))
    assert model.predict(np.array([[50.0]]))[0] == pytest.approx(0.0, abs=1e-6)
