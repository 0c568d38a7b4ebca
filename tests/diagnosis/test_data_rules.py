"""Missing values, absurd samples, unscaled inputs and targets: found where they hurt, let be where they do not."""

from __future__ import annotations

import math
from dataclasses import replace

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes.core.findings import Severity
from gradrecipes.core.trace import SKIPPED_LOSS, Trace
from gradrecipes.core.trace.autopsy import Offender, OffenderKind
from gradrecipes.core.trace.data_reading import ArrayReading
from gradrecipes.diagnosis.rules.broken_validation import broken_validation
from gradrecipes.diagnosis.rules.corrupt_batch import corrupt_batch
from gradrecipes.diagnosis.rules.nonfinite_data import nonfinite_data
from gradrecipes.diagnosis.rules.unscaled_inputs import unscaled_inputs
from gradrecipes.diagnosis.rules.unscaled_targets import unscaled_targets
from gradrecipes.probes.data import read_numbers
from tests.diagnosis.probed import (
    BREAKS,
    FALLS,
    RUNS_AWAY,
    STANDS_STILL,
    assert_sound,
    diabetes,
    digits,
    net,
    probed,
    standardized,
    wine,
)
from tests.records import set_autopsy

layers = keras.layers
RULES = (nonfinite_data, corrupt_batch, unscaled_inputs, unscaled_targets)
LABELS = "sparse_categorical_crossentropy"


def of_digits(change=None, *, run=FALLS, model=None, **how):
    x, y = digits()
    if change is not None:
        change(x)
    return probed(model or net(64, 10, "softmax"), x, y, LABELS, run=run, **how)


def of_wine(scale=lambda x: x, *, model=None, **how):
    x, y = wine()
    return probed(model or net(13, 3, "softmax"), scale(x), y, LABELS, chance=1.09, **how)


def of_diabetes(scale=lambda y: y, *, loss="mse", activation=None, **how):
    x, y = diabetes()
    return probed(net(10, 1, activation), x, scale(y), loss, **how)


def test_sound_data_are_let_be_whatever_the_run_does():
    for run in (FALLS, STANDS_STILL, BREAKS, RUNS_AWAY, ()):
        for trace in (of_digits(run=run), of_wine(standardized, run=run), of_diabetes(standardized, run=run)):
            assert [rule(trace) for rule in RULES] == [None] * 4


# -- nonfinite_data ------------------------------------------------------------------------------------
def with_nan(x):
    x[17, 3] = np.nan


def test_a_missing_value_is_found_and_named():
    finding = assert_sound(nonfinite_data(of_digits(with_nan, run=BREAKS)), "nonfinite_data")
    assert finding.severity is Severity.CRITICAL and finding.step == 2
    assert "sample 17" in finding.explanation and "column 3" in finding.explanation
    assert "are constant" in finding.evidence[0].statement  # the digits have constant pixels, and only here it is said
    assert nonfinite_data(of_digits(with_nan, run=())).severity is Severity.WARNING


def test_what_the_net_is_at_home_with_is_let_be():
    for run in (FALLS, STANDS_STILL):
        assert nonfinite_data(of_digits(with_nan, run=run)) is None
    masked = keras.Sequential([keras.Input((8, 8)), layers.Masking(), layers.LSTM(4), layers.Dense(10)])
    x, y = digits()
    x[17, 3] = np.nan
    assert nonfinite_data(probed(masked, x.reshape(-1, 8, 8), y, LABELS)) is None


def test_the_autopsy_may_say_that_it_was_not_the_data():
    trace = of_digits(with_nan, run=BREAKS)
    loss, data = Offender(OffenderKind.LOSS, "loss", "nan"), Offender(OffenderKind.INPUT, "x", "nan")
    set_autopsy(trace, loss)
    assert nonfinite_data(trace).severity is Severity.WARNING
    set_autopsy(trace, data, loss)
    assert nonfinite_data(trace).confidence == 1.0


def test_targets_weights_and_validation_data_are_looked_at_too():
    x, y = diabetes()
    y = standardized(y)
    y[5] = np.nan
    finding = assert_sound(nonfinite_data(probed(net(10, 1), x, y, "mse", run=BREAKS)), "nonfinite_data")
    assert "in y" in finding.title and finding.prescriptions[0].title.startswith("Leave out the samples")
    trace = of_digits()
    trace.probes = replace(trace.probes, validation=of_digits(with_nan).probes.data)
    finding = assert_sound(nonfinite_data(trace), "nonfinite_data")
    assert finding.title.startswith("The validation data") and finding.severity is Severity.WARNING


