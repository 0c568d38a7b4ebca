"""What is absurd: the watch in the graph against the same rules in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gradrecipes.gradients.outliers import (
    EARLY,
    EARLY_RATIO,
    LARGEST,
    SMALLEST_RATIO,
    WARM_UP,
    WINDOW,
    SpikeWatch,
)


class PlainWatch:
    """The docstring of `SpikeWatch`, in float64 and with Python lists; for one of its two rows, fed with both."""

    def __init__(self, sigmas):
        self.sigmas, self.past = sigmas, []

    def judge(self, pair):
        pair = np.asarray(pair, np.float64)
        past = np.array(self.past[-WINDOW:]).reshape(-1, 2)
        seen = len(past)
        verdict, kept = [], []
        for value, row in zip(pair, past.T if seen else np.zeros((2, 0)), strict=True):
            largest = row.max(initial=0.0)
            late = max(row.mean() + self.sigmas * row.std(), SMALLEST_RATIO * largest) if seen else 0.0
            limit = late if seen >= WARM_UP else EARLY_RATIO * largest if seen >= EARLY else np.inf
            absurd = bool(np.isfinite(value) and value > limit > 0)
            verdict.append(absurd)
            most = min(late if seen >= WARM_UP else SMALLEST_RATIO * largest, LARGEST)
            kept.append(most if absurd else value if np.isfinite(value) else row.mean() if seen else np.nan)
        if np.isfinite(pair[1]):
            self.past.append([0.0 if not np.isfinite(part) else part for part in kept])
        return verdict


@pytest.fixture(scope="module")
def traced():
    """Return a watch and its judgement as one graph: a trace for each example would take a second."""
    watch = SpikeWatch(6.0)
    judge = tf.function(lambda loss, norm: tuple(watch.judge(loss, norm)), autograph=False)
    return watch, lambda loss, norm: [
        bool(v) for v in judge(tf.constant(loss, tf.float32), tf.constant(norm, tf.float32))
    ]


def healthy(count, seed=0, level=1.0):
    return level * np.random.default_rng(seed).lognormal(0, 0.2, count)


odd = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 30.0, 500.0, 1e20])


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    length=st.integers(1, 200),
    faults=st.dictionaries(st.integers(0, 199), st.tuples(st.booleans(), odd), max_size=8),
)
def test_every_verdict_is_that_of_the_plain_rules(traced, seed, length, faults):
    watch, judge = traced
    watch.forget()
    plain = PlainWatch(6.0)
    series = np.stack([healthy(length, seed), healthy(length, seed + 1, 3.0)], axis=1).astype(np.float32)
    for step, (of_norm, value) in faults.items():
        if 0 < step < length:
            series[step, int(of_norm)] = value
    for step, pair in enumerate(series):
        assert judge(*pair) == plain.judge(pair), (step, pair)
    assert np.isfinite(watch.values.numpy()).all()
    remembered = np.array(plain.past[-WINDOW:])[:, 0] if plain.past else np.zeros(0)
    if remembered.any():
        np.testing.assert_allclose(watch.remembered(), remembered, rtol=1e-4, atol=1e-6)


def test_one_outlier_is_absurd_and_the_next_value_is_not(traced):
    watch, judge = traced
    watch.forget()
    for value in healthy(100):
        assert judge(value, value) == [False, False]
    assert judge(50.0, 1.0) == [True, False]
    assert judge(1.0, 50.0) == [False, True]
    assert judge(1.0, 1.0) == [False, False]
    assert judge(50.0, 50.0) == [True, True]  # it has hardly moved the limit


def test_a_lasting_change_of_level_is_accepted_within_a_few_steps(traced):
    watch, judge = traced
    watch.forget()
    for value in healthy(100):
        judge(value, value)
    verdicts = [judge(value, 1.0)[0] for value in healthy(20, level=100.0)]
    assert verdicts[0]
    assert sum(verdicts) <= 8  # the limit doubles: 2^7 > 100
    assert not any(verdicts[-10:])


def test_a_value_that_falls_is_never_absurd(traced):
    watch, judge = traced
    watch.forget()
    assert not any(any(judge(value, value)) for value in np.geomspace(1e3, 1e-6, 200))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_enters(traced, value):
    watch, judge = traced
    watch.forget()
    for good in healthy(70):
        judge(good, good)
    before = watch.values.numpy().copy()
    for _ in range(10):
        assert judge(1.0, value)[1] is False
    np.testing.assert_array_equal(watch.values.numpy(), before)
    judge(value, 1.0)
    assert np.isfinite(watch.values.numpy()).all()
    assert int(watch.count.numpy()) == 71


def test_in_the_first_steps_only_what_is_a_hundred_times_all_that_was_seen_is_absurd(traced):
    watch, judge = traced
    watch.forget()
    verdicts = [judge(1e6 if step < EARLY else 1.0, 1.0)[0] for step in range(EARLY)]
    assert not any(verdicts)
    watch.forget()
    for _ in range(EARLY):
        judge(1.0, 1.0)
    assert judge(99.0, 1.0) == [False, False]
    assert judge(0.9 * EARLY_RATIO * 99.0, 1.0) == [False, False]
    assert judge(1e9, 1.0) == [True, False]


def test_without_a_loss_there_is_no_verdict_on_it_and_nothing_is_remembered_of_it():
    watch = SpikeWatch(6.0)
    for value in healthy(70):
        verdict = watch.judge(None, tf.constant(value, tf.float32))
        assert not bool(verdict.loss)
    assert len(watch.remembered()) == 0
    assert bool(watch.judge(None, tf.constant(99.0)).norm)
