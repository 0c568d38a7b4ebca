"""Losses, outputs and labels that do not belong together, and losses that are unsafe; what Keras mends is let be."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.core.findings import Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import LayerReading, Offender
from gradrecipes.core.trace.probes import FailureReading
from gradrecipes.diagnosis.rules.loss_output_mismatch import loss_output_mismatch
from gradrecipes.diagnosis.rules.unsafe_loss import unsafe_loss
from tests.diagnosis.probed import BREAKS, FALLS, STANDS_STILL, assert_sound, net, probed
from tests.records import described, set_autopsy

layers, ops, losses = keras.layers, keras.ops, keras.losses
X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
CLASSES = np.arange(60) % 3
ONE_HOT = np.eye(3, dtype=np.float32)[CLASSES]
SEVERAL = 1 - ONE_HOT
YES = (CLASSES > 0).astype(np.float32)
NUMBERS = X[:, :1].copy()
WIDE = np.random.default_rng(1).normal(size=(60, 1)).astype(np.float32)
SPARSE, LOGITS = losses.SparseCategoricalCrossentropy(), losses.SparseCategoricalCrossentropy(from_logits=True)


class Squared(losses.Loss):
    def call(self, y_true, y_pred):
        return ops.square(y_true - y_pred)


def by_hand(y_true, y_pred):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y_true, tf.int32), y_pred)


def binary_by_hand(y_true, y_pred):
    return -ops.mean(y_true * ops.log(y_pred) + (1 - y_true) * ops.log(1 - y_pred), axis=-1)


def safe_binary_by_hand(y_true, y_pred):
    return binary_by_hand(y_true, ops.clip(y_pred, 1e-7, 1 - 1e-7))


def distance(y_true, y_pred):
    return ops.sqrt(ops.mean(ops.square(y_true - y_pred)))


def percentage(y_true, y_pred):
    return ops.mean(ops.abs((y_true - y_pred) / y_true), axis=-1)


def correlation(y_true, y_pred):
    y_true, y_pred = y_true - ops.mean(y_true), y_pred - ops.mean(y_pred)
    return -ops.sum(y_true * y_pred) / ops.sqrt(ops.sum(y_true**2) * ops.sum(y_pred**2))


def trace_of(units, activation, loss, y, *behind, run=FALLS, x=X, **how):
    return probed(net(x.shape[1], units, activation, *behind), x, y, loss, run=run, **how)


HEALTHY = {
    "softmax": (3, "softmax", SPARSE, CLASSES),
    "logits": (3, None, LOGITS, CLASSES),
    "labels_in_a_column": (3, "softmax", SPARSE, CLASSES[:, None]),
    "one_hot": (3, "softmax", "categorical_crossentropy", ONE_HOT),
    "label_smoothing": (3, "softmax", losses.CategoricalCrossentropy(label_smoothing=0.1), ONE_HOT),
    "soft_labels": (3, "softmax", "categorical_crossentropy", 0.9 * ONE_HOT + 0.1 / 3),
    "rows_without_a_label": (3, "softmax", "categorical_crossentropy", ONE_HOT * (X[:, :1] > 0)),
    "binary": (1, "sigmoid", "binary_crossentropy", YES),
    "binary_logits": (1, None, losses.BinaryCrossentropy(from_logits=True), YES),
    "several_labels": (3, "sigmoid", "binary_crossentropy", 1 - ONE_HOT),
    "binary_on_softmax": (3, "softmax", "binary_crossentropy", ONE_HOT),
    "soft_binary": (3, "sigmoid", "binary_crossentropy", np.clip(np.abs(X[:, :3]), 0, 1)),
    "squared_on_sigmoid": (1, "sigmoid", "mse", YES),
    "squared_on_softmax": (3, "softmax", "mse", ONE_HOT),
    "ignored_class": (
        3,
        "softmax",
        losses.SparseCategoricalCrossentropy(ignore_class=-1),
        np.where(CLASSES, CLASSES, -1),
    ),
    "regression": (1, None, "mse", NUMBERS),
    "regression_in_a_vector": (1, None, "mae", NUMBERS[:, 0]),
    "positive_numbers": (1, "relu", "mse", np.abs(NUMBERS)),
    "tanh_on_standardized": (1, "tanh", "mse", 0.6 * WIDE),
    "counts": (1, "softplus", "poisson", CLASSES.astype(np.float32)),
    "hinge": (1, "tanh", "hinge", 2 * YES - 1),
    "hinge_on_0_and_1": (1, None, "hinge", YES),
    "divergence": (3, "softmax", "kl_divergence", ONE_HOT),
    "own_with_epsilon": (1, "sigmoid", safe_binary_by_hand, YES[:, None]),
    "own_root": (1, None, distance, NUMBERS),
    "own_squared": (1, None, Squared(), NUMBERS),
    "own_correlation": (1, "sigmoid", correlation, NUMBERS),
    "percentage_of_what_is_not_0": (1, None, "mape", 1 + np.abs(NUMBERS)),
    "quantiles": (3, None, lambda a, b: ops.mean(ops.maximum(0.1 * (a - b), 0.9 * (b - a)), axis=-1), NUMBERS),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_belongs_together_is_let_be(name):
    trace = trace_of(*HEALTHY[name])
    assert loss_output_mismatch(trace) is None
    assert unsafe_loss(trace) is None


# name: (units, activation, loss, targets), severity, words of the title
MISMATCHES = {
    "linear_for_probabilities": ((3, None, SPARSE, CLASSES), "critical", "gets the output of no activation"),
    "relu_for_probabilities": ((3, "relu", SPARSE, CLASSES), "critical", "gets the output of a relu"),
    "tanh_for_probabilities": ((1, "tanh", "binary_crossentropy", YES), "critical", "gets the output of a tanh"),
    "seen_logits": ((3, "softmax", LOGITS, CLASSES), "notice", "from_logits=True on a softmax"),
    "by_hand": ((3, "softmax", by_hand, CLASSES), "critical", "from_logits=True on a softmax"),
    "sigmoids": ((3, "sigmoid", "categorical_crossentropy", ONE_HOT), "notice", "do not sum to 1"),
    "twice": ((3, "softmax", SPARSE, CLASSES, layers.Softmax()), "warning", "softmax of a softmax"),
    "one_unit": ((1, "softmax", "binary_crossentropy", YES), "critical", "one unit is always 1"),
    "direction_of_one_number": ((1, None, "cosine_similarity", NUMBERS), "critical", "of one number is its sign"),
    "from_1": ((3, "softmax", SPARSE, CLASSES + 1), "critical", "Labels from 1 to 3 for 3 units"),
    "below_0": ((3, "softmax", SPARSE, CLASSES - 1), "critical", "Labels from -1 to 1"),
    "one_unit_for_classes": ((1, "sigmoid", SPARSE, CLASSES), "critical", "for 1 unit"),
    "fractions": ((3, "softmax", SPARSE, X[:, 0]), "critical", "not whole"),
    "one_hot_for_numbers": ((3, "softmax", SPARSE, ONE_HOT), "critical", "One-hot rows for a loss"),
    "numbers_for_one_hot": (
        (3, "softmax", "categorical_crossentropy", CLASSES),
        "critical",
        "Class numbers for a loss",
    ),
    "other_width": ((4, "softmax", "categorical_crossentropy", ONE_HOT), "critical", "do not fit outputs"),
    "two_columns": ((1, "sigmoid", "binary_crossentropy", ONE_HOT[:, :2]), "critical", "do not fit outputs"),
    "signs": ((1, "sigmoid", "binary_crossentropy", 2 * YES - 1), "critical", "Targets from -1 to 1"),
    "bytes": ((3, "sigmoid", "binary_crossentropy", 255 * ONE_HOT), "critical", "Targets from 0 to 255"),
    "classes_on_one_sigmoid": ((1, "sigmoid", "binary_crossentropy", CLASSES), "critical", "Targets from 0 to 2"),
    "beyond_a_sigmoid": ((1, "sigmoid", "mse", 9 * YES), "critical", "outside the range of a sigmoid"),
    "below_a_relu": ((1, "relu", "mse", NUMBERS), "critical", "outside the range of a relu"),
    "stretched": ((3, None, "mse", NUMBERS), "warning", "are broadcast"),
    "all_with_all": ((1, None, Squared(), WIDE[:, 0]), "critical", "every prediction with every target"),
    "negative_rates": ((1, None, "poisson", CLASSES.astype(np.float32)), "critical", "Poisson"),
    "hinge_on_classes": ((1, None, "hinge", CLASSES.astype(np.float32)), "warning", "-1 and 1"),
    "softmax_over_samples": ((3, None, SPARSE, CLASSES, layers.Softmax(axis=0)), "critical", "the samples of a batch"),
    "several_labels_under_softmax": ((3, "softmax", "binary_crossentropy", SEVERAL), "warning", "2 labels a sample"),
    "several_labels_for_one": ((3, "softmax", "categorical_crossentropy", SEVERAL), "warning", "2 labels a sample"),
    "one_hot_from_1": (
        (3, "softmax", "categorical_crossentropy", np.eye(4, dtype=np.float32)[CLASSES + 1, :3]),
        "warning",
        "and 1 of 3 classes without a sample",
    ),
    "negative_counts": ((1, "softplus", "poisson", WIDE), "warning", "Negative targets"),
}


@pytest.mark.filterwarnings("ignore:.*(from_logits=True|axis has size 1|num_classes > 1):")
@pytest.mark.parametrize("name", MISMATCHES)
def test_what_does_not_belong_together_is_found(name):
    program, severity, words = MISMATCHES[name]
    finding = assert_sound(loss_output_mismatch(trace_of(*program)), "loss_output_mismatch")
    assert words in finding.title
    assert finding.severity == severity


def test_more_labels_than_steps_have_no_path():
    x, y = np.zeros((20, 6, 4), np.float32), np.ones((20, 8), np.int32)
    net_of = {steps: [keras.Input((6, 4)), layers.Conv1D(3, 1, strides=6 // steps)] for steps in (3, 6)}
    words = {3: "8 labels for 3 output steps", 6: "8 labels for 6"}
    for steps, read in net_of.items():
        found = loss_output_mismatch(probed(keras.Sequential(read), x, y, losses.CTC()))
        assert words[steps] in assert_sound(found, "loss_output_mismatch").title
    y[:, 5:] = 0  # padding
    assert loss_output_mismatch(probed(keras.Sequential(net_of[6]), x, y, losses.CTC())) is None


def test_a_softmax_over_time_is_found_and_one_over_the_axis_of_the_loss_is_not():
    x = np.random.default_rng(0).normal(size=(40, 6, 4)).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[np.arange(240).reshape(40, 6) % 3]
    over_time = keras.Sequential([keras.Input((6, 4)), layers.Dense(3), layers.Softmax(axis=1)])
    finding = loss_output_mismatch(probed(over_time, x, y, "categorical_crossentropy"))
    assert "The softmax runs over axis 1" in assert_sound(finding, "loss_output_mismatch").title
    along = losses.CategoricalCrossentropy(axis=1)
    assert loss_output_mismatch(probed(over_time, x, y, along)) is None


def test_some_are_told_only_of_runs_that_do_not_learn():
    some_with_two = np.maximum(ONE_HOT, np.eye(3, dtype=np.float32)[np.where(CLASSES, CLASSES, 1)])
    for program in ((3, "softmax", "categorical_crossentropy", some_with_two), (1, "tanh", "mse", WIDE)):
        assert loss_output_mismatch(trace_of(*program)) is None
        assert_sound(loss_output_mismatch(trace_of(*program, run=STANDS_STILL)), "loss_output_mismatch")


def test_a_step_that_cannot_be_run_is_explained():
    failure = FailureReading("step", "ValueError", "must have the same shape")
    finding = loss_output_mismatch(trace_of(4, "softmax", "categorical_crossentropy", ONE_HOT, run=(), failure=failure))
    assert finding.confidence == 1.0 and "must have the same shape" in finding.evidence[-1].statement


def test_return_sequences_left_on():
    model = keras.Sequential([keras.Input((2, 2)), layers.LSTM(4, return_sequences=True), layers.Dense(1)])
    finding = loss_output_mismatch(probed(model, X.reshape(-1, 2, 2), NUMBERS, "mse", run=FALLS))
    assert "return_sequences" in finding.explanation + finding.prescriptions[0].code


class OwnStep(keras.Model):
    def train_step(self, data):
        return {}


@pytest.mark.parametrize("run", [FALLS, STANDS_STILL])
def test_a_train_step_of_its_own_may_use_the_loss_as_it_likes(run):
    inputs = keras.Input((4,))
    model = OwnStep(inputs, layers.Dense(3)(inputs))
    finding = loss_output_mismatch(probed(model, X, CLASSES, SPARSE, run=run))
    assert (finding is None) == (run is FALLS)


def test_the_prescriptions_mend_what_fires_it():
    assert (
        loss_output_mismatch(trace_of(3, None, losses.SparseCategoricalCrossentropy(from_logits=True), CLASSES)) is None
    )
    names = {"y": CLASSES + 1}
    exec(loss_output_mismatch(trace_of(3, "softmax", SPARSE, CLASSES + 1)).prescriptions[0].code, names)
    assert names["last"].units == 3 and loss_output_mismatch(trace_of(3, "softmax", SPARSE, names["y"])) is None
    names = {"y": 2 * YES - 1}
    exec(loss_output_mismatch(trace_of(1, "sigmoid", "binary_crossentropy", 2 * YES - 1)).prescriptions[0].code, names)
    assert loss_output_mismatch(trace_of(1, "sigmoid", "binary_crossentropy", names["y"])) is None
    names = {"y": WIDE[:, 0]}
    exec(loss_output_mismatch(trace_of(1, None, Squared(), WIDE[:, 0])).prescriptions[0].code, names)
    assert loss_output_mismatch(trace_of(1, None, Squared(), names["y"])) is None


# -- unsafe_loss ---------------------------------------------------------------------------------------
def test_a_loss_that_breaks_where_its_sigmoid_ends_is_a_warning():
    finding = assert_sound(unsafe_loss(trace_of(1, "sigmoid", binary_by_hand, YES[:, None])), "unsafe_loss")
    assert finding.severity is Severity.WARNING and "at exactly 0 and 1" in finding.title
    assert "BinaryCrossentropy" in finding.prescriptions[1].title


def test_a_loss_that_is_no_number_at_the_start():
    y = np.abs(NUMBERS) * YES[:, None]
    finding = assert_sound(unsafe_loss(trace_of(1, None, percentage, y, run=BREAKS)), "unsafe_loss")
    assert finding.severity is Severity.CRITICAL and "exactly 0" in finding.evidence[1].statement
    y[3] = np.nan
    assert unsafe_loss(trace_of(1, None, percentage, y, run=BREAKS)) is None  # the data explain it


def broken(trace, largest=0.9, **offender):
    found = {"name": "loss", "found": "nan", "samples": (4,), "sentence": "It broke.", **offender}
    return set_autopsy(trace, Offender(**found), layers=(LayerReading("dense", input_rms=1.0, output_max=largest),))


def test_a_train_step_that_ran_away_before_it_broke_is_not_unsafe():
    for run, unsafe in (((500.0, 400.0, math.nan), True), ((500.0, 4e15, math.nan), False)):
        trace = trace_of(1, None, distance, NUMBERS, run=run)
        trace = set_autopsy(trace, Offender(kind="loss", name="loss", found="nan", sentence="It broke."), layers=())
        assert (unsafe_loss(trace) is not None) == unsafe
        trace = broken(trace_of(1, None, "mse", NUMBERS, run=run), kind="gradient", name="log", layer="log")
        trace.description = described({"layers": [{"name": "log", "kind": "Lambda", "parameters": 0}]})
        assert (unsafe_loss(trace) is not None) == unsafe


def test_the_autopsy_names_the_loss_or_its_derivative():
    for kind in ("loss", "gradient"):
        trace = broken(trace_of(1, None, distance, NUMBERS, run=BREAKS), kind=kind)
        finding = assert_sound(unsafe_loss(trace), "unsafe_loss")
        assert finding.step == 2 and "sample 4" in finding.explanation and "'distance'" in finding.title


def test_a_net_that_had_run_away_and_losses_of_keras_are_not_to_blame():
    assert unsafe_loss(broken(trace_of(1, None, distance, NUMBERS, run=BREAKS), kind="loss", largest=1e19)) is None
    assert unsafe_loss(broken(trace_of(1, None, "mse", NUMBERS, run=BREAKS), kind="loss")) is None


def test_an_operation_without_weights_is_named():
    trace = broken(trace_of(1, None, "mse", NUMBERS, run=BREAKS), kind="layer_output", name="log", layer="log")
    trace.description = described({"layers": [{"name": "log", "kind": "Lambda", "parameters": 0}]})
    finding = assert_sound(unsafe_loss(trace), "unsafe_loss")
    assert finding.layer == "log" and "(Lambda)" in finding.explanation
    trace.description = described({"layers": [{"name": "log", "kind": "Lambda", "parameters": 12}]})
    assert unsafe_loss(trace) is None


def test_percentage_errors_of_targets_that_are_0():
    y = np.abs(NUMBERS) * YES[:, None]
    far = tuple(1e7 * loss for loss in FALLS)
    finding = assert_sound(unsafe_loss(trace_of(1, None, "mape", y, run=far, chance=None)), "unsafe_loss")
    assert "33.3%" in finding.explanation
    assert unsafe_loss(trace_of(1, None, "mape", 1 + y, run=far, chance=None)) is None


def test_clipping_as_prescribed_silences_it():
    names = {"probability": np.array([0.0, 1.0], np.float32), "square": 0.0, "numerator": 1.0, "denominator": 0.0}
    exec(unsafe_loss(trace_of(1, "sigmoid", binary_by_hand, YES[:, None])).prescriptions[0].code, names)
    assert np.isfinite(np.log(names["probability"])).all() and math.isfinite(names["ratio"])
    assert unsafe_loss(trace_of(1, "sigmoid", safe_binary_by_hand, YES[:, None])) is None


def test_a_trace_without_probes_gives_nothing():
    trace = Trace(["dense"])
    trace.extend(step=range(40), loss=[math.nan] * 40)
    assert loss_output_mismatch(trace) is None and unsafe_loss(trace) is None


@pytest.mark.parametrize(("teacher", "told"), [(lambda scores: scores, True), (ops.softmax, False)])
def test_a_divergence_takes_probabilities(teacher, told):
    targets = np.asarray(teacher(4.0 * X[:, :3]))
    trace = probed(net(4, 3, "softmax"), X, targets, loss="kl_divergence")
    found = loss_output_mismatch(trace)
    assert (found is not None and "divergence" in found.title) == told


@pytest.mark.parametrize(("smoothing", "told"), [(1.0, True), (0.1, False)])
def test_a_loss_of_keras_that_is_no_lower_for_right_answers_is_told(smoothing, told):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 4)).astype("float32")
    y = np.eye(2, dtype="float32")[(x[:, 0] > 0).astype(int)]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.CategoricalCrossentropy(label_smoothing=smoothing))
    found = gr.diagnose(model, x, y)
    assert ([one.code for one in found.findings][:1] == ["loss_output_mismatch"]) == told
