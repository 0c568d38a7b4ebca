"""Whether the verdicts of studies are right as often as they say, on outcomes whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradrecipes.studies import Objective
from gradrecipes.studies.arm import Run
from gradrecipes.studies.judge import compare, hopeless_arms, leader, seen_from, summarize
from tests.studies.synthetic import study

NAN = math.nan
LOSS, SCORE = Objective("val_loss", "min"), Objective("val_score", "max")


def runs(objective, **outcomes):
    """Return runs with these values of the objective, NaN for a divergence."""
    return {
        arm: [
            Run(arm, seed, {objective.name: [value]}, diverged="lost" if math.isnan(value) else None, seconds=1.0)
            for seed, value in enumerate(values)
        ]
        for arm, values in outcomes.items()
    }


def judged(objective, **outcomes):
    count = max(map(len, outcomes.values()))
    summaries = summarize(runs(objective, **outcomes), objective, planned=count)
    return summaries, compare(summaries, objective)


def test_the_direction_decides_who_is_better():
    values = {"one": np.linspace(1, 2, 8), "other": np.linspace(1.5, 2.5, 8) + np.linspace(0, 0.1, 8)}
    summaries, (comparison,) = judged(LOSS, **values)
    assert comparison.verdict == "better" and leader(summaries, LOSS) == "one"
    summaries, (comparison,) = judged(SCORE, **values)
    assert comparison.verdict == "worse" and leader(summaries, SCORE) == "other"
    turned = seen_from(comparison, "other")
    assert turned.verdict == "better" and turned.difference == -comparison.difference
    assert turned.interval.low == -comparison.interval.high
    assert seen_from(turned, "other") is turned


def test_a_run_that_diverged_is_worse_than_any_other_but_has_no_part_in_the_mean():
    one = [0.5] * 4 + [NAN] * 4
    other = [0.6, 0.61, 0.62, 0.63, 50.0, 51.0, 52.0, 53.0]
    summaries, (comparison,) = judged(LOSS, one=one, other=other)
    assert summaries[0].diverged == 4 and summaries[0].mean == 0.5
    assert 0.2 < summaries[0].divergence.low < 0.5 < summaries[0].divergence.high < 0.8
    assert comparison.pairs == 8 and comparison.difference == pytest.approx(-0.115)
    assert comparison.verdict == "undecided"
    assert leader(summaries, LOSS) in ("one", "other")


def test_where_both_diverge_there_is_no_difference():
    _, (comparison,) = judged(LOSS, one=[NAN, NAN, 0.5], other=[NAN, NAN, 0.4])
    assert comparison.p == 1.0 and comparison.difference == pytest.approx(0.1)
    _, (comparison,) = judged(LOSS, one=[NAN, NAN], other=[NAN, NAN])
    assert comparison.interval is None and math.isnan(comparison.difference) and comparison.more_seeds is None


def test_five_seeds_cannot_decide_and_it_says_how_many_would():
    text = str(study({"low": {"spread": 0.1}, "high": {"level": 0.6, "spread": 0.1}}, seeds=5).run())
    assert "undecided" in text and "more seed" in text
    assert "cannot fall below p = 0.0625" in text
    decided = str(study({"low": {"spread": 0.1}, "high": {"level": 0.6, "spread": 0.1}}, seeds=7).run())
    assert "better." in decided and "cannot fall" not in decided


def test_equal_arms_are_called_different_in_no_more_than_one_study_in_twenty():
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(30):
        shared = random.normal(size=8)
        _, comparisons = judged(SCORE, **{f"arm {k}": shared + random.normal(size=8) for k in range(4)})
        alarms += any(comparison.verdict != "undecided" for comparison in comparisons)
    assert alarms <= 4


def test_equal_arms_are_hardly_ever_given_up():
    random = np.random.default_rng(0)
    outcomes = [{f"arm {k}": random.normal(size=6) for k in range(5)} for _ in range(300)]
    assert np.mean([bool(hopeless_arms(one, planned=6)) for one in outcomes]) <= 0.02


@pytest.mark.parametrize(
    ("gains", "given_up"),
    [
        ({"a": [NAN] * 3, "b": [1.0, 2.0, 3.0]}, {"a": 3}),
        ({"a": [NAN] * 3, "b": [1.0, NAN, 3.0]}, {}),  # the others are not sound either
        ({"a": [NAN] * 2, "b": [1.0, 2.0]}, {}),  # too early
        ({"a": [0.1, 0.1, 0.1], "b": [0.2, 0.2, 0.2]}, {}),  # a coarse metric without any spread
        ({"a": [0.10, 0.11, 0.10, 0.11], "b": [90.0, 90.1, 90.0, 90.1]}, {"a": 3}),
        ({"a": [0.1, 5.0, -4.0, 0.2], "b": [1.0, 4.0, -3.0, 0.1]}, {}),
    ],
)
def test_what_is_given_up_and_when(gains, given_up):
    found = hopeless_arms(gains, planned=5)
    assert {arm: count for arm, (count, _) in found.items()} == given_up


def test_an_arm_that_was_not_given_up_is_judged_by_all_of_its_seeds():
    ahead, behind = [0.9, 0.91, 0.92, 0.93, NAN, NAN, NAN, NAN], [0.8, 0.81, 0.82, 0.84, 0.8, 0.8, 0.8, 0.8]
    assert hopeless_arms({"a": ahead, "b": behind}, planned=8) == {"b": (4, "far behind a after 4 seeds")}
    summaries, comparisons = judged(SCORE, a=ahead, b=behind)
    assert [one.hopeless for one in summaries] == [None, None] and len(comparisons) == 1
    early = summarize(runs(SCORE, a=ahead, b=behind[:4]), SCORE, planned=8)
    assert [one.hopeless for one in early] == [None, "far behind a after 4 seeds"]


def test_the_decision_needs_no_more_than_the_seeds_it_was_made_with():
    random = np.random.default_rng(1)
    gains = {f"arm {k}": (random.normal(size=8) + 30 * (k == 2)).tolist() for k in range(4)}
    whole = hopeless_arms(gains, planned=8)
    for count in range(3, 9):
        seen = hopeless_arms({arm: values[:count] for arm, values in gains.items()}, planned=8)
        assert seen == {arm: found for arm, found in whole.items() if found[0] <= count}