def test_an_empty_column_is_to_be_dropped():
    def empty(x):
        x[:, 7] = np.nan

    finding = assert_sound(nonfinite_data(of_digits(empty, run=BREAKS)), "nonfinite_data")
    assert finding.prescriptions[0].title == "Leave out the columns without a single finite value"
    assert "[7]" in finding.prescriptions[0].code


def test_its_prescriptions_mend_what_fires_it():
    for index in (0, 1):
        x, y = digits()
        with_nan(x)
        names = {"x": x, "y": y}
        exec(nonfinite_data(of_digits(with_nan, run=BREAKS)).prescriptions[index].code, names)
        x = names.get("new_x", names["x"])
        assert np.isfinite(x).all() and len(x) == len(names["y"])


@pytest.mark.parametrize(
    ("mark", "every", "run", "told"),
    [
        (-999.0, 20, 29_000.0, True),
        (-999.0, 20, 2_000.0, False),
        (0.0, 20, 29_000.0, False),
        (-999.0, 300, 29_000.0, False),
    ],
)
def test_numbers_that_mark_missing_targets_are_told_where_the_net_does_not_learn(mark, every, run, told):
    def marked(y):
        return np.where(np.arange(len(y)) % every == 0, mark, y / 10.0 + (1_000.0 if mark == 0 else 0.0))

    trace = of_diabetes(marked, run=(run,) * 40, chance=29_500.0)
    finding = nonfinite_data(trace)
    assert (finding is not None) == told
    if finding is not None:
        x, y = diabetes()
        names = {"x": x, "y": marked(y)}
        exec(finding.prescriptions[0].code, names)
        assert len(names["x"]) == len(names["y"]) and (names["y"] > 0).all()


# -- corrupt_batch -------------------------------------------------------------------------------------
def with_absurd(x):
    x[211] *= 1e6


def spiking(trace, at=4, loss=1e6):
    values = np.array(trace.steps["loss"])
    values[at::10] = loss
    trace.steps["loss"][:] = values
    return trace


@pytest.mark.parametrize("run", [BREAKS, STANDS_STILL, RUNS_AWAY])
def test_an_absurd_sample_is_found_where_the_run_suffers(run):
    finding = assert_sound(corrupt_batch(of_digits(with_absurd, run=run)), "corrupt_batch")
    assert "Sample 211 of x" in finding.title and finding.severity is Severity.CRITICAL
    assert "[211]" in finding.prescriptions[0].code


def test_a_sample_weight_far_beyond_all_others_is_an_outlier_too():
    weights = np.ones(300)
    weights[[40, 90]] = 1e8
    for run, found in ((BREAKS, True), (FALLS, False)):
        trace = of_digits(run=run)
        given = ArrayReading(
            "sample_weight", samples=300, dtype="float32", numeric=True, **read_numbers(weights, factors=True)
        )
        trace.probes = replace(trace.probes, data=replace(trace.probes.data, sample_weight=(given,)))
        finding = corrupt_batch(trace)
        assert (finding is not None) == found
        assert finding is None or "of sample_weight lie up to 1.0e8 times" in finding.title


def test_an_absurd_sample_that_does_no_harm_is_let_be():
    assert corrupt_batch(of_digits(with_absurd, run=FALLS)) is None


def test_a_trial_without_it_makes_it_sure_or_doubtful():
    healed = of_digits(with_absurd, run=STANDS_STILL, varied={"finite_data": (2.3, 1.2)})
    assert corrupt_batch(healed).confidence == 0.97
    not_healed = of_digits(with_absurd, run=STANDS_STILL, varied={"finite_data": (2.3, 2.3)})
    assert corrupt_batch(not_healed).confidence == 0.75


def test_a_batch_that_breaks_out_in_every_pass_is_found():
    finding = assert_sound(corrupt_batch(spiking(of_digits(with_absurd))), "corrupt_batch")
    assert finding.severity is Severity.WARNING and finding.step == 4
    finding = assert_sound(corrupt_batch(spiking(of_digits())), "corrupt_batch")
    assert "in every pass" in finding.title
    assert corrupt_batch(spiking(of_digits(), loss=10.0)) is None  # a wrong label costs that much


def recorded(epochs, broken=()):
    trace = Trace(["dense"])
    steps = 20 * epochs
    loss = 2.3 * np.exp(-np.arange(steps) / 40.0)
    loss[list(broken)] = np.nan
    outcome = np.where(np.isnan(loss), SKIPPED_LOSS, 0)
    trace.extend(
        step=range(steps), epoch=np.arange(steps) // 20, loss=loss, outcome=outcome, gradient_norm=np.ones(steps)
    )
    return trace


