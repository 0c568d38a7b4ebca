"""The noise scale where it is known, from draws of gradients whose mean and covariance are given."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from gradrecipes.core.analysis.noise_scale import (
    NoiseScaleEstimate,
    advise_batch_size,
    estimate_noise_scale,
    estimate_signal_and_noise,
)


def draws(random, batches, *, mean=0.5, std=3.0, size=10, large=32, small=4):
    """Return squared norms of batch gradients, and of their parts, for samples N(mean, std^2) in each entry."""
    parts = random.normal(mean, std / math.sqrt(small), size=(batches, large // small, size))
    return np.square(parts.mean(1)).sum(-1), np.square(parts).sum(-1).mean(-1)


def test_the_estimates_are_unbiased():
    large, small = draws(np.random.default_rng(0), 20_000)
    signals, noises = estimate_signal_and_noise(large, small, large_batch=32, small_batch=4)
    for values, truth in ((signals, 10 * 0.25), (noises, 10 * 9.0)):
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))
    assert estimate_noise_scale(signals, noises).noise_scale == pytest.approx(36, rel=0.03)
    assert np.mean(noises / signals) != pytest.approx(36, rel=0.3)  # the mean of ratios is no estimate


def test_the_interval_holds_the_truth_as_often_as_it_says():
    random, hits = np.random.default_rng(1), 0
    for _ in range(400):
        signals, noises = estimate_signal_and_noise(*draws(random, 25), large_batch=32, small_batch=4)
        found = estimate_noise_scale(signals, noises)
        assert found.low <= found.noise_scale <= found.high
        hits += found.low <= 36 <= found.high
    assert 0.90 < hits / 400 < 0.99


def test_a_signal_that_drowns_has_no_upper_end():
    random, unbounded = np.random.default_rng(2), 0
    for _ in range(200):
        signals, noises = estimate_signal_and_noise(*draws(random, 8, mean=0.0), large_batch=32, small_batch=4)
        found = estimate_noise_scale(signals, noises)
        unbounded += found.high == math.inf and found.low > 0
    assert unbounded / 200 > 0.9
    assert estimate_noise_scale([-1.0, -2.0], [3.0, 3.0]).noise_scale == math.inf


@pytest.mark.parametrize(
    "scale, low, high, batch, words",
    [
        (1000, 800, 1300, 32, "far below it.*twice as large.*about 800"),
        (4, 3, 5, 512, "far above it.*about 5 takes a few more steps"),
        (32, 25, 40, 32, "suits it: each sample does 50%"),
        (100, 0, math.inf, 32, "too wide"),
        (math.inf, 5000, math.inf, 32, "far below it"),
    ],
)
def test_advice(scale, low, high, batch, words):
    assert re.search(words, advise_batch_size(NoiseScaleEstimate(scale, low, high, 1.0, scale), batch))


def test_refusals():
    with pytest.raises(ValueError, match="smaller than the large"):
        estimate_signal_and_noise(1.0, 1.0, large_batch=4, small_batch=4)
    with pytest.raises(ValueError, match="at least two"):
        estimate_noise_scale([1.0], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        estimate_noise_scale([1.0, math.nan], [1.0, 1.0])
