"""Failures are ordered, finite, and worse than every success, in the objective's own direction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.core.analysis.search_trial import CAUSES, Failure, find_divergence, penalized_score
from gradrecipes.core.trace import SKIPPED_LOSS
from gradrecipes.tuning.watch import is_hopeless

SCORES = st.lists(st.floats(-1e6, 1e6), max_size=8)


@given(SCORES, st.floats(0, 1), st.booleans())
def test_a_failure_is_finite_and_worse_than_every_success(successes, severity, maximize):
    score = penalized_score(severity, successes, maximize=maximize)
    assert math.isfinite(score)
    assert all(score < one if maximize else score > one for one in successes)


@given(SCORES, st.booleans())
def test_the_severer_the_worse(successes, maximize):
    mild, severe = (penalized_score(severity, successes, maximize=maximize) for severity in (0.2, 0.8))
    assert severe < mild if maximize else severe > mild


def test_later_and_milder_is_less_severe():
    early, late = (Failure("nonfinite_loss", step, 1000) for step in (3, 300))
    mild = Failure("diverging_loss", 300, 1000, loss_ratio=20.0)
    nothing = Failure("error")
    assert 0 <= mild.severity < late.severity < early.severity < nothing.severity == 1.0
    assert early.to_dict()["severity"] == early.severity


def test_an_unknown_cause_is_refused():
    with pytest.raises(ValueError, match="nonfinite_loss"):
        Failure("bad_luck")
    assert CAUSES[0] == "error"  # the places are numbers that travel between processes


EARLIER = [[1.0, 0.8, 0.7, 0.6], [1.1, 0.7, 0.5, 0.4], [2.0, 1.9, 1.8, 1.7]]


@pytest.mark.parametrize(
    ("values", "hopeless"),
    [
        ([1.05], False),
        ([1.2], True),
        ([1.05, 0.9], True),
        ([1.05, 0.6, 0.5], False),
        ([1.05, 0.9, 0.9, 0.65], True),
        ([1.05, 0.6, 0.9, 0.65], True),
        ([1.05, 0.6, 0.9, 0.55], False),
        ([1.05, 0.55, 0.9, 0.65], False),
        ([float("nan")], True),
        ([], False),
    ],
)
def test_a_trial_must_be_among_the_best_two_in_five(values, hopeless):
    assert is_hopeless(values, EARLIER, maximize=False) == hopeless
    assert is_hopeless([-v for v in values], [[-v for v in one] for one in EARLIER], maximize=True) == hopeless
    assert not is_hopeless(values, EARLIER[:2], maximize=False)  # two say little


def test_it_is_asked_after_1_2_4_epochs_only():
    earlier = [[1.0, 0.9, 0.8, 0.2], [1.0, 0.7, 0.6, 0.5], [1.0, 0.7, 0.6, 0.5]]
    assert not is_hopeless([1.0, 0.7, 0.75], earlier, maximize=False)
    assert is_hopeless([1.0, 0.75], earlier, maximize=False)


CALM = np.geomspace(2.3, 0.3, 40)


def judged(losses, norms=None, outcomes=None, **settings):
    losses = np.asarray(losses, float)
    norms = np.ones(len(losses)) if norms is None else np.asarray(norms, float)
    outcomes = np.zeros(len(losses), int) if outcomes is None else np.asarray(outcomes)
    return find_divergence(losses, norms, outcomes, **settings)


@pytest.mark.parametrize(
    ("losses", "norms", "cause", "step"),
    [
        ([2.3, 9.0, np.nan], [1.0, 50.0, np.nan], "nonfinite_loss", 2),
        ([2.3, 9.0, 11.0], [1.0, 50.0, np.inf], "nonfinite_gradient", 2),
        ([2.3, 9.0, 1e20], [1.0, 50.0, 1e20], "gradient_overflow", 2),
        ([2.3, *[40.0] * 8], None, "diverging_loss", 1),
        ([2.3, 19.0, 1e8, 18.0, 15.0, 21.0, 16.0, 19.0, 22.0, 3.0, 2.5], None, "diverging_loss", 3),
        ([np.nan] * 3, [1.0, 1.0, np.inf], "nonfinite_gradient", 2),  # a loop of one's own may not know its loss
        ([2.3] * 20, [1.0] * 4 + [0.0] * 16, "zero_gradient", 4),
    ],
)
def test_a_lost_training_is_called_so_with_its_step(losses, norms, cause, step):
    found = judged(losses, norms)
    assert (found.cause, found.step) == (cause, step)


@pytest.mark.parametrize(
    ("losses", "norms"),
    [
        ([], []),
        (CALM, None),
        ([2.3, 50.0, 30.0, 9.0, 2.0, 1.9, 1.8, 1.7, 1.6, 1.5], None),  # a catapult: up, and down below the start
        ([2.3, 400.0, 30.0, 9.0, 2.0, 1.9, 1.8, 1.7, 1.6, 1.5], None),
        ([2.3, *[15.0] * 20], None),  # bad, but of the size that chance may make it
        ([-5.0, *[40.0] * 20], None),  # the ratio of a negative loss says nothing
        ([2.3] + [0.0] * 20, [1.0] + [0.0] * 20),  # a perfect fit has no gradient either
        ([np.nan] * 30, None),
    ],
)
def test_a_restless_training_is_let_be(losses, norms):
    assert judged(losses, norms) is None


def test_with_a_guard_only_what_was_applied_counts():
    losses = [2.3, np.nan, 2.2, 1e9, 2.1, 2.0]
    outcomes = [0, SKIPPED_LOSS, 0, SKIPPED_LOSS, 0, 0]
    assert judged(losses, None, outcomes, guarded=True) is None
    assert judged([*losses, *[99.0] * 8], None, [*outcomes, *[0] * 8], guarded=True).cause == "diverging_loss"


def test_at_the_end_fewer_steps_are_enough():
    assert judged([2.3, 30.0, 900.0]) is None
    assert judged([2.3, 30.0, 900.0], ended=True).cause == "diverging_loss"
    assert judged([2.3], ended=True) is None and judged([2.3, 1.0], ended=True) is None


def test_steps_that_were_judged_are_not_judged_again():
    assert judged([2.3, np.nan, 1.0], known=2) is None
    assert judged([2.3, *[3.0] * 8], peak=1e6).cause == "diverging_loss"