def test_a_record_without_probes_tells_by_its_epochs():
    finding = assert_sound(corrupt_batch(recorded(3, broken=(7, 31, 55))), "corrupt_batch")
    assert finding.confidence == 0.75
    for broken in ((), (7,), (7, 31), (7, 8, 27, 28, 47, 48)):
        assert corrupt_batch(recorded(3, broken=broken)) is None


def test_the_prescription_leaves_out_what_fires_it():
    x, y = digits()
    with_absurd(x)
    names = {"x": x, "y": y, "print": lambda *_: None}
    exec(corrupt_batch(of_digits(with_absurd, run=STANDS_STILL)).prescriptions[0].code, names)
    assert len(names["x"]) == len(names["y"]) == 399
    assert corrupt_batch(probed(net(64, 10, "softmax"), names["x"], names["y"], LABELS, run=STANDS_STILL)) is None


# -- unscaled_inputs -----------------------------------------------------------------------------------
def test_inputs_of_very_different_sizes_are_found_where_the_run_suffers():
    finding = assert_sound(unscaled_inputs(of_wine(run=BREAKS)), "unscaled_inputs")
    assert "227" in finding.title and finding.prescriptions[0].title.startswith("Put a Normalization layer first")
    healed = of_wine(run=STANDS_STILL, varied={"scaled_inputs": (1.1, 0.4)})
    assert unscaled_inputs(healed).confidence == 0.95
    assert unscaled_inputs(of_wine(run=(1.09,) * 40, varied={"scaled_inputs": (1.1, 1.1)})) is None


@pytest.mark.parametrize("run", [FALLS, (100.0, *FALLS[1:])])
def test_raw_pixels_that_are_learned_from_are_let_be(run):
    x, y = digits()
    assert unscaled_inputs(probed(net(64, 10, "softmax"), x * 255, y, LABELS, run=run)) is None


def test_raw_pixels_that_kill_the_net_are_found():
    x, y = digits()
    run = (100.0, *STANDS_STILL[1:])
    scaled = {"scaled_inputs": (2.8, 2.2)}  # slow, but on its way, where the run as it is stands still
    pixels = np.rint(x * 255).astype(np.float32)
    finding = unscaled_inputs(probed(net(64, 10, "softmax"), pixels, y, LABELS, run=run, varied=scaled))
    assert assert_sound(finding, "unscaled_inputs").prescriptions[0].title.startswith("Rescale the pixels")


def test_a_normalization_behind_the_inputs_silences_it():
    x, _ = wine()
    normalization = layers.Normalization()
    normalization.adapt(x)
    for first in (normalization, layers.BatchNormalization()):
        model = keras.Sequential([keras.Input((13,)), first, layers.Dense(3, activation="softmax")])
        assert unscaled_inputs(of_wine(model=model, run=BREAKS)) is None
    forgotten = keras.Sequential([keras.Input((13,)), layers.Normalization(), layers.Dense(3, activation="softmax")])
    assert unscaled_inputs(of_wine(model=forgotten, run=BREAKS)) is not None


def test_indices_into_an_embedding_are_no_sizes():
    model = keras.Sequential([keras.Input((5,)), layers.Embedding(5000, 4), layers.Flatten(), layers.Dense(2)])
    random = np.random.default_rng(0)
    trace = probed(model, random.integers(0, 5000, (50, 5)), random.integers(0, 2, 50), LABELS, run=BREAKS)
    assert unscaled_inputs(trace) is None


def test_one_absurd_sample_does_not_make_all_the_inputs_unscaled():
    assert unscaled_inputs(of_digits(with_absurd, run=STANDS_STILL)) is None


@pytest.mark.parametrize("index", [0, 1])
def test_its_prescriptions_silence_it(index):
    x, _ = wine()
    names = {"x": x}
    exec(unscaled_inputs(of_wine(run=BREAKS)).prescriptions[index].code, names)
    if index == 0:
        model = keras.Sequential([keras.Input((13,)), names["normalization"], layers.Dense(3, activation="softmax")])
        assert unscaled_inputs(of_wine(model=model, run=BREAKS)) is None
    else:
        assert unscaled_inputs(of_wine(lambda _: names["scaled"], run=BREAKS)) is None


