"""The arithmetic of the range test on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from gradrecipes.core.analysis.learning_rates import (
    has_diverged,
    range_of_rates,
    read_range,
    running_mean,
    suggest_rates,
)

RATES = range_of_rates(1e-7, 10, 100)


def test_the_rates_rise_by_one_factor():
    assert RATES[0] == pytest.approx(1e-7) and RATES[-1] == pytest.approx(10) and len(RATES) == 100
    np.testing.assert_allclose(RATES[1:] / RATES[:-1], 1e8 ** (1 / 99))


@pytest.mark.parametrize("bounds", [(0, 1, 50), (1, 1, 50), (1, float("inf"), 50), (1, 2, 5), (1, 2, 50.0)])
def test_bounds_that_are_none(bounds):
    with pytest.raises(ValueError, match="Received"):
        range_of_rates(*bounds)


def test_the_running_mean_is_corrected_for_its_start():
    np.testing.assert_allclose(running_mean(np.full(7, 3.0)), 3.0)
    losses = np.random.default_rng(0).random(20)
    weights = 0.9 ** np.arange(20)[::-1]
    assert running_mean(losses)[-1] == pytest.approx(np.sum(weights * losses) / weights.sum())


def test_when_it_stops():
    assert not has_diverged([])
    assert has_diverged([1.0, np.nan]) and has_diverged([1.0, np.inf])
    assert not has_diverged([1.0] * 20 + [10.0])  # one bad batch: the mean is 1.9
    assert has_diverged([1.0] * 20 + [10.0] * 5)
    falling = list(-np.arange(20.0))
    assert not has_diverged(falling) and not has_diverged([*falling, 20.0])
    assert has_diverged([*falling, 1000.0])


def curve(start, bottom, floor=0.5):
    """Return a loss that is 2.5 up to `start`, falls in a line of log rate to `bottom`, then explodes."""
    place = np.log(RATES / start) / np.log(bottom / start)
    loss = np.where(place < 0, 2.5, 2.5 - (2.5 - floor) * np.minimum(place, 1))
    return np.where(place > 1, floor * np.exp(4 * (place - 1)), loss)


@pytest.mark.parametrize("start, bottom", [(1e-4, 1e-1), (1e-5, 1e-3), (1e-3, 1.0)])
def test_suggestions_on_a_known_curve(start, bottom):
    found = suggest_rates(RATES, curve(start, bottom))
    step = RATES[1] / RATES[0]
    third = start * (bottom / start) ** (1 / 3)
    assert third / step**2 < found.valley < third * step**2
    assert start < found.steepest < bottom
    assert bottom / 10 / step**3 < found.minimum_tenth < bottom / 10 * step**3


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_them_little(seed):
    noise = np.random.default_rng(seed).normal(scale=0.1, size=100)
    found = suggest_rates(RATES, curve(1e-4, 1e-1) + noise)
    assert 1e-4 < found.valley < 1e-2 and 3e-4 < found.steepest < 1e-1 and 3e-3 < found.minimum_tenth < 3e-2


def test_how_long_the_loss_crept_does_not_matter():
    creeping = curve(1e-4, 1e-1) - 1e-4 * np.arange(100)
    assert suggest_rates(RATES, creeping).valley == pytest.approx(
        suggest_rates(RATES, curve(1e-4, 1e-1)).valley, rel=0.5
    )


def test_the_ends_are_dropped_and_a_loss_that_is_not_finite_ends_it():
    rates, smooth = read_range(RATES, curve(1e-4, 1e-1))
    np.testing.assert_array_equal(rates, RATES[10:95])
    assert np.isfinite(smooth).all()
    losses = curve(1e-4, 1e-1)
    losses[80:] = np.nan
    np.testing.assert_array_equal(read_range(RATES, losses)[0], RATES[8:75])


@pytest.mark.parametrize(
    "losses",
    [np.linspace(1, 2, 100), np.ones(100), np.full(100, np.nan), np.r_[np.linspace(2, 1, 12), np.full(88, np.nan)]],
    ids=["rises", "flat", "nan", "short"],
)
def test_a_curve_that_says_nothing(losses):
    assert suggest_rates(RATES, losses) == (None, None, None)


def test_pure_noise_seldom_says_anything():
    random = np.random.default_rng(0)
    said = [suggest_rates(RATES, random.normal(1, 0.1, 100)).valley is not None for _ in range(400)]
    assert np.mean(said) < 0.02
