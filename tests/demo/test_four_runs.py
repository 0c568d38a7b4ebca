from __future__ import annotations

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes import demo as four_runs
from gradrecipes.demo import load_digits

pytestmark = pytest.mark.slow
SHORT = 12  # layers: enough to explode and to be prescribed residual blocks, quick to trace


@pytest.fixture(scope="module")
def story():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(four_runs, "DEPTH", SHORT)
        patch.setattr(four_runs, "EPOCHS", 1)
        patch.setattr(four_runs, "BATCH_SIZE", 128)
        patch.setattr(four_runs, "RESCUE_STEPS", 60)
        names = []
        told = four_runs.tell_story(load_digits(), seed=0, progress=lambda name: names.append(name) or [])
    assert names == [run.name for run in told.runs]
    return told


def test_four_runs_in_order_and_only_the_monitored_have_a_trace(story):
    assert [run.name[:3] for run in story.runs] == ["(a)", "(b)", "(c)", "(d)"]
    assert [run.trace is not None for run in story.runs] == [False, False, True, True]
    assert [run.weights for run in story.runs[:3]] == [2 * (SHORT + 1)] * 3


def test_the_numbers_are_those_of_the_runs(story):
    guarded = story.runs[2]
    steps = int(np.ceil(1347 / 128))
    assert len(guarded.trace) == steps
    (epoch,) = [event for event in guarded.trace.events if event.kind == "epoch"]
    assert guarded.final_loss == pytest.approx(epoch.details["logs"]["loss"])
    assert guarded.skipped_steps == int(guarded.trace.skipped.sum())
    assert guarded.nonfinite_weights == 0
    assert story.runs[3].nonfinite_weights == 0
    for run in story.runs:
        assert run.test_accuracy * 450 == pytest.approx(round(run.test_accuracy * 450), abs=1e-3)


def test_the_diagnosis_is_that_of_the_guarded_run(story):
    assert story.diagnosis.trace is story.runs[2].trace
    assert story.diagnosis.findings[0].code == "exploding_initialization"


def test_the_fourth_run_is_what_the_rescue_returns(story):
    assert story.runs[3].weights == len(story.rescue.model.get_weights())
    assert story.prescription


def test_the_prescription_mends_what_it_was_written_for(story):
    # A rule that stays silent after the cure is the least that a prescription owes.
    assert "exploding_initialization" not in {finding.code for finding in gr.diagnose(story.runs[3].trace).findings}


def test_the_sick_net_starts_with_the_variance_it_says():
    net = four_runs.deep_net(seed=0)
    dense = [layer for layer in net.layers if isinstance(layer, keras.layers.Dense)]
    assert len(dense) == four_runs.DEPTH + 1 == 31
    variances = [float(np.var(layer.kernel.numpy())) * 64 for layer in dense[:-1]]
    assert np.mean(variances) == pytest.approx(four_runs.WEIGHT_VARIANCE, rel=0.05)


def test_the_digits_are_all_there_and_scaled():
    data = load_digits()
    assert (len(data.x_train), len(data.x_test)) == (1347, 450)
    assert data.x_train.dtype == np.float32 and data.x_train.min() >= 0 and data.x_train.max() == 1
    assert set(data.y_test) == set(range(10))
    np.testing.assert_array_equal(data.x_test, load_digits().x_test)


def test_of_the_demo_as_it_is_only_the_rescued_run_learns():
    *sick, rescued = four_runs.tell_story(load_digits()).runs
    assert all(run.test_accuracy < 0.4 for run in sick)
    assert rescued.test_accuracy > 0.8