# -- unscaled_targets ----------------------------------------------------------------------------------
def test_targets_far_from_unit_size_are_found_where_the_run_suffers():
    for run in (BREAKS, RUNS_AWAY, (29_000.0,) * 40, np.linspace(29_000, 27_000, 40)):
        finding = assert_sound(unscaled_targets(of_diabetes(run=run, chance=5_900.0)), "unscaled_targets")
        assert "171" in finding.title
    healed = {"scaled_targets": (1.3, 0.6)}
    assert unscaled_targets(of_diabetes(run=BREAKS, chance=5_900.0, varied=healed)).confidence == 0.95
    assert unscaled_targets(of_diabetes(run=BREAKS, varied={"scaled_targets": (3.0, 9.0)})) is None


def test_targets_that_the_net_gets_to_are_let_be():
    fast = 500.0 * np.exp(-np.arange(40) / 20.0) + 70.0  # as the tutorial on miles per gallon does with Adam
    trace = of_diabetes(lambda y: standardized(y) * 7.8 + 23, run=fast, chance=61.0)
    assert unscaled_targets(trace) is None


def test_other_tasks_are_not_its_own():
    assert unscaled_targets(of_diabetes(activation="sigmoid", run=STANDS_STILL)) is None
    assert unscaled_targets(of_diabetes(loss="mean_absolute_percentage_error", run=STANDS_STILL)) is None
    x, y = digits()
    assert unscaled_targets(probed(net(64, 200), x, y + 100, LABELS, run=BREAKS)) is None


def test_the_scaling_it_prescribes_silences_it():
    _, y = diabetes()
    model, taken = net(10, 1), {}
    names = {"y": y, "x": None, "model": model}
    model.fit = lambda x, y: taken.setdefault("y", y)
    model.predict = lambda x: np.zeros(3)
    exec(unscaled_targets(of_diabetes(run=BREAKS)).prescriptions[0].code, names)
    assert unscaled_targets(of_diabetes(lambda _: taken["y"], run=BREAKS)) is None
    assert names["predictions"] == pytest.approx([y.mean()] * 3)


def test_a_trace_without_probes_gives_nothing():
    trace = Trace(["dense"])
    trace.extend(step=range(40), loss=[math.nan] * 40)
    assert [rule(trace) for rule in RULES] == [None] * 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x * 16, "a root mean square of"),
        (lambda x: x + 6 * x.std(), "a mean of"),
        (lambda x: x * 1.5 + 0.1, None),
    ],
)
def test_validation_data_of_another_scale_are_told(change, told):
    x, y = digits()
    x, half = x + 2, len(x) // 2
    trace = probed(net(64, 10, "softmax"), x[:half], y[:half], LABELS, run=FALLS)
    validation = probed(net(64, 10, "softmax"), change(x[half:]), y[half:], LABELS, run=FALLS).probes.data
    trace.probes = replace(trace.probes, validation=validation)
    finding = broken_validation(trace)
    assert (finding is None) == (told is None)
    if told is not None:
        assert told in assert_sound(finding, "broken_validation").explanation


def test_validation_data_of_classes_that_training_never_shows_are_told():
    x, y = digits()
    known = y < 7
    trace = probed(net(64, 10, "softmax"), x[known], y[known], LABELS, run=FALLS)
    for rows, unseen in ((~known, True), (known, False), (y < 9, False)):
        last = probed(net(64, 10, "softmax"), x[rows], y[rows], LABELS, run=FALLS)
        trace.probes = replace(trace.probes, validation=last.probes.data)
        assert (broken_validation(trace) is not None) == unseen


@pytest.mark.parametrize(("scale", "told"), [(1.0, False), (1.0 / 29.0, True)])
def test_codes_that_were_scaled_before_an_embedding_looks_them_up_are_told(scale, told):
    codes_of = np.random.default_rng(0).integers(0, 30, (640, 2))
    y = (codes_of[:, :1] % 2).astype("float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    tables = [keras.layers.Embedding(30, 4)(inputs[:, place : place + 1])[:, 0] for place in range(2)]
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(keras.layers.Concatenate()(tables)))
    model.compile(keras.optimizers.Adam(0.02), "binary_crossentropy")
    found = gr.diagnose(model, (codes_of * scale).astype("float32"), y, epochs=10).findings
    assert ("unscaled_inputs" in [one.code for one in found]) is told
    if told:
        assert "fractions" in found[0].title
        names = {"x": np.array([[0.0, 0.5], [1.0, 0.25]])}
        exec(found[0].prescriptions[0].code, names)
        assert names["codes"].tolist() == [[0, 1], [1, 0]]
