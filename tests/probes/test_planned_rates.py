"""Schedules are read over the whole training; what they rise to later than the trial is tried."""

from __future__ import annotations

from dataclasses import dataclass, field

import keras
import numpy as np
import pytest

from gradrecipes.core.trace.trial_reading import PlannedRates
from gradrecipes.diagnosis.outcome import LEARNING, Verdict
from gradrecipes.probes.optimizer import hold_rate, read_planned_rates, try_highest_rate
from gradrecipes.schedules import WarmUp
from gradrecipes.training.description.describe import describe_model
from gradrecipes.training.trial import Trial, TrialRun

schedules = keras.optimizers.schedules
LEARNED = Verdict(LEARNING, 2.3, 0.5, 0.8, 2.3)


def compiled(rate):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def rates_of(model, steps=None):
    return read_planned_rates(model, describe_model(model), trial_steps=100, steps=steps)


@pytest.mark.parametrize(
    ("rate", "steps", "expected"),
    [
        (0.1, None, PlannedRates(None, False, 0.1, 0.1, 0.1, 0)),
        (0.1, 500, PlannedRates(500, True, 0.1, 0.1, 0.1, 0)),
        (schedules.PiecewiseConstantDecay([100, 400], [0.1, 2.0, 0.01]), 300, PlannedRates(300, True, 0.1, 0.1, 2.0)),
        (schedules.PiecewiseConstantDecay([100, 400], [0.1, 2.0, 0.01]), 90, PlannedRates(90, True, 0.1, 0.1, 0.1)),
        (schedules.CosineDecay(0.0, 900, warmup_target=1.0, warmup_steps=250), None, PlannedRates(1151, False)),
        (WarmUp(schedules.ExponentialDecay(1.0, 300, 0.5), steps=250), 5000, PlannedRates(5000, True)),
    ],
)
def test_the_highest_rate_of_the_whole_training_is_found(rate, steps, expected):
    found = rates_of(compiled(rate), steps)
    assert (found.steps, found.planned) == (expected.steps, expected.planned)
    if expected.highest is not None:
        lowest, highest = found.trial_lowest, found.trial_highest
        assert (lowest, highest, found.highest) == pytest.approx((0.1, 0.1, expected.highest))
    else:
        assert found.highest == pytest.approx(1.0) and found.highest_step == 250
        assert found.trial_highest == pytest.approx(0.4, abs=0.01)


def test_a_schedule_goes_on_where_an_earlier_fit_left_it():
    model = compiled(schedules.CosineDecay(0.0, 900, warmup_target=1.0, warmup_steps=250))
    model.optimizer.iterations.assign(250)
    found = rates_of(model, 500)
    assert found.highest_step == 0 and found.trial_highest == pytest.approx(1.0)


@dataclass
class Stub:
    """A trial whose loss goes where `loss(rates)` says; it keeps the rates that were asked for."""

    model: keras.Model
    loss: object
    batches: tuple = (None,) * 5
    rises: list = field(default_factory=list)

    def save(self):
        return ()

    def load(self, saved):
        pass

    def continued(self, factors):
        rates = -np.array(factors)  # negative: the rates themselves
        self.rises.append(len(factors) - 10)
        loss = np.asarray(self.loss(rates), float)
        bad = ~np.isfinite(loss)
        return TrialRun(loss, np.ones(len(loss)), int(np.argmax(bad)) if bad.any() else None, {}, 1.0)


def tried(loss, *, steps=5000):
    model = compiled(schedules.CosineDecay(0.0, 4000, warmup_target=1.0, warmup_steps=1000))
    rates = rates_of(model, steps)
    model.optimizer.iterations.assign(100)  # the steps of the trial
    stub = Stub(model, loss)
    return try_highest_rate(stub, rates, LEARNED, trial_steps=100, tell=lambda words: None), stub


def test_a_rate_that_trains_is_tried_once():
    found, stub = tried(lambda rates: 0.5 - 0.3 * rates)
    assert stub.rises == [75]
    assert found.at_highest.end == pytest.approx(0.2) and found.at_highest.broken is None and not found.in_full
    assert found.at_highest.start == 0.5


def test_a_loss_that_breaks_at_the_peak_is_tried_with_a_slower_rise():
    found, stub = tried(lambda rates: np.where(rates > 0.5, np.nan, 0.5))
    assert stub.rises == [75, 300] and found.raised_over == 300
    assert found.broken_rate == pytest.approx(0.5, abs=0.01) and found.at_highest.end is None


def test_a_net_that_forgets_is_tried_with_the_rise_of_the_schedule_itself():
    found, stub = tried(lambda rates: np.where(rates > 0.5, 2.3, 0.5))
    assert stub.rises == [75, 300, 901] and found.in_full
    found, stub = tried(lambda rates: np.where((rates > 0.5) & (len(rates) < 200), 2.3, 0.5))
    assert stub.rises == [75, 300] and found.at_highest.end == 0.5


def test_what_the_training_does_not_reach_is_not_tried():
    _, stub = tried(lambda rates: rates, steps=120)
    assert stub.rises == []


def test_a_rate_is_held_where_the_schedule_has_none():
    """A rate of 0 cannot be multiplied to another: a negative factor is minus the rate itself."""
    keras.utils.set_random_seed(0)
    model = compiled(schedules.PolynomialDecay(0.1, 20, 0.0))
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    batches = [(x[at : at + 16], x[at : at + 16, :1]) for at in range(0, 64, 16)]
    ends = []

    def squares(answers):
        return (answers.numpy() - x[:, :1])[:, 0] ** 2

    with Trial(model, batches, steps=40) as trial:
        rates = rates_of(model, 400)
        trial.recorded(40)
        saved = trial.save()
        ends.append(float(trial.continued([1.0] * 80).loss[-1]))
        found = hold_rate(trial, saved, rates, LEARNED, rate=0.1, steps=80, unseen=lambda: squares(model(x)))
    assert found.held.end < 0.1 * ends[0]
    planned, held, noise = found.unseen
    assert held + 2.0 * noise < 0.5 * planned
