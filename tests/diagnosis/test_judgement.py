"""Healthy means that a training was seen to learn; where neither that nor a fault was seen, it is undecided."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes.core.findings import Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import HeldBackReading
from gradrecipes.core.trace.trial_reading import AnswersReading, OutputTrial, PlannedRates, TrialReading
from gradrecipes.diagnosis.engine import find
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.judgement import in_the_end, judge
from tests.diagnosis.hand_made import BROKEN, CLIMBING, FALLING, STANDING, TRACES, trial


def finding(severity: Severity) -> Finding:
    return Finding("code", "A title", Kind.CAUSE, severity, 0.9, "Why.")


@pytest.mark.parametrize(
    ("trace", "verdict"),
    [
        (trial(FALLING), "healthy"),
        (trial(STANDING), "undecided"),
        (trial(BROKEN), "unhealthy"),
        (trial(CLIMBING), "unhealthy"),
        (trial(np.linspace(9.0, 2.6, 100)), "undecided"),  # it falls, and ends above a constant answer
        (trial(np.full(100, 0.2)), "healthy"),  # it has learned before
        (trial(np.full(100, np.nan)[:0]), "undecided"),
        (trial(FALLING[:5]), "undecided"),
        (Trace(), "undecided"),
    ],
)
def test_a_run_without_findings(trace, verdict):
    judged = judge(trace, ())
    assert judged.verdict == verdict and judged.reason.endswith(".")
    assert ("steps=" in judged.reason) == (verdict == "undecided" and len(trace) > 0)


def test_findings_decide_and_notices_do_not():
    assert judge(trial(FALLING), (finding(Severity.WARNING),)).verdict == "unhealthy"
    assert judge(trial(FALLING), (finding(Severity.NOTICE),)).verdict == "healthy"


def test_one_output_that_stays_at_its_constant_answer_leaves_it_undecided():
    trace = trial(FALLING)
    outputs = (OutputTrial(0, "box", 4e4, 3e2, 6e3, 10.0), OutputTrial(1, "class", 1.6, 1.5, 1.4, 0.02))
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, outputs=outputs))
    judged = judge(trace, ())
    assert judged.verdict == "undecided" and "'class'" in judged.reason


@pytest.mark.parametrize(("constant", "verdict"), [(1.4, "healthy"), (0.31, "undecided"), (0.1, "undecided")])
def test_a_loss_that_falls_is_not_enough_where_equal_answers_have_it_as_low(constant, verdict):
    trace = trial(FALLING)
    read = AnswersReading(0.3, constant, noise=0.01)
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, answers=read))
    judged = judge(trace, ())
    assert judged.verdict == verdict and ("does not depend on the inputs" in judged.reason) == (verdict != "healthy")


def test_a_record_whose_loss_was_not_seen_is_undecided():
    trace = Trace(["dense"])
    trace.extend(step=range(50), gradient_norm=np.ones(50))
    assert "not seen" in judge(trace, ()).reason


@pytest.mark.slow
def test_each_head_is_judged_and_the_prescription_keeps_the_structure():
    random = np.random.default_rng(0)
    x = random.normal(size=(512, 16)).astype(np.float32)
    y = {"class": x[:, :4].argmax(axis=1), "box": (x[:, 4:8] * 80 + 200).astype(np.float32)}
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16,))
    hidden = keras.layers.Dense(64, activation="relu")(inputs)
    heads = {
        "class": keras.layers.Dense(4, activation="softmax", name="class")(hidden),
        "box": keras.layers.Dense(4, name="box")(hidden),
    }
    model = keras.Model(inputs, heads)
    model.compile(keras.optimizers.SGD(0.01), {"class": "sparse_categorical_crossentropy", "box": "mse"})
    diagnosis = gr.diagnose(model, x, y)
    first = diagnosis.findings[0]
    assert diagnosis.verdict == "unhealthy" and first.code == "unscaled_targets"
    assert "{**y, 'box': (y['box'] - mean) / std}" in first.prescriptions[0].code


@pytest.mark.parametrize(
    ("name", "verdict", "words"),
    [
        ("trial_learns_at_the_peak", "healthy", "100 steps of 5,000 planned, at learning rates from 0 to 0.03;"),
        ("trial_learns_at_the_peak", "healthy", "the schedule rises to 0.3 at step 1,000, and steps at it were tried"),
        ("trial_learns_only_at_the_peak", "healthy", "there it fell to 0.1"),
        ("trial_forgets_after_a_steep_rise", "undecided", "there it went back to 2.3"),
    ],
)
def test_how_far_a_verdict_looked_is_said(name, verdict, words):
    judged = judge(TRACES[name](), ())
    assert judged.verdict == verdict and words in judged.reason and judged.reason.endswith(".")


def test_a_rate_that_nobody_plans_to_reach_makes_no_training_healthy():
    trace = TRACES["trial_learns_only_at_the_peak"]()
    reading = trace.probes.trial
    unplanned = replace(reading, rates=replace(reading.rates, planned=False))
    trace.probes = replace(trace.probes, trial=unplanned)
    assert judge(trace, ()).verdict == "undecided"


@pytest.mark.parametrize(
    ("critic", "generator", "verdict"),
    [
        (np.linspace(1.4, 1.2, 100), np.full(100, 0.7), "healthy"),
        (np.linspace(1.4, 1.2, 100), np.linspace(0.7, 2.0, 100), "healthy"),  # one learns at the cost of the other
        (np.full(100, 1.4), np.full(100, 0.7), "undecided"),
        (1.4 * np.exp(-np.arange(100) / 10.0), np.linspace(0.7, 9.0, 100), "undecided"),  # the first has won
    ],
)
def test_a_train_step_of_several_losses_is_judged_by_each_of_them(critic, generator, verdict):
    trace = Trace(["dense"])
    trace.extend(step=range(100), gradient_norm=np.ones(100))
    noise = 0.01 * np.sin(7.0 * np.arange(100))
    logs = {"critic_loss": tuple(critic + noise), "generator_loss": tuple(generator + noise), "accuracy": (0.5,) * 100}
    trace.probes = replace(trace.probes, trial=TrialReading(steps=100, batches=20, logs=logs))
    judged = judge(trace, ())
    assert judged.verdict == verdict and "'critic_loss' went from" in judged.reason


@pytest.mark.parametrize(
    ("loss", "end", "baseline", "verdict"),
    [
        (STANDING, 1.1, 2.3, "healthy"),  # a plateau that was left
        (STANDING, 2.3, 2.3, "undecided"),
        (STANDING, 2.29, None, "undecided"),
        (STANDING, 1.1, None, "healthy"),
        (BROKEN, 1.1, 2.3, "unhealthy"),
    ],
)
def test_further_steps_decide_where_the_trial_was_too_short(loss, end, baseline, verdict):
    trace = trial(loss)
    further = (OutputTrial(0, "loss", 2.3, end, baseline, noise=0.001),)
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, further=further, further_steps=400))
    judged = judge(trace, ())
    assert judged.verdict == verdict
    assert verdict == "unhealthy" or f"{rounded(end)} after 500 steps" in judged.reason


@pytest.mark.parametrize(
    ("later", "verdict"),
    [
        ({"further_broken": 260}, "unhealthy"),
        ({"further": (OutputTrial(0, "loss", 2.3, 40.0, 2.3),)}, "unhealthy"),
        ({"further": (OutputTrial(0, "loss", 2.3, 2.4, 2.3),)}, "undecided"),  # back at a constant answer
        ({"further": (OutputTrial(0, "loss", 2.3, 0.1, 2.3),)}, "healthy"),
    ],
)
def test_what_was_learned_in_the_trial_may_be_lost_in_the_steps_behind_it(later, verdict):
    trace = trial(FALLING)
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, further_steps=400, **later))
    assert judge(trace, ()).verdict == verdict


def test_a_trial_goes_on_towards_the_end_of_the_planned_training():
    x = np.random.default_rng(0).normal(size=(256, 4)).astype("float32")
    steps = []
    for epochs in (None, 4, 10):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        found = gr.diagnose(model, x, x.sum(axis=1), steps=16, epochs=epochs)
        assert found.verdict == "healthy"
        steps.append(found.trace.probes.trial.further_steps)
    assert steps == [0, 16, 64]


@pytest.mark.parametrize(
    ("trained", "own", "end", "steps", "told"),
    [
        (0.01, 2.0, 0.3, None, True),
        (2.0, 2.0, 0.3, None, False),  # they do belong to their samples; how far the training goes is not known
        (2.0, 2.0, 0.3, 500, True),  # and this is the end of it: most of what was learned is lost
        (2.0, 0.9, 0.3, 500, False),
        (0.01, 2.0, 1.9, None, False),
    ],
)
def test_what_was_learned_must_show_in_the_answers(trained, own, end, steps, told):
    """A layer that does something else in training than afterwards, as one that drops units at both times."""
    trace = trial(FALLING)
    further = (OutputTrial(0, "loss", 2.3, end, 2.3, 0.01),)
    held = (HeldBackReading(0, trained, trained, 0.02, 0.02, 400, own, 0.05),)
    changes = {"further": further, "further_steps": 400, "held_back": held}
    changes |= {"rates": PlannedRates(steps, steps is not None, 0.01, 0.01, 0.01, 0)}
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, **changes))
    found = find(trace)
    assert ("broken_validation" in [one.code for one in found]) is told
    assert judge(trace, found).verdict == ("unhealthy" if told else "healthy")


@pytest.mark.parametrize(("epochs", "further"), [(100, 1400), (40, 700), (None, 400)])
def test_a_trial_that_learned_nothing_goes_on_towards_the_planned_end(epochs, further):
    x = np.random.default_rng(0).normal(size=(640, 4)).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros", trainable=False)])
    model.add(keras.layers.Dense(1, kernel_initializer="zeros"))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    found = gr.diagnose(model, x, x[:, :1] - x[:, 0].mean(), batch_size=32, epochs=epochs)
    assert found.trace.probes.trial.further_steps == further


def test_a_step_that_breaks_after_those_of_the_trial_is_looked_into():
    """The root of what is left below 1, which gradient descent uses up in some 200 steps."""
    x = np.random.default_rng(0).normal(size=(256, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(
        keras.optimizers.SGD(4 / 600), lambda y, answer: keras.ops.mean(keras.ops.sqrt(1.0 - answer), axis=-1)
    )
    found = gr.diagnose(model, x, np.zeros((256, 1), "float32"), batch_size=16, epochs=40)
    assert 150 < found.trace.probes.trial.further_broken < 250
    assert found.findings[0].code == "unsafe_loss"
    assert "square root" in str(found)


@pytest.mark.parametrize(("loss", "later"), [(FALLING, True), (STANDING, False)])
def test_several_outputs_count_as_they_end_where_the_trial_began_well(loss, later):
    outputs = (OutputTrial(0, "kind", 1.5, 0.1, 1.1), OutputTrial(1, "price", 9e4, 9e4, 9e4))
    further = tuple(replace(one, end=0.01 * (one.end or 0.0)) for one in outputs)
    trace = trial(loss)
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, outputs=outputs, further=further))
    assert in_the_end(trace) == (further if later else outputs)
