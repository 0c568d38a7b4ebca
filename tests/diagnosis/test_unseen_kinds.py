"""What programs that nobody tuned to fail of: what fires on their traces, and the neighbouring trace that must not."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.core.trace.autopsy import Autopsy, Offender, OffenderKind, Operation
from gradrecipes.core.trace.trial_reading import PlannedRates
from gradrecipes.diagnosis.engine import find
from gradrecipes.diagnosis.judgement import judge
from gradrecipes.diagnosis.outcome import verdict
from tests.diagnosis import hand_made
from tests.diagnosis.contradictions import contradictions
from tests.diagnosis.hand_made import BROKEN, FALLING, STANDING, STEPS, labels, trial, with_data

layers = keras.layers


def codes(trace):
    found = find(trace)
    assert contradictions(tuple(found), trace) == []
    return [one.code for one in found]


def with_trial(trace, **changes):
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, **changes))
    return trace


def with_output(trace, **changes):
    first = replace(trace.probes.loss.outputs[0], **changes)
    trace.probes = replace(trace.probes, loss=replace(trace.probes.loss, outputs=(first,)))
    return trace


@pytest.mark.parametrize(("share", "told"), [(0.8, True), (0.1, False), (None, False)])
def test_batches_of_a_single_class_are_told(share, told):
    trace = with_data(FALLING, y=labels())
    (target,) = trace.probes.data.targets
    changed = (replace(target, single_class_batches=share),)
    trace.probes = replace(trace.probes, data=replace(trace.probes.data, targets=changed))
    assert ("corrupt_batch" in codes(trace)) == told


@pytest.mark.parametrize(
    ("beyond", "told"),
    [((0.8, 0.0, -0.33), True), ((0.8, 0.0, 0.8), False), ((0.7, 0.5, 0.4), False), (None, False)],
)
def test_a_loss_that_is_better_beyond_its_targets_needs_a_bounded_output(beyond, told):
    """An overlap is; a squared error grows there; a cross-entropy of logits is not 0 at the labels."""
    trace = with_output(with_data(FALLING, output=hand_made._REGRESSION), beyond=beyond)
    assert ("loss_output_mismatch" in codes(trace)) == told


@pytest.mark.parametrize(
    ("before", "after", "loss", "told"),
    [
        (1e-7, 1e-7, STANDING, True),
        (0.0, 0.3, STANDING, False),  # a last layer of zeros
        (0.3, 1e-7, STANDING, False),  # the answers became equal, as constant predictions are
        (1e-7, None, FALLING, False),
    ],
)
def test_answers_that_no_input_reaches_are_told(before, after, loss, told):
    trace = with_output(with_data(loss, y=labels()), sample_spread=before)
    assert ("loss_without_gradient" in codes(with_trial(trace, sample_spread=after))) == told


@pytest.mark.parametrize(
    ("over", "samples", "planned", "told"),
    [(12, 1000, None, True), (40, 1000, None, False), (12, 1000, 20, False), (None, 1000, None, False)],
)
def test_a_schedule_that_is_over_before_the_data_were_seen_is_told(over, samples, planned, told):
    trace = trial(np.linspace(2.3, 1.6, STEPS), description={"batch_size": 32})
    rates = PlannedRates(planned, planned is not None, 0.0, 0.02, 0.02, 0, over_step=over)
    trace.probes = replace(trace.probes, data=replace(trace.probes.data, samples=samples))
    assert ("learning_rate_too_low" in codes(with_trial(trace, rates=rates))) == told


def of_rivals(judge, forge, gradient):
    trace = trial(np.full(STEPS, np.nan), norm=1.0)
    trace.steps["gradient_norm"][:] = gradient
    trace.steps["layer_gradient_norm"][:] = np.asarray(gradient)[:, None]
    optimizer = replace(trace.description.optimizer, count=2)
    trace.description = replace(trace.description, optimizer=optimizer)
    logs = {"judge_loss": tuple(judge.tolist()), "loss": tuple(forge.tolist())}
    return with_trial(trace, logs=logs, broken=None, constant_baseline_loss=None)


DECAY = np.exp(-np.arange(STEPS) / 10.0)
RISING = np.linspace(0.7, 4.0, STEPS)


@pytest.mark.parametrize(
    ("judged", "forge", "gradient", "verdict_on", "found"),
    [
        (1.4 * DECAY, -0.7 * DECAY, DECAY, "unhealthy", ["loss_without_gradient"]),  # won, and nothing left to follow
        (1.4 * DECAY, RISING, np.ones(STEPS), "undecided", []),  # won, and the other can still follow
        (1.4 * DECAY**0.25, RISING, np.ones(STEPS), "healthy", []),  # ahead: one learns at the cost of the other
    ],
)
def test_the_losses_of_rivals_are_judged_by_each_of_them(judged, forge, gradient, verdict_on, found):
    trace = of_rivals(judged, forge, gradient)
    assert codes(trace) == found
    assert judge(trace, find(trace)).verdict == verdict_on


def test_a_value_that_leaves_half_precision_is_no_fault_of_the_arithmetic():
    offender = Offender(OffenderKind.LOSS, "loss", "inf", "It became infinite.")
    for dtype, expected in (("float16", "float16_overflow"), ("float32", "unsafe_loss")):
        operation = Operation("square", "Square", "a square that overflows", dtype=dtype)
        trace = trial(BROKEN, layers=lambda one, place: {"dtype": "float16"}, structure={})
        trace.description = replace(trace.description, own_train_step=True)
        trace = with_trial(trace, autopsy=Autopsy((offender,), operation=operation))
        found = codes(trace)
        assert expected in found and len({"float16_overflow", "unsafe_loss"}.intersection(found)) == 1 + (
            dtype == "float32" and "float16_overflow" in found
        )


def test_heavy_tails_are_compared_mean_with_mean():
    """Half of the batches lie below the mean of all from the start: that is nothing learned."""
    heavy = np.tile([0.1] * 9 + [14.1], 10) * np.linspace(1.0, 0.97, STEPS)
    trace = with_trial(trial(heavy), constant_baseline_loss=1.5)
    assert np.median(heavy) < 0.2 and not verdict(trace).end_over_baseline < 0.9
    assert judge(trace, ()).verdict == "undecided"


class Triplets(keras.Model):
    """Calls its net on parts of what it is given, so that its call cannot build it."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.embed = keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(4)])

    def call(self, x):
        return self.embed(x)

    def train_step(self, x):
        anchor, friend, stranger = tf.unstack(x, axis=1)
        with tf.GradientTape() as tape:
            here, near, far = self(anchor), self(friend), self(stranger)
            gap = tf.reduce_sum((here - near) ** 2, axis=1) - tf.reduce_sum((here - far) ** 2, axis=1)
            loss = tf.reduce_mean(tf.nn.relu(gap + 1.0))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@pytest.mark.slow
