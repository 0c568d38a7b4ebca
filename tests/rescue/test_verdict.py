"""Which verdict an answer has, and its words, by what was seen of the training as it is: no model is trained."""

from types import SimpleNamespace

import numpy as np
import pytest

from gradrecipes.core.trace.description import OutputDescription
from gradrecipes.rescue.arm import Result
from gradrecipes.rescue.entry import _verdict
from gradrecipes.rescue.lab import Trial
from gradrecipes.rescue.own_loss import sum_of_baselines
from gradrecipes.rescue.task import Score
from gradrecipes.rescue.verdict import Found, RescueEvidence, screen


def answered(*, nothing_found=True, diagnosis="undecided", error="", untried=False, **seen):
    control = Result(10, Score(0.1), error=error)
    found = Found((), None, None, {}, control, **{"fails": True, **seen})
    return _verdict(found, SimpleNamespace(verdict=diagnosis), nothing_found=nothing_found, untried=untried)


@pytest.mark.parametrize("nothing_found", [True, False])
def test_a_training_that_was_seen_to_learn_needs_nothing(nothing_found):
    assert answered(learned=True, nothing_found=nothing_found) == "nothing needed"
    assert answered(learned=True, nothing_found=nothing_found, complete=False) == "undecided"
    assert answered(learned=True, nothing_found=nothing_found, untried=True) == "undecided"


def test_without_a_cause_a_failure_or_learning_nothing_is_said():
    assert answered() == "undecided"
    assert answered(nothing_found=False) == "not rescued"
    assert answered(breaks=True) == "not rescued"


def test_a_copy_that_raises_says_nothing_of_the_model():
    assert answered(error="no", breaks=True, diagnosis="healthy") == "nothing needed"
    assert answered(error="no", breaks=True) == "undecided"
    assert answered(error="no", breaks=True, nothing_found=False) == "not rescued"


def shown(verdict, *trials, control=0.1, own=None, baseline=None, diagnosis="healthy"):
    trials = tuple(Trial(names, 0, 10, score, loss, None, error) for names, score, loss, error in trials)
    evidence = RescueEvidence(
        "accuracy", 0.1, None, trials, control, 10, 10.0, {}, {}, own_loss=own, baseline_loss=baseline
    )
    answer = SimpleNamespace(
        verdict=verdict,
        changes=(),
        evidence=evidence,
        titles={},
        diagnosis=SimpleNamespace(findings=(), verdict=diagnosis),
    )
    return " ".join(screen(answer).split())


@pytest.mark.parametrize(
    ("own", "logged", "words"),
    [
        (0.5, 0.5, "Its own loss there ends at 0.5; that of a constant prediction is 1."),
        (1.5, 0.5, "Its loss in training ends at 0.5, where a constant prediction has 1; the moving averages"),
        (1.5, 1.5, "It was seen to learn in the trial of the diagnosis."),
        (None, 0.5, "It was seen to learn in the trial of the diagnosis."),
    ],
)
def test_where_the_score_shows_nothing_it_is_said_what_does(own, logged, words):
    assert words in shown("nothing needed", ((), 0.1, logged, ""), own=own, baseline=None if own is None else 1.0)


def test_a_short_training_is_said_to_be_short():
    text = shown("nothing needed", ((), 0.1, 1.5, ""), own=1.5, baseline=1.0, diagnosis="undecided")
    assert "Its loss still falls when it ends, so more epochs may be all that it needs." in text


def test_the_words_of_an_undecided_answer():
    text = shown("undecided", ((), 0.1, 1.0, ""), (("clip",), 0.12, 1.0, ""))
    assert "was not seen to learn either" in text
    assert "Sets of changes tried: 1. None wins by more than chance. The best: - clip: 0.120 after 10 steps" in text
    assert "No change could be tried" in shown("not rescued", ((), 0.1, 1.0, ""))
    assert "so nothing was tried: TypeError" in shown("undecided", ((), -1.0, 1.0, "TypeError: no"))
    assert "so the whole training was not seen: TypeError" in shown("nothing needed", ((), -1.0, 1.0, "TypeError: no"))


def test_the_baseline_of_several_outputs_is_known_where_that_of_each_is():
    one = OutputDescription(target=0, units=1, loss="mse", loss_weight=2.0)
    other = OutputDescription(target=1, units=1, loss="mae")
    targets = (np.array([1.0, 3.0]), np.array([0.0, 2.0]))
    assert sum_of_baselines((one, other), targets) == pytest.approx(2.0 * 1.0 + 1.0)
    assert sum_of_baselines((one, OutputDescription(target=None, loss="mae")), targets) is None
    assert sum_of_baselines((one, OutputDescription(target=1, loss="own", custom=True)), targets) is None
