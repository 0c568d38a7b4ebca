"""Outliers: the detector in the graph against the same rules in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gradrecipes.gradients.skipping import (
    EARLY_RATIO,
    EARLY_STEPS,
    MAX_REMEMBERED,
    MIN_RATIO,
    RENEW_EARLY,
    RENEW_EVERY,
    WARM_UP,
    WINDOW,
    OutlierDetector,
)


class PlainDetector:
    """The docstring of `OutlierDetector`, in float64 and with Python lists."""

    def __init__(self, sigmas):
        self.sigmas, self.past, self.stored = sigmas, [], [np.inf, np.inf]

    def judge(self, pair):
        pair = np.asarray(pair, np.float64)
        past = np.array(self.past[-WINDOW:]).reshape(-1, 2)
        seen = len(past)
        outlying, kept, limits = [], [], []
        for value, row in zip(pair, past.T if seen else np.zeros((2, 0)), strict=True):
            largest = row.max(initial=0.0)
            late = max(row.mean() + self.sigmas * row.std(), MIN_RATIO * largest) if seen else 0.0
            limit = late if seen >= WARM_UP else EARLY_RATIO * largest if seen >= EARLY_STEPS else np.inf
            limit = limit if limit > 0 else np.inf
            limits.append(limit)
            outlying.append(bool(np.isfinite(value) and value > limit))
            most = min(late if seen >= WARM_UP else MIN_RATIO * largest, MAX_REMEMBERED)
            kept.append(most if outlying[-1] else value if np.isfinite(value) else row.mean() if seen else np.nan)
        every = RENEW_EARLY if len(self.past) < WARM_UP else RENEW_EVERY
        if len(self.past) % every == 0 or not np.isfinite(pair).all() or not all(pair <= self.stored):
            self.stored = [MIN_RATIO * limit if out else limit for limit, out in zip(limits, outlying, strict=True)]
        else:  # below the stored limits: it passes, whatever the limits would be now
            outlying, kept = [False, False], list(pair)
        if np.isfinite(pair[1]):
            self.past.append([0.0 if not np.isfinite(part) else part for part in kept])
        return outlying


@pytest.fixture(scope="module")
def traced():
    """Return a detector and its judgement as one graph: a trace for each example would take a second."""
    detector = OutlierDetector(6.0)

    def step(pair):
        def remember():
            detector.remember(pair)
            return tf.constant([False, False])

        usual = tf.reduce_all(tf.math.is_finite(pair)) & ~detector.needs_judgement(pair)
        return tf.cond(usual, remember, lambda: tf.stack(detector.judge(pair)[:2]))

    judge = tf.function(step, autograph=False)
    return detector, lambda loss, norm: [bool(v) for v in judge(tf.constant([loss, norm], tf.float32))]


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
    detector, judge = traced
    detector.forget()
    plain = PlainDetector(6.0)
    series = np.stack([healthy(length, seed), healthy(length, seed + 1, 3.0)], axis=1).astype(np.float32)
    for step, (of_norm, value) in faults.items():
        if 0 < step < length:
            series[step, int(of_norm)] = value
    for step, pair in enumerate(series):
        assert judge(*pair) == plain.judge(pair), (step, pair)
    assert np.isfinite(detector.values.numpy()).all()
    remembered = np.array(plain.past[-WINDOW:])[:, 0] if plain.past else np.zeros(0)
    if remembered.any():
        np.testing.assert_allclose(detector.remembered(), remembered, rtol=1e-4, atol=1e-6)


def test_one_outlier_is_outlying_and_the_next_value_is_not(traced):
    detector, judge = traced
    detector.forget()
    for value in healthy(100):
        assert judge(value, value) == [False, False]
    assert judge(50.0, 1.0) == [True, False]
    assert judge(1.0, 50.0) == [False, True]
    assert judge(1.0, 1.0) == [False, False]
    assert judge(50.0, 50.0) == [True, True]  # it has hardly moved the limit


def test_a_lasting_change_of_level_is_accepted_within_a_few_steps(traced):
    detector, judge = traced
    detector.forget()
    for value in healthy(100):
        judge(value, value)
    verdicts = [judge(value, 1.0)[0] for value in healthy(20, level=100.0)]
    assert verdicts[0]
    assert sum(verdicts) <= 8  # the limit doubles: 2^7 > 100
    assert not any(verdicts[-10:])


def test_a_value_that_falls_is_never_outlying(traced):
    detector, judge = traced
    detector.forget()
    assert not any(any(judge(value, value)) for value in np.geomspace(1e3, 1e-6, 200))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_enters(traced, value):
    detector, judge = traced
    detector.forget()
    for good in healthy(70):
        judge(good, good)
    before = detector.values.numpy().copy()
    for _ in range(10):
        assert judge(1.0, value)[1] is False
    np.testing.assert_array_equal(detector.values.numpy(), before)
    judge(value, 1.0)
    assert np.isfinite(detector.values.numpy()).all()
    assert int(detector.count.numpy()) == 71


def test_in_the_first_steps_only_what_is_a_hundred_times_all_that_was_seen_is_outlying(traced):
    detector, judge = traced
    detector.forget()
    verdicts = [judge(1e6 if step < EARLY_STEPS else 1.0, 1.0)[0] for step in range(EARLY_STEPS)]
    assert not any(verdicts)
    detector.forget()
    for _ in range(EARLY_STEPS):
        judge(1.0, 1.0)
    assert judge(99.0, 1.0) == [False, False]
    assert judge(0.9 * EARLY_RATIO * 99.0, 1.0) == [False, False]
    assert judge(1e9, 1.0) == [True, False]


def test_a_loss_that_is_not_known_is_no_outlier_and_is_not_remembered(traced):
    detector, judge = traced
    detector.forget()
    for value in healthy(70):
        assert judge(0.0, value) == [False, False]
    assert len(detector.remembered()) == 0
    assert judge(0.0, 99.0) == [False, True]


def test_between_two_renewals_only_a_value_above_the_stored_limit_is_judged(traced):
    detector, judge = traced
    detector.forget()
    for _ in range(WARM_UP):
        judge(1.0, 1.0)
    judge(1.0, 1.0)  # the limits are stored here: twice the largest
    np.testing.assert_array_equal(detector.limits.numpy()[:2], [2.0, 2.0])
    for _ in range(RENEW_EVERY - 2):
        assert judge(1.9, 1.0) == [False, False]  # of which the true limit rises to 3.8
    assert judge(3.7, 1.0) == [False, False]  # above the stored limit, judged again, and no outlier
    assert judge(9.0, 1.0) == [True, False]


def test_a_norm_such_as_there_were_earlier_in_the_training_is_not_harmful():
    detector = OutlierDetector(6.0)
    judge = tf.function(lambda loss, norm: detector.judge(tf.stack([loss, norm])), autograph=False)
    for value in [*healthy(WINDOW, level=100.0), *healthy(2 * WINDOW)]:
        judge(tf.constant(1.0), tf.constant(value, tf.float32))
    harmless = judge(tf.constant(50.0), tf.constant(150.0))
    assert (bool(harmless.loss), bool(harmless.norm), bool(harmless.harmful)) == (True, True, False)
    assert not bool(judge(tf.constant(1e6), tf.constant(1.0)).harmful)  # a loss by itself moves no weight
    assert bool(judge(tf.constant(1.0), tf.constant(1e4)).harmful)
