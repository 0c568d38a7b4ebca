"""How a run went, by its losses alone: what is called sick, what is called slow, and what is neither."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gradrecipes.core.trace.trial_reading import FITTING_WEIGHTS, SCALED_INPUTS, VariationResult, at_rate
from gradrecipes.diagnosis.engine import linked
from gradrecipes.diagnosis.outcome import (
    BROKEN,
    DIVERGING,
    LEARNING,
    OSCILLATING,
    STALLED,
    UNKNOWN,
    confidence,
    fixed_by,
    fixes,
    fixing_rate,
    halved_by,
    variation_evidence,
    verdict,
)
from gradrecipes.diagnosis.registry import rules
from gradrecipes.diagnosis.rules.exploding_initialization import exploding_initialization
from tests.diagnosis.hand_made import BROKEN as BREAKS
from tests.diagnosis.hand_made import CLIMBING, FALLING, LEARNS, STANDING, STANDS, TRACES, trial

SPIKING = np.r_[2.3, 4.0, 15.0, 9.0, 13.0 + 4.0 * np.sin(1.9 * np.arange(6)), 3.6 + 1.2 * np.sin(np.arange(90))]
NOISE = np.random.default_rng(0).normal(size=100)


@pytest.mark.parametrize(
    ("loss", "state"),
    [
        (FALLING, LEARNING),
        (FALLING + 0.3 * NOISE, LEARNING),
        (STANDING + 0.3 * NOISE - 0.001 * np.arange(100), LEARNING),
        (STANDING + 0.05 * NOISE, STALLED),
        (CLIMBING, DIVERGING),
        (BREAKS, BROKEN),
        (FALLING[:5], UNKNOWN),
        (np.r_[2.3, 9.0, 30.0, 12.0, FALLING[4:]], LEARNING),  # a bump that fixed_by
        (np.r_[2.3, 9e4, 8e4, 7e3, np.full(96, 2.5)], DIVERGING),  # thrown away, and back at a blind guess
        (np.r_[2.3, 1.9, 1.4, np.full(97, 0.2)], LEARNING),  # within the first pass
        (np.r_[90.0, 60.0, 40.0, STANDING[3:]], STALLED),  # back at a blind guess
        (-1.0 - 0.01 * np.arange(100), LEARNING),  # a loss below 0, as a likelihood has it
        (SPIKING, OSCILLATING),
        (np.tile([0.4, *np.full(9, 2.3)], 10) * np.linspace(1.0, 0.92, 100), LEARNING),  # its first batch is easy
        (np.r_[STANDING[:60], 2.9 + 3.5 * np.sin(1.9 * np.arange(40))], OSCILLATING),
    ],
)
def test_states(loss, state):
    assert verdict(trial(loss)).state == state


def test_a_loss_scaler_may_leave_out_its_first_steps():
    loss = np.r_[np.nan, np.nan, FALLING[2:]]
    plain, scaled = trial(loss), trial(loss, description={"scaler": "LossScaleOptimizer"})
    for trace in (plain, scaled):
        trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, broken=None))
    assert verdict(plain).state == BROKEN
    assert verdict(scaled).state == LEARNING


def test_chance_tells_a_fall_from_having_learned():
    thrown_far = trial(np.r_[50.0 * np.exp(-np.arange(60) / 10.0) + 2.3, np.full(40, 2.31)])
    assert not verdict(thrown_far).learned and verdict(thrown_far).suspicious
    assert verdict(trial(FALLING)).learned and not verdict(trial(FALLING)).suspicious


# -- variations ----------------------------------------------------------------------------------------------
def test_what_mends_a_stall_must_learn_and_what_mends_a_break_must_hold():
    stalled, broken = verdict(trial(STANDING)), verdict(trial(BREAKS))
    learns = VariationResult(2.3, 0.4, 0.83, over_baseline=0.17)
    holds = VariationResult(2.35, 2.3, 0.02, over_baseline=1.0)
    breaks = VariationResult(broken=3)
    assert fixes(learns, stalled) and fixes(learns, broken)
    assert not fixes(holds, stalled) and fixes(holds, broken)
    assert not fixes(breaks, broken) and not fixes(None, broken)


def test_the_rate_nearest_to_the_users_own_is_prescribed():
    trace = trial(STANDING, varied={"rate_10": STANDS, "rate_100": LEARNS, "rate_1000": LEARNS, "rate_0.1": STANDS})
    assert fixing_rate(trace, lower=False) == 100.0
    assert fixing_rate(trace, lower=True) is None


def test_confidence_is_what_the_variations_say():
    proven = trial(STANDING, varied={"scaled_inputs": LEARNS})
    refuted = trial(STANDING, varied={"scaled_inputs": STANDS})
    assert fixed_by(proven, SCALED_INPUTS) and not fixed_by(refuted, SCALED_INPUTS)
    sure, unknown, unsure = (confidence(one, SCALED_INPUTS) for one in (proven, trial(STANDING), refuted))
    assert sure > unknown > unsure


def test_a_run_that_learns_is_beaten_only_by_the_same_steps():
    as_it_is = {**LEARNS, "end": 1.0}
    trace = trial(varied={"as_it_is": as_it_is, "scaled_inputs": {**LEARNS, "end": 0.3}, "fitting_weights": as_it_is})
    assert halved_by(trace, verdict(trace), SCALED_INPUTS)
    assert not halved_by(trace, verdict(trace), FITTING_WEIGHTS)


def test_evidence_says_what_was_changed_and_what_came_of_it():
    (fact,) = variation_evidence(trial(STANDING, varied={"rate_100": LEARNS}), at_rate(100), at_rate(10))
    assert "100 times the learning rate" in fact.statement and "2.3 to 0.4" in fact.statement


# -- causes among themselves -----------------------------------------------------------------------------------
def test_a_cause_leads_to_what_it_explains_and_stands_before_it():
    from gradrecipes.diagnosis.engine import find

    found = find(TRACES["trial_weights_huge"]())
    assert found[0].code == "exploding_initialization"
    codes = [finding.code for finding in found]
    assert "learning_rate_too_high" not in codes or codes.index("learning_rate_too_high") > 0


def test_a_stall_without_a_cause_is_no_illness():
    from gradrecipes.diagnosis.rules.stalled_loss import stalled_loss

    stall = stalled_loss(TRACES["trial_stands"]())
    assert stall is not None and linked([stall], rules()) == []


def test_outputs_that_a_trial_did_not_hear_again_are_not_called_broken():
    from gradrecipes.diagnosis.rules.nonfinite_loss import nonfinite_loss

    trace = trial(BREAKS)
    trace.samples["output_rms"][1:] = np.nan
    assert "output" not in nonfinite_loss(trace).evidence[1].statement


@pytest.mark.parametrize(("end", "severity"), [(0.4, "notice"), (1.9, "warning")])
def test_large_weights_that_keep_a_net_from_nothing_are_a_notice(end, severity):
    varied = {"fitting_weights": {**LEARNS, "end": 0.1, "over_chance": 0.04}, "as_it_is": {**LEARNS, "end": 0.9}}
    weights = lambda weight, place: {"rms": 0.5, "std": 0.5}  # noqa: E731
    trace = trial(np.linspace(2.3, end, 100), weights=weights, varied=varied)
    found = exploding_initialization(trace)
    assert found is not None and found.severity == severity
