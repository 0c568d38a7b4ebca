"""Failures are ordered, finite, and worse than every success, in the objective's own direction."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.core.analysis.search_trial import CAUSES, Failure, penalized_score
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
