"""What the rules say beyond firing: when, how grave, what broke first, by how much to lower the rate."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from gradrecipes.core.findings import Severity
from gradrecipes.core.trace import SKIPPED_LOSS, Trace
from gradrecipes.core.trace.data_reading import INPUTS, TWIN, HeldBackReading, LinearReading, Setting
from gradrecipes.core.trace.description import OptimizerDescription, Regularization
from gradrecipes.core.trace.trial_reading import (
    AnswersReading,
    OutputTrial,
    PlannedRates,
    TrialReading,
    VariationResult,
)
from gradrecipes.diagnosis.engine import find
from gradrecipes.diagnosis.judgement import judge, weights_of_parts
from gradrecipes.diagnosis.rules.exploding_gradient import exploding_gradient
from gradrecipes.diagnosis.rules.learning_rate_too_high import learning_rate_too_high
from gradrecipes.diagnosis.rules.learning_rate_too_low import learning_rate_too_low
from gradrecipes.diagnosis.rules.nonfinite_loss import nonfinite_loss
from gradrecipes.diagnosis.rules.runaway_weights import runaway_weights
from tests.diagnosis.hand_made import long_run, trial
from tests.diagnosis.test_unseen_kinds import codes, with_trial
from tests.records import described


@pytest.mark.parametrize(
    "name, severity, step, says",
    [
        ("bad_batch", Severity.CRITICAL, 33, "the inputs of this batch contain NaN"),
        ("isolated_bad_batch_skipped", Severity.WARNING, 33, "That points to the data"),
        ("bad_batch_every_epoch_skipped", Severity.WARNING, 3, "once in each of 3 epochs"),
        ("all_batches_bad_skipped", Severity.WARNING, 0, "So many are no accident"),
        ("nan_from_the_start", Severity.CRITICAL, 0, "The very first loss"),
        ("gradient_overflow", Severity.CRITICAL, 40, "A gradient was not finite first"),
        ("rate_too_high_squared_loss", Severity.CRITICAL, 2, "It was rising before that"),
    ],
)
def test_nonfinite_loss_tells_when_and_what_broke_first(name, severity, step, says, trace_of):
    finding = nonfinite_loss(trace_of(name))
    assert (finding.severity, finding.step) == (severity, step)
    assert says in finding.explanation
    epoch, batch = trace_of(name).locate(step)
    assert f"epoch {epoch + 1}, batch {batch + 1} (step {step})" in finding.title


def test_weights_that_broke_without_a_gradient_point_to_the_optimizer():
    trace = Trace(["dense"])
    trace.extend(step=range(4), loss=[1.0, 1.0, np.nan, np.nan], gradient_norm=[1.0, 1e19, np.nan, np.nan])
    trace.extend_samples(
        step=range(4), weight_norm=[[5.0], [5.0], [np.nan], [np.nan]], output_rms=[[1.0]] * 2 + [[np.nan]] * 2
    )
    finding = nonfinite_loss(trace)
    assert "optimizer" in finding.explanation and finding.layer == "dense"


def test_infinite_is_called_infinite():
    trace = Trace(["dense"])
    trace.extend(step=range(3), loss=[1.0, np.inf, np.inf], gradient_norm=[1.0, 1.0, 1.0])
    assert "infinite" in nonfinite_loss(trace).title


def test_a_skipped_nan_counts_even_where_the_loss_was_not_kept(trace_of_losses):
    outcome = np.zeros(20, int)
    outcome[7] = SKIPPED_LOSS
    assert nonfinite_loss(trace_of_losses(np.linspace(2, 1, 20), outcome=outcome)).step == 7


@pytest.mark.parametrize(
    "name, severity, step",
    [
        ("gradient_overflow", Severity.CRITICAL, 39),
        ("gradient_overflow_skipped", Severity.WARNING, 20),
        ("spike_for_good", Severity.CRITICAL, 200),
        ("variance_4_at_30_layers", Severity.CRITICAL, 0),
    ],
)
def test_exploding_gradient_tells_since_when(name, severity, step, trace_of):
    finding = exploding_gradient(trace_of(name))
    assert (finding.severity, finding.step) == (severity, step)


def test_clipped_and_skipped_steps_are_named(trace_of_losses):
    trace = trace_of_losses(
        np.r_[np.linspace(2, 1, 150), np.full(60, 5.0)], norms=np.r_[np.ones(150), np.full(60, 80.0)]
    )
    trace.steps["clip_factor"][150:] = 0.0125
    statements = " ".join(item.statement for item in exploding_gradient(trace).evidence)
    assert "60 of 210 steps were clipped" in statements and "0.0125" in statements


def test_layers_next_to_zero_have_no_ratio(simulate):
    trace = Trace(["zero_head"], description=described({"layers": [{"name": "zero_head", "parameters": 650}]}))
    trace.append(step=0, loss=2.3, gradient_norm=30.0, layer_gradient_norm=[30.0])
    trace.extend_samples(step=[0], weight_norm=[[1e-4]])
    assert exploding_gradient(trace) is None


@pytest.mark.parametrize("name", ["rate_10", "rate_3_adam", "rate_too_high_squared_loss"])
def test_the_prescribed_rate_trains(name, trace_of, simulate):
    sick = trace_of(name)
    finding = learning_rate_too_high(sick)
    lower = float(re.search(r"Lower the learning rate to ([\d.e-]+)", finding.prescriptions[0].title).group(1))
    assert lower <= sick.description.learning_rate / 10
    healed = simulate(rate=lower, steps=200, optimizer=sick.description.optimizer.name, loss=sick.description.loss)
    assert learning_rate_too_high(healed) is None
    assert healed.loss[-20:].mean() < 0.5 * healed.loss[0]


def test_prescriptions_keep_the_users_optimizer(trace_of):
    trace = trace_of("rate_10")
    optimizer = replace(trace.description.optimizer, settings={"momentum": 0.9, "nesterov": True})
    trace.description = replace(trace.description, optimizer=optimizer)
    lower, warm, clip = learning_rate_too_high(trace).prescriptions
    assert "keras.optimizers.SGD(learning_rate=0.02, momentum=0.9, nesterov=True)" in lower.code
    assert "warmup_steps" in warm.code and "global_clipnorm=1.0" in clip.code


def test_without_a_known_rate_it_is_divided(trace_of_losses):
    trace = trace_of_losses(2.3 * 1.05 ** np.arange(120), update=0.4)
    trace.description = described({})
    finding = learning_rate_too_high(trace)
    assert "model.optimizer.learning_rate / 50" in finding.prescriptions[0].code


def test_a_break_without_a_witness_is_no_proof(trace_of_losses):
    values = np.r_[np.linspace(2, 1.5, 20), np.full(30, np.nan)]
    assert learning_rate_too_high(trace_of_losses(values)) is None
    assert learning_rate_too_high(trace_of_losses(values, update=0.8)) is not None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rate, optimizer", [(0.01, "SGD"), (0.1, "SGD"), (1e-3, "Adam"), (1e-2, "Adam")])
def test_usual_rates_raise_no_alarm(rate, optimizer, seed, simulate):
    trace = simulate(rate=rate, optimizer=optimizer, steps=120, seed=seed)
    assert learning_rate_too_high(trace) is None
    assert exploding_gradient(trace) is None


def test_gradients_that_begin_at_zero_may_explode_later():
    """A saturated softmax whose loss sees only clipped probabilities has a gradient of exactly 0 at first."""
    trace = Trace(["dense"], description=described({"loss": "sparse_categorical_crossentropy"}))
    loss = [14.1, 14.4, 15.0, 1.5e4, 1e10, *[np.nan] * 5]
    trace.extend(step=range(10), loss=loss, gradient_norm=[0.0, 2e-5, 3e-5, 1.2e4, 4e5, *[np.nan] * 5])
    assert exploding_gradient(trace).step == 3
    assert learning_rate_too_high(trace) is None  # a loss of 14 at the start is no fault of the rate


def test_weights_that_steps_blew_up_are_no_rate_that_is_too_low(trace_of_losses):
    steps = np.arange(400)
    standing = trace_of_losses(2.3 + 0.01 * np.sin(steps))
    blown_up, learned = (Trace(["dense"]) for _ in range(2))
    for trace, loss in ((blown_up, standing.loss), (learned, np.where(steps < 20, standing.loss, 0.1))):
        trace.extend(step=steps, loss=loss, gradient_norm=np.r_[5.0, np.full(399, 1e-3)])
        trace.extend_samples(
            step=[0, 100, 200, 300],
            weight_norm=[[8.0], [400.0], [400.0], [400.0]],
            update_ratio=[[50.0], [1e-7], [1e-7], [1e-7]],
        )
    assert learning_rate_too_low(blown_up) is None
    assert learning_rate_too_high(blown_up).severity is Severity.CRITICAL
    assert learning_rate_too_high(learned) is None


@pytest.mark.parametrize(("doubled_every", "severity"), [(100, Severity.WARNING), (50, Severity.NOTICE)])
def test_steps_that_span_decades_are_a_notice_as_a_range_test_is_meant_to_have_them(doubled_every, severity):
    finding = runaway_weights(long_run(lambda step: 2.0 ** (step / doubled_every), updates=True))
    assert finding.severity is severity
    assert ("range test" in finding.explanation) is (severity is Severity.NOTICE)


def test_weights_that_span_decades_are_a_warning():
    assert runaway_weights(long_run(lambda step: 2.0 ** (step / 50))).severity is Severity.WARNING


def unlearned(end, **changes):
    """Return a trial that is no better than a constant prediction, with what a linear function learns beside it."""
    rates = PlannedRates(1000, True, 0.01, 0.01, 0.01, 0)
    further = (OutputTrial(0, "loss", 2.4, end, 2.3, 0.01),)
    reading = {
        "linear": (LinearReading(0, 2.3, 0.4, 0.05, 200),),
        "further": further,
        "further_steps": 400,
        "rates": rates,
    }
    return with_trial(trial(np.linspace(2.4, 2.32, 100)), **(reading | changes))


@pytest.mark.parametrize(
    ("end", "changes", "told"),
    [
        (2.31, {}, True),
        (2.31, {"linear": (LinearReading(0, 2.3, 2.2, 0.05, 200),)}, False),  # no linear function learns it either
        (2.31, {"linear": ()}, False),
        (2.31, {"rates": PlannedRates(1000, True, 1e-6, 1e-5, 0.01, 900)}, False),  # a warm-up that goes on
        (2.28, {"further": (OutputTrial(0, "loss", 3.0, 2.28, 2.1, 0.01),)}, False),  # it falls on
        (2.28, {"further": (OutputTrial(0, "loss", 3.0, 2.28, 2.1, 0.01),), "rates": PlannedRates(500, True)}, True),
        (1.9, {}, False),
        (2.0, {"further": (OutputTrial(0, "loss", 2.4, 2.0, 2.3, 0.5),)}, False),  # lower, if within its noise
        (2.31, {"answers": AnswersReading(1.0, 2.0, 0.1)}, False),  # the answers depend on the inputs
        (
            2.31,
            {"linear": (LinearReading(0, 2.3, 0.4, 0.05, 200, INPUTS, 0.9, 0.3, 2.3, 0.02),)},
            False,
        ),  # they are good
    ],
)
def test_a_net_that_learns_less_than_a_linear_function_is_unhealthy(end, changes, told):
    trace = unlearned(end, **changes)
    assert ("stalled_loss" in codes(trace)) == told
    assert (judge(trace, find(trace)).verdict == "unhealthy") == told


@pytest.mark.parametrize(
    ("own", "steps", "later", "told"),
    [
        (1.9, 500, 1.9, True),
        (1.1, 500, 1.9, False),
        (1.9, 5000, 1.9, False),
        (1.9, None, 1.9, False),
        (1.9, 500, 0.5, False),  # the moving averages are too young
    ],
)
def test_a_net_that_ends_far_behind_a_linear_function_is_unhealthy(own, steps, later, told):
    """Not where half of that is learned, nor where steps are left, nor where that is not known."""
    trace = trial(np.linspace(2.4, 2.0, 100))
    linear = LinearReading(0, 2.3, 0.4, 0.05, 200, own=own, own_linear=0.3, own_constant=2.3, own_noise=0.02)
    further = (OutputTrial(0, "loss", 2.4, later, 2.3, 0.01),)
    rates = PlannedRates(steps, steps is not None, 0.01, 0.01, 0.01, 0)
    trace = with_trial(trace, linear=(linear,), further=further, further_steps=400, rates=rates)
    assert ("stalled_loss" in codes(trace)) == told
    assert (judge(trace, find(trace)).verdict == "unhealthy") == told


@pytest.mark.parametrize(
    ("faults", "rate", "own", "codes_found"),
    [
        ((), None, 0.9, {"stalled_loss"}),
        ((Setting.OPTIMIZER,), 100.0, 0.9, {"stalled_loss", "learning_rate_too_low"}),
        ((Setting.OPTIMIZER,), None, 0.9, {"stalled_loss", "optimizer_state"}),
        ((Setting.REGULARIZATION,), None, 0.9, {"stalled_loss", "excessive_regularization"}),
        ((Setting.LOSS,), None, 0.9, {"stalled_loss", "loss_output_mismatch"}),
        ((Setting.LOSS,), None, 0.5, set()),  # it has learned more than half of what the twin has
    ],
)
def test_what_the_same_net_learns_with_standard_settings_is_told_with_what_is_at_fault(faults, rate, own, codes_found):
    trace = trial(np.linspace(2.4, 2.0, 100))
    loss = "keras.losses.MeanSquaredError()"
    twin = LinearReading(0, 1.0, 0.2, 0.02, 200, TWIN, own, 0.2, 1.0, 0.02, faults=faults, rate=rate, loss=loss)
    trace = with_trial(trace, twin=twin, rates=PlannedRates(100, True, 0.01, 0.01, 0.01, 0))
    trace.description = replace(
        trace.description, regularization=(Regularization("dense", "dropout", "dropout of 0.9"),)
    )
    assert set(codes(trace)) == codes_found
    assert all(str(fault) in find(trace)[-1].explanation for fault in faults if codes_found)


@pytest.mark.parametrize(("name", "told"), [("SGD", True), ("RMSprop", False)])
def test_clipping_leaves_an_optimizer_that_divides_by_the_size_of_gradients_as_it_is(name, told):
    trace = trial(np.full(100, 2.4), norm=1e5)
    settings = {"global_clipnorm": 0.5, "epsilon": 1e-7 if name == "RMSprop" else None}
    trace.description = replace(trace.description, optimizer=OptimizerDescription(name, 0.01, settings=settings))
    assert ("optimizer_state" in codes(trace)) is told


def test_a_loss_that_breaks_on_its_way_down_has_no_minimum():
    steps = np.arange(100)
    falling = np.where(steps < 60, 40.0 - np.exp(0.2 * steps), np.nan)
    trace = trial(falling, norm=np.where(steps < 60, np.exp(0.2 * steps), np.nan))
    assert codes(with_trial(trace, broken=60, constant_baseline_loss=None))[0] == "unbounded_loss"


@pytest.mark.parametrize(
    ("momentum", "steps", "told"), [(0.9995, 400, True), (0.999, 4000, False), (0.9995, None, False)]
)
def test_an_average_that_has_not_followed_the_weights_when_it_replaces_them_is_told(momentum, steps, told):
    trace = trial(np.linspace(2.4, 0.2, 100))
    optimizer = OptimizerDescription("Adam", 0.01, settings={"use_ema": True, "ema_momentum": momentum})
    trace.description = replace(trace.description, optimizer=optimizer)
    trace = with_trial(trace, rates=PlannedRates(steps, steps is not None, 0.01, 0.01, 0.01, 0))
    assert ("optimizer_state" in codes(trace)) is told


@pytest.mark.parametrize(("own", "end", "told"), [(1.9, 0.5, True), (1.9, 1.6, False), (0.9, 0.4, False)])
def test_a_rate_at_which_a_net_far_behind_a_simple_function_learns_is_told(own, end, told):
    trace = trial(np.linspace(2.4, 2.0, 100), varied={"rate_10": {"start": 2.4, "end": end, "fall": 1 - end / 2.4}})
    linear = LinearReading(0, 2.3, 0.4, 0.05, 200, own=own, own_linear=0.3, own_constant=2.3, own_noise=0.02)
    rates = PlannedRates(100, True, 0.01, 0.01, 0.01, 0)
    assert ("learning_rate_too_low" in codes(with_trial(trace, linear=(linear,), rates=rates))) == told


@pytest.mark.parametrize(("end", "told"), [(0.3, True), (2.5, False), (None, False)])
def test_a_rate_at_which_a_run_that_is_lost_late_is_not_lost_is_told(end, told):
    varied = {"rate_0.1": {"start": 2.3, "end": end, "fall": end and 1.0 - end / 2.3, "broken": None if end else 420}}
    trace = trial(np.linspace(2.3, 0.4, 100), varied=varied)
    trace = with_trial(trace, constant_baseline_loss=None, further_broken=420)
    assert ("learning_rate_too_high" in codes(trace)) == told
    assert judge(trace, find(trace)).verdict == "unhealthy"


@pytest.mark.parametrize(("moving", "end", "told"), [(True, 3e5, True), (True, 60.0, False), (False, 60.0, True)])
def test_a_loss_that_climbs_in_the_further_steps_diverges(moving, end, told):
    """One that follows the values of the net may rise as far as these may grow, not without end."""
    trace = trial(np.linspace(2.0, 1.0, 100) if not moving else np.linspace(2.0, 2.1, 100))
    further = (OutputTrial(0, "loss", 2.0, end, None, 0.01),)
    trace = with_trial(trace, moving_target=moving, constant_baseline_loss=None, further=further, further_steps=400)
    assert ("diverging_loss" in codes(trace)) == told


@pytest.mark.parametrize(("validated", "held", "told"), [(0.02, 1.2, True), (0.6, 1.2, False), (0.02, 0.1, False)])
def test_validation_data_of_which_nothing_holds_are_told(validated, held, told):
    read = HeldBackReading(0, 1.4, held, 0.05, 0.05, 900, 0.3, validated=validated, validated_noise=0.03)
    assert ("broken_validation" in codes(with_trial(trial(), held_back=(read,)))) == told


@pytest.mark.parametrize(("of_equal", "learned", "told"), [(2.3026, 1, True), (2.31, 1, False), (2.3026, 0, False)])
def test_a_rate_at_which_the_answers_begin_to_depend_on_the_inputs_is_told(of_equal, learned, told):
    varied = {"rate_100": {"start": 2.3026, "end": 2.3025, "fall": 4e-5, "outputs_learned": learned}}
    trace = trial(np.full(100, 2.3026), update=1e-6, varied=varied)
    answers = AnswersReading(2.3026, of_equal, 1e-6)
    trace = with_trial(trace, constant_baseline_loss=None, answers=answers)
    assert ("learning_rate_too_low" in codes(trace)) == told


@pytest.mark.parametrize(
    ("equation", "other", "constant", "told"),
    [(49.0, 0.01, None, True), (1e-3, 0.01, None, False), (0.5, 0.4, 0.5, True), (0.5, 0.4, 1.5, False)],
)
def test_a_term_without_a_name_that_no_step_changes_makes_up_the_loss(equation, other, constant, told):
    passes = np.arange(100) // 25
    parts = {"term 1 of the sum": np.full(100, equation), "term 2 of the sum": 0.1 + other * 0.5**passes}
    trace = trial(parts["term 1 of the sum"] + parts["term 2 of the sum"])
    trace.description = replace(trace.description, own_train_step=True)
    logs = {"loss": trace.loss, **parts}
    logs = {name: tuple(map(float, values)) for name, values in logs.items()}
    assert ("loss_without_gradient" in codes(with_trial(trace, logs=logs, constant_baseline_loss=constant))) == told


@pytest.mark.parametrize(
    ("end", "held", "unseen", "told"),
    [
        (1.9, 0.3, None, True),
        (1.9, 1.2, None, False),
        (0.9, 0.1, None, False),
        (0.9, 0.1, (1.0, 0.4, 0.02), True),
        (0.9, 0.1, (1.0, 0.4, 0.08), False),
        (0.9, 0.1, (1.0, 0.6, 0.02), False),
        (0.2, 0.01, (0.3, 0.02, 0.01), False),
        (1.9, None, None, False),
    ],
)
def test_a_schedule_that_is_over_with_much_left_to_learn_is_told(end, held, unseen, told):
    """Not where the net is well trained by then, nor where it learns the rows by heart, nor without the comparison."""
    trace = trial(np.linspace(2.3, 1.9, 100), description={"batch_size": 32})
    at_highest = None if held is None else VariationResult(1.9, held, 0.8, steps=400)
    rates = PlannedRates(1000, True, 0.0, 0.02, 0.02, 0, over_step=80, held=at_highest, unseen=unseen)
    further = (OutputTrial(0, "loss", 2.3, end, 2.3, 0.01),)
    trace = with_trial(trace, rates=rates, further=further, further_steps=400)
    assert ("learning_rate_too_low" in codes(trace)) == told


@pytest.mark.parametrize(
    ("end", "held", "steps", "told"),
    [(2.3, 0.01, 500, True), (0.3, 0.01, 500, False), (2.3, 1.4, 500, False), (2.3, 0.01, 900, False)],
)
def test_a_loss_that_climbs_with_the_rate_over_the_whole_training_is_told(end, held, steps, told):
    """Not where it ends about where the trial did, nor where it ends as high at a rate that is held, nor half-way."""
    trace = trial(np.geomspace(2.3, 0.2, 100), description={"batch_size": 32})
    result = VariationResult(0.2, 0.9, -3.5, over_baseline=0.4, steps=125)
    steady = VariationResult(0.2, held, 0.9, steps=400)
    rates = PlannedRates(steps, True, 0.0, 0.01, 0.1, 499, at_highest=result, raised_over=75, held=steady)
    further = (OutputTrial(0, "loss", 2.3, end, 2.3, 0.01),)
    trace = with_trial(trace, rates=rates, further=further, further_steps=400)
    assert ("learning_rate_too_high" in codes(trace)) == told


@pytest.mark.parametrize(("named", "weights"), [(True, {"a": 1.0, "b": 2.0}), (False, {})])
def test_the_terms_of_a_sum_are_asked_where_a_step_returns_metrics_alone(named, weights):
    random = np.random.default_rng(0)
    a, b, metric = random.uniform(1.0, 2.0, (3, 100))
    logs = {"loss": a + 2.0 * b, "error": metric, "term 1 of the sum": a, "term 2 of the sum": b}
    logs |= {"a": a, "b": b} if named else {}
    read = weights_of_parts(TrialReading(logs={name: tuple(values) for name, values in logs.items()}))
    assert read == pytest.approx(weights or {"term 1 of the sum": 1.0, "term 2 of the sum": 2.0})


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (HeldBackReading(0, 1.4, 0.01, 0.05, 0.05, 900), True),
        (HeldBackReading(0, 1.4, 0.30, 0.05, 0.05, 900), False),  # a part of it holds
        (HeldBackReading(0, 0.1, 0.01, 0.05, 0.05, 900), False),  # too little was learned to tell
    ],
)
def test_targets_of_other_inputs_are_told(read, told):
    assert ("corrupt_batch" in codes(with_trial(trial(), held_back=(read,)))) == told


@pytest.mark.parametrize(
    ("linear", "lower", "update", "told"),
    [(0.2, 0.4, 0.4, True), (1.4, 0.4, 0.4, False), (0.2, 0.8, 0.4, False), (0.2, 0.4, 1e-3, False)],
)
def test_a_rate_at_which_a_net_learns_far_less_than_a_linear_function_is_told(linear, lower, update, told):
    """Not without the linear function, nor where a lower rate is no better, nor where the steps are short."""
    varied = {"rate_0.1": {"start": 2.3, "end": lower, "fall": 0.8, "over_baseline": lower / 2.3}}
    trace = trial(np.linspace(2.3, 1.5, 100), update=update, varied=varied)
    found = codes(with_trial(trace, linear=(LinearReading(0, 2.3, linear, 0.02, 200),)))
    assert ("learning_rate_too_high" in found) == told


@pytest.mark.parametrize(("own", "told"), [(1.0, True), (0.2, False)])
def test_a_rate_at_which_a_loss_without_a_baseline_falls_far_less_is_told_beside_a_twin(own, told):
    """Samples that a step adds up take a rate as many times lower; not where the twin is no better than the net."""
    varied = {"rate_0.01": {"start": 2.3, "end": 0.1, "fall": 0.95}}
    trace = trial(np.linspace(2.7, 2.35, 100), update=0.7, varied=varied)
    reading = {"own": own, "own_linear": 0.1, "own_constant": 1.0, "own_noise": 0.02}
    twin = LinearReading(0, 1.0, 0.1, 0.02, 200, TWIN, **reading, faults=(str(Setting.OPTIMIZER),), rate=0.01)
    found = codes(with_trial(trace, twin=twin, constant_baseline_loss=None))
    assert ("learning_rate_too_high" in found) == told


@pytest.mark.parametrize(
    ("moving", "end", "verdict"), [(False, 8.0, "unhealthy"), (True, 8.0, "undecided"), (True, 3e4, "unhealthy")]
)
def test_a_loss_that_follows_the_values_of_the_net_may_rise(moving, end, verdict):
    """The values of Q-learning grow to those of all rewards to come, and their errors with them."""
    trace = with_trial(trial(np.geomspace(1.0, end, 100)), moving_target=moving, constant_baseline_loss=None)
    assert judge(trace, find(trace)).verdict == verdict
