"""The arithmetic of the range test on curves whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradrecipes.core.analysis.learning_rates import (
    KNOWN,
    has_diverged,
    range_of_rates,
    read_range,
    running_mean,
    stability_limit,
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


RATE, STEPS = 0.05, 4000


def plain(momentum: float, nesterov: bool):
    def update(memory, gradient):
        memory = momentum * memory - RATE * gradient
        return memory, momentum * memory - RATE * gradient if nesterov else memory

    return update


def averaged(beta: float, look_ahead: bool):
    def update(memory, gradient):
        memory = beta * memory + (1 - beta) * gradient
        direction = beta * memory + (1 - beta) * gradient if look_ahead else memory
        return memory, -RATE * direction

    return update


CASES = [
    ({"name": "SGD"}, plain(0.0, False)),
    ({"name": "SGD", "momentum": 0.9}, plain(0.9, False)),
    ({"name": "SGD", "momentum": 0.5, "nesterov": True}, plain(0.5, True)),
    ({"name": "SGD", "momentum": 0.95, "nesterov": True}, plain(0.95, True)),
    ({"name": "RMSprop"}, plain(0.0, False)),
    ({"name": "RMSprop", "momentum": 0.7}, plain(0.7, False)),
    ({"name": "Adagrad"}, plain(0.0, False)),
    ({"name": "Adam"}, averaged(0.9, False)),
    ({"name": "AdamW", "beta_1": 0.8}, averaged(0.8, False)),
    ({"name": "Adamax", "beta_1": 0.0}, averaged(0.0, False)),
    ({"name": "Nadam", "beta_1": 0.9}, averaged(0.9, True)),
    ({"name": "Nadam", "beta_1": 0.5}, averaged(0.5, True)),
]


def size_after(update, curvature: float) -> float:
    weight, memory, largest = 1.0, 0.0, 0.0
    for step in range(STEPS):
        memory, change = update(memory, curvature * weight)
        weight += change
        if abs(weight) > 1e6:
            return math.inf
        largest = max(largest, abs(weight)) if step > STEPS - 10 else 0.0
    return largest


@pytest.mark.parametrize("optimizer, update", CASES)
def test_the_limit_is_where_a_quadratic_turns_from_shrinking_to_growing(optimizer, update):
    limit = stability_limit(optimizer, RATE).limit
    assert size_after(update, 0.98 * limit) < 0.5
    assert size_after(update, 1.02 * limit) > 10


@pytest.mark.parametrize("factor, grows", [(0.97, False), (1.03, True)])
@pytest.mark.parametrize("arguments", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_keras_own_optimizer_turns_at_the_limit(arguments, factor, grows):
    import keras

    optimizer = keras.optimizers.SGD(RATE, **arguments)
    name = {"name": "SGD", **arguments}
    curvature = factor * stability_limit(name, RATE).limit
    weight = keras.Variable(1.0)
    optimizer.build([weight])
    sizes = [1.0]
    while len(sizes) < 300 and sizes[-1] < 1e6:
        optimizer.apply([keras.ops.convert_to_tensor(curvature * float(weight.numpy()))], [weight])
        sizes.append(abs(float(weight.numpy())))
    assert (max(sizes[-10:]) > 2) == grows


def test_which_hessian_is_meant():
    assert stability_limit({"name": "Adam"}, 1e-3).product == pytest.approx(38.0)  # METHODS, arXiv 2207.14484
    assert stability_limit({"name": "Adam"}, 1e-3).limit == pytest.approx(38_000.0)
    assert {name for name in KNOWN if not stability_limit({"name": name}, 0.1).preconditioned} == {"SGD"}
    assert stability_limit({"name": "SGD", "momentum": None}, 0.5).limit == 4.0


def test_what_is_not_known_and_what_is_wrong():
    assert stability_limit({"name": "Lion"}, 0.1) is None
    assert stability_limit({}, 0.1) is None
    assert stability_limit({"name": "SGD"}, 0.0).limit == math.inf
    for rate in (-0.1, np.nan):
        with pytest.raises(ValueError, match="learning_rate"):
            stability_limit({"name": "SGD"}, rate)