def test_a_net_that_is_called_on_parts_of_a_batch_is_built_by_its_train_step():
    random = np.random.default_rng(0)
    centres = random.normal(size=(5, 8))
    own, other = random.integers(0, 5, 320), random.integers(1, 5, 320)
    rows = np.stack([centres[own], centres[own], centres[(own + other) % 5]], axis=1)
    x = (rows + 0.3 * random.normal(size=rows.shape)).astype(np.float32)
    model = Triplets()
    model.compile(keras.optimizers.Adam(3e-3))
    diagnosis = gr.diagnose(model, x)
    assert diagnosis.verdict == "healthy" and not diagnosis.findings


@pytest.mark.slow
@pytest.mark.parametrize(("growth", "found"), [(1.6, ["learning_rate_too_high"]), (0.9, [])])
def test_a_schedule_that_rises_without_end_is_followed(growth, found):
    random = np.random.default_rng(0)
    x = random.normal(size=(640, 8)).astype(np.float32)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(32, activation="relu"), layers.Dense(3)])
    rate = keras.optimizers.schedules.ExponentialDecay(2e-3, decay_steps=25, decay_rate=growth)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    diagnosis = gr.diagnose(model, x, x[:, :3].argmax(axis=1))
    assert [one.code for one in diagnosis.findings] == found


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True])
def test_a_dataset_in_the_order_of_its_classes_is_told(mixed):
    random = np.random.default_rng(0)
    x = random.normal(size=(640, 8)).astype(np.float32)
    y = x[:, :4].argmax(axis=1)
    order = np.arange(640) if mixed else np.argsort(y, kind="stable")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(32, activation="relu"), layers.Dense(4)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    diagnosis = gr.diagnose(model, tf.data.Dataset.from_tensor_slices((x[order], y[order])).batch(32))
    first = [one.code for one in diagnosis.findings][:1]
    assert first == ([] if mixed else ["corrupt_batch"])
