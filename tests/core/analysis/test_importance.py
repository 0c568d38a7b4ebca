"""How much one setting explains: all, nothing, and what a correlation would not see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gradrecipes.core.analysis.search_trial import SpaceAxis
from gradrecipes.plots.search import explained_share


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
