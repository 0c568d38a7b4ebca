"""What programs that nobody tuned to fail of: what fires on their traces, and the neighbouring trace that must not."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.core.trace.autopsy import Autopsy, Offender, OffenderKind, Operation
from gradrecipes.core.trace.trial_reading import AnswersReading, PlannedRates
from gradrecipes.diagnosis.engine import find
from gradrecipes.diagnosis.judgement import judge
from gradrecipes.diagnosis.outcome import rival_losses, verdict
from gradrecipes.diagnosis.rules.vanishing_initialization import vanishing_initialization
from gradrecipes.probes.signal import signal
from gradrecipes.probes.varied.variations import usual_optimizer
from gradrecipes.training.description.describe import describe_model
from tests.diagnosis import hand_made
from tests.diagnosis.contradictions import contradictions
from tests.diagnosis.hand_made import BROKEN, FALLING, STANDING, STEPS, labels, trial, with_data
from tests.diagnosis.probed import STANDS_STILL, assert_sound, digits, probed

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
    changed = (replace(target, between_batches=share),)
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
        (1.4 * DECAY, -0.7 * DECAY, np.ones(STEPS), "unhealthy", ["loss_without_gradient"]),  # at its upper end
        (1.4 * DECAY, RISING, np.ones(STEPS), "undecided", []),  # won, and the other can still follow
        (1.4 * DECAY**0.25, RISING, np.ones(STEPS), "healthy", []),  # ahead: one learns at the cost of the other
    ],
)
def test_the_losses_of_rivals_are_judged_by_each_of_them(judged, forge, gradient, verdict_on, found):
    trace = of_rivals(judged, forge, gradient)
    assert codes(trace) == found
    assert judge(trace, find(trace)).verdict == verdict_on


@pytest.mark.parametrize(("forged", "verdict_on"), [(RISING, "healthy"), (0.7 * DECAY**0.01, "healthy")])
def test_a_sum_of_rival_losses_is_not_judged_where_they_part(forged, verdict_on):
    """What one wins the other one loses; the sum of both need not fall. Losses that fall together are a sum."""
    judged = 1.4 * DECAY**0.1
    trace = of_rivals(judged, forged, np.ones(STEPS))
    logs = {"loss": judged + forged, "judge": judged, "forger": forged}
    trace = with_trial(trace, logs={name: tuple(values.tolist()) for name, values in logs.items()})
    assert ("loss" in rival_losses(trace)) == (forged is not RISING) or not rival_losses(trace)
    assert judge(trace, find(trace)).verdict == verdict_on


@pytest.mark.parametrize(
    ("slope", "loss", "told"), [(0.0, STANDING, True), (1e-3, STANDING, False), (0.0, FALLING, False)]
)
def test_a_loss_without_slope_in_any_answer_is_told(slope, loss, told):
    trace = with_trial(with_data(loss, y=labels()), answers=AnswersReading(2.3, 2.3, entries=1, slope=slope))
    assert ("loss_without_gradient" in codes(trace)) == told


def test_an_adaptive_optimizer_divides_a_large_gradient_away_in_a_run_that_falls():
    for name, loss in (("Adam", FALLING), ("SGD", FALLING), ("Adam", STANDING)):
        trace = trial(3.0 + np.asarray(loss), norm=1e5)
        optimizer = replace(trace.description.optimizer, name=name)
        trace.description = replace(trace.description, optimizer=optimizer)
        assert ("exploding_gradient" in codes(trace)) != (name == "Adam" and loss is FALLING)


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


class _Wrapped(keras.Model):
    """A net within a train step of its own, which trains its last layer, all of it, or nothing."""

    def __init__(self, trained):
        super().__init__()
        hidden = layers.Dense(32, activation="relu", kernel_initializer=keras.initializers.RandomNormal(stddev=1e-3))
        self.net = keras.Sequential([keras.Input((64,)), hidden, layers.Dense(10)])
        self.trained = trained

    def call(self, x, training=False):
        return self.net(x, training=training)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        weights = self.net.trainable_variables[self.trained]
        gradients = tape.gradient(loss, weights)
        if weights:
            self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return {"loss": loss}


class _Fixed(layers.Layer):
    def __init__(self, trainable):
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal((64, 16), seed=(0, 0)) / 8.0, trainable=trainable)

    def call(self, x):
        return keras.ops.tanh(keras.ops.matmul(x, self.kernel))


def _winner(x):
    return keras.ops.one_hot(keras.ops.argmax(x, axis=-1), 16)


def _winner_straight_through(x):
    return x + keras.ops.stop_gradient(_winner(x) - x)


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (lambda: [layers.Dense(16, activation="tanh"), layers.Lambda(_winner)], "loss_without_gradient"),
        (lambda: [layers.Dense(16, activation="tanh"), layers.Lambda(_winner_straight_through)], None),
        (lambda: [_Fixed(True)], "frozen_weights"),
        (lambda: [_Fixed(False)], None),
    ],
    ids=["argmax", "straight_through", "untracked", "fixed_on_purpose"],
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
def test_weights_that_no_step_changes_are_told(build, code):
    x, y = digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), *build(), layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    found = gr.diagnose(model, x, y)
    assert [one.code for one in found.findings] == ([] if code is None else [code])
    if code is not None:
        assert_sound(found.findings[0], code)


@pytest.mark.parametrize(("trained", "told"), [(slice(2, 4), True), (slice(0, 0), True), (slice(0, 4), False)])
def test_a_train_step_that_leaves_weights_out_is_told(trained, told):
    x, y = digits()
    keras.utils.set_random_seed(0)
    model = _Wrapped(trained)
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = gr.diagnose(model, x, y)
    assert ("frozen_weights" in [one.code for one in found.findings]) == told


class _Judged(keras.Model):
    def __init__(self, activation):
        super().__init__()
        self.hidden, self.last = layers.Dense(16, activation="relu"), layers.Dense(1, activation=activation)

    def call(self, x):
        return self.last(self.hidden(x))


@pytest.mark.parametrize(("activation", "verdict"), [("softmax", "unhealthy"), ("sigmoid", "healthy")])
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")
def test_what_predict_gives_for_all_samples_is_no_success(activation, verdict):
    """Keras trains on the logits before a softmax over one unit, which are fine, and answers 1 for every sample."""
    x, y = digits()
    keras.utils.set_random_seed(0)
    model = _Judged(activation)
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    found = gr.diagnose(model, x, (y > 4).astype("float32"))
    assert found.verdict == verdict
    assert not found.findings or found.findings[0].code == "loss_output_mismatch"


def _overlap(y, p):
    return (2.0 * keras.ops.sum(y * p) + 1.0) / (keras.ops.sum(y) + keras.ops.sum(p) + 1.0)


@pytest.mark.parametrize(("loss", "told"), [(_overlap, True), (lambda y, p: 1.0 - _overlap(y, p), False)])
def test_a_score_that_is_minimized_is_told(loss, told):
    x, y = digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, activation="relu"), layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.01), loss)
    found = [one.code for one in gr.diagnose(model, x, (y > 6).astype("float32")[:, None]).findings]
    assert found[:1] == (["loss_output_mismatch"] if told else [])


def test_a_loss_that_compares_all_with_all_is_told_of_targets_in_a_column_too():
    x, y = digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, activation="relu"), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), lambda y, p: keras.ops.mean((y - keras.ops.reshape(p, (-1,))) ** 2))
    found = gr.diagnose(model, x, y.astype("float32"))
    assert found.findings[0].code == "loss_output_mismatch" and "every target" in found.findings[0].title


@pytest.mark.parametrize("nested", [False, True])
def test_a_scaling_that_does_not_fit_the_data_is_told(nested):
    x, y = digits()  # between 0 and 1 already
    keras.utils.set_random_seed(0)
    fixed = layers.Rescaling(1 / 127.5, offset=-1.0) if nested else layers.Rescaling(1 / 255)
    scaling = [fixed, layers.Dense(32, "relu")]
    base = [keras.Sequential([keras.Input((64,)), *scaling])] if nested else scaling
    model = keras.Sequential([keras.Input((64,)), *base, layers.Dense(10, "softmax")])
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    found = gr.diagnose(model, x, y).findings
    assert_sound(found[0], "unscaled_inputs")
    assert "behind its Rescaling" in found[0].title


@pytest.mark.parametrize(("size", "told"), [(500.0, True), (1.0, False)])
def test_a_column_that_a_larger_one_outweighs_is_told(size, told):
    x, y = digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, "relu"), layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    targets = np.stack([size * (x.mean(axis=1) - 0.3), 0.05 * (y > 4)], axis=1).astype("float32")
    found = gr.diagnose(model, x, targets).findings
    assert [one.code for one in found][:1] == (["unscaled_targets"] if told else [])


def test_a_loss_that_is_multiplied_by_0_is_told():
    x, y = digits()
    model = keras.Sequential([keras.Input((64,)), layers.Dense(10, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", loss_weights=[0.0])
    assert codes(gr.diagnose(model, x, y).trace)[0] == "unscaled_loss_weights"


def test_a_loss_that_is_summed_over_all_places_is_told():
    x, _ = digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64, 1)), layers.Dense(16, "relu"), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError(reduction="sum"))
    assert_sound(gr.diagnose(model, x[:, :, None], x[:, :, None]).findings[0], "unscaled_loss_weights")


def test_penalties_that_keep_all_answers_equal_are_told():
    x, _ = digits()
    keras.utils.set_random_seed(0)
    codes_of = layers.Dense(40, "relu", activity_regularizer=keras.regularizers.L1(1.0))
    model = keras.Sequential([keras.Input((64,)), codes_of, layers.Dense(64, "sigmoid")])
    model.compile(keras.optimizers.Adam(2e-3), "binary_crossentropy")
    assert_sound(gr.diagnose(model, x, x).findings[0], "unbalanced_loss_terms")


@pytest.mark.slow
def test_a_penalty_that_a_higher_rate_lowers_without_learning_is_told():
    x, y = digits(1797)
    keras.utils.set_random_seed(0)
    held = layers.Dense(32, "relu", activity_regularizer=keras.regularizers.L2(100.0))
    model = keras.Sequential([keras.Input((64,)), held, layers.Dense(10, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    assert "excessive_regularization" in [finding.code for finding in gr.diagnose(model, x, y).findings]


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ({"unique": 1, "values": [3.0]}, True),
        ({"unique": 1, "values": [3.0], "samples": 12}, False),
        ({"unique": 1, "values": [3.0], "between_batches": 1.0}, False),
        ({"unique": 2, "values": [3.0, 4.0]}, False),
    ],
)
def test_targets_of_one_class_are_told(targets, told):
    found = codes(with_data(FALLING, y=labels(**targets)))
    assert ("loss_output_mismatch" in found) == told


@pytest.mark.parametrize(("hidden", "told"), [(4, True), (1, False)])
def test_hidden_layers_that_end_in_a_softmax_shrink_the_gradient(hidden, told):
    x, y = digits()
    keras.utils.set_random_seed(0)
    softmaxes = [layers.Dense(64, "softmax") for _ in range(hidden)]
    model = keras.Sequential([keras.Input((64,)), *softmaxes, layers.Dense(10, "softmax")])
    trace = probed(model, x, y, "sparse_categorical_crossentropy", run=STANDS_STILL)
    trace.probes = replace(trace.probes, signal=signal(model, (x[:32], y[:32])))
    found = vanishing_initialization(trace)
    assert (found is not None) == told
    if told:
        assert "softmax" in assert_sound(found, "vanishing_initialization").title


@pytest.mark.parametrize(("depend", "told"), [(False, True), (True, False)])
def test_a_solution_that_is_the_same_everywhere_leaves_a_smaller_term_unlearned(depend, told):
    """Equal answers solve the equation; the term that asks for more began ten times smaller alone."""
    trace = hand_made.of_solved_equation(initial=0.99, residual=0.01)
    logs = {name: np.array(values) for name, values in trace.probes.trial.logs.items()}
    logs["residual"] = logs["residual"] / 100.0
    logs["loss"] = logs["initial"] + logs["residual"]
    read = {name: tuple(map(float, values)) for name, values in logs.items()}
    answers = AnswersReading(1.0, 2.0 if depend else 1.0, 0.01)
    changes = {"logs": read, "answers": answers, "further_steps": 400}
    soon, late = (PlannedRates(steps, True, 0.01, 0.01, 0.01, 0) for steps in (500, 5000))
    assert ("unbalanced_loss_terms" in codes(with_trial(trace, rates=soon, **changes))) == told
    assert "unbalanced_loss_terms" not in codes(with_trial(trace, rates=late, **changes))


@pytest.mark.parametrize(("cut", "told"), [(("term 1 of the sum",), True), ((), False)])
def test_a_term_that_no_slope_leads_from_is_told(cut, told):
    trace = trial(FALLING)
    trace.description = replace(trace.description, own_train_step=True)
    assert ("loss_without_gradient" in codes(with_trial(trace, cut_off=cut))) == told


@pytest.mark.parametrize(("momentum", "end", "told"), [(0.999, 0.4, True), (0.999, 2.28, False), (0.9, 0.4, False)])
def test_settings_without_which_the_net_learns_are_told(momentum, end, told):
    varied = {"usual_optimizer": {"start": 2.3, "end": end, "fall": 1.0 - end / 2.3, "over_baseline": end / 2.3}}
    trace = trial(STANDING, varied=varied)
    optimizer = replace(trace.description.optimizer, name="SGD", settings={"momentum": momentum})
    trace.description = replace(trace.description, optimizer=optimizer)
    soon, late = (PlannedRates(steps, True, 0.01, 0.01, 0.01, 0) for steps in (100, 5000))
    assert ("optimizer_state" in codes(with_trial(trace, rates=soon))) == told
    assert "optimizer_state" not in codes(with_trial(trace, rates=late))


def test_the_usual_settings_of_an_optimizer_last_as_long_as_they_are_asked_for():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.999, clipnorm=1e-3), "mse")
    unusual = describe_model(model).optimizer.unusual
    with usual_optimizer(model, unusual):
        assert (model.optimizer.momentum, model.optimizer.clipnorm) == (0.9, None)
    assert (model.optimizer.momentum, model.optimizer.clipnorm) == (0.999, 1e-3)


@pytest.mark.parametrize("by_class", [True, False])
def test_weights_are_called_what_the_user_gave(by_class):
    x = np.random.default_rng(0).normal(size=(320, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2, activation="softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    weights = {"class_weight": {0: 3e4, 1: 3e4}} if by_class else {"sample_weight": np.full(320, 3e4)}
    found = next(one for one in gr.diagnose(model, x, y, **weights).findings if one.code == "unscaled_loss_weights")
    assert found.title.startswith("Class weights" if by_class else "Sample weights")
    assert ("class_weight" in found.prescriptions[0].code) == by_class


@pytest.mark.parametrize(("end", "linear", "told"), [(0.5, 0.1, True), (0.5, 0.4, False), (0.04, 0.001, False)])
def test_targets_of_which_a_few_are_out_of_reach_are_told_where_a_linear_head_halves_the_loss(end, linear, told):
    """A fifth is negative, under a relu; not told where a linear layer is no better, or where nothing is left."""
    varied = {"linear_head": {"start": 2.0, "end": linear, "fall": 0.9}}
    targets = hand_made.array("y") | hand_made._TARGETS | {"shape": [1], "share_below_0": 0.2}
    output = hand_made._REGRESSION | {"activation": "relu", "activations": ["relu"], "loss": "mean_squared_error"}
    output |= {"loss_class": "MeanSquaredError", "config": {}}
    trace = with_data(np.geomspace(2.3, end, STEPS), y=targets, output=output, varied=varied)
    assert ("loss_output_mismatch" in codes(with_output(trace, sums_to_one=0.0, target_shape=(1,)))) == told
