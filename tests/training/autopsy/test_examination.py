"""Each kind of fault, planted at a known place of a real step, is found at that place; the model stays as it was."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.core.trace.autopsy import OffenderKind
from gradrecipes.training.autopsy import autopsy
from tests.training.nets import NETS, Apply, digits, functional, seeded, state, two_dense, with_state

layers, ops = keras.layers, keras.ops
SIZE = 16


def batch(size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    return digits(size)


def trained(make, optimizer=None, **how) -> keras.Model:
    model = seeded(make, optimizer, **how)
    model.fit(*batch(32), batch_size=16, verbose=0)
    return model


def assert_unchanged(model, before) -> None:
    after = state(model)
    assert list(after) == list(before)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


# -- nothing planted ------------------------------------------------------------------------------
FIRST_TIER = {"with_state", "subclassed", "recurrent", "shared"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FIRST_TIER)) for name in NETS]
)
def test_a_healthy_batch_has_no_offender_and_the_model_stays_to_the_bit(name):
    model = trained(NETS[name])
    before = state(model)
    result = autopsy(model, batch())
    assert_unchanged(model, before)
    assert result.offenders == ()
    assert result.healthy
    assert result.first is None
    assert "Nothing to blame" in str(result)
    assert result.notes == ()
    assert len(result.sample_losses) == len(result.sample_gradient_norms) == SIZE
    assert min(result.sample_gradient_norms) > 0
    assert any(reading.output_gradient_norm > 0 for reading in result.layers)


def test_the_readings_are_those_of_an_independent_tape():
    model = trained(two_dense)
    x, y = batch()
    result = autopsy(model, (x, y))
    kernel, bias = (np.asarray(w, np.float64) for w in model.layers[0].get_weights())
    hidden = np.maximum(x @ kernel + bias, 0)
    first = result.layers[0]
    assert first.layer == model.layers[0].name
    assert first.input_rms == pytest.approx(np.sqrt(np.mean(x.astype(np.float64) ** 2)), rel=1e-5)
    assert first.output_rms == pytest.approx(np.sqrt(np.mean(hidden**2)), rel=1e-5)
    assert first.output_max == pytest.approx(hidden.max(), rel=1e-5)
    with tf.GradientTape() as tape:
        captured = model.layers[0](x)
        loss = model.compute_loss(y=y, y_pred=model.layers[1](captured))
    by_output, *by_weights = tape.gradient(loss, [captured, *[w.value for w in model.layers[0].weights]])
    assert first.output_gradient_norm == pytest.approx(float(tf.norm(by_output)), rel=1e-4)
    assert first.weight_gradient_norm == pytest.approx(float(tf.linalg.global_norm(by_weights)), rel=1e-4)
    assert result.loss == pytest.approx(float(loss), rel=1e-5)


def test_the_numbers_of_each_sample_are_those_of_a_batch_of_one():
    model = trained(two_dense)
    x, y = batch()
    result = autopsy(model, (x, y))
    assert np.mean(result.sample_losses) == pytest.approx(result.loss, rel=1e-5)
    for sample in (0, 5, 15):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y=y[sample : sample + 1], y_pred=model(x[sample : sample + 1]))
        gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
        assert result.sample_losses[sample] == pytest.approx(float(loss), rel=1e-4)
        assert result.sample_gradient_norms[sample] == pytest.approx(float(tf.linalg.global_norm(gradients)), rel=1e-3)


# -- the batch ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "value"),
    [*((two_dense, value) for value in ("nan", "inf", "-inf")), (with_state, "nan"), (functional, "-inf")],
)
def test_an_input_is_blamed_by_sample_and_feature(make, value):
    model = trained(make)
    x, y = batch()
    x[7, 20] = float(value)
    before = state(model)
    result = autopsy(model, (x, y))
    assert_unchanged(model, before)
    first = result.first
    assert (first.kind, first.name, first.samples, first.entries) == (OffenderKind.INPUT, "x", (7,), ((7, 20),))
    assert first.found == value
    assert len(result.offenders) == 1
    assert result.reached
    json.dumps(result.to_dict(), allow_nan=False)


def test_several_bad_rows_are_all_named():
    model = trained(two_dense)
    x, y = batch()
    x[[2, 9, 11], 3] = np.nan
    assert autopsy(model, (x, y)).first.samples == (2, 9, 11)


def test_a_target_that_is_not_finite_is_blamed():
    model = seeded(lambda: keras.Sequential([keras.Input((64,)), layers.Dense(8), layers.Dense(1)]), loss="mse")
    x, y = batch()
    y = y.astype(np.float32)[:, None]
    y[4] = np.nan
    first = autopsy(model, (x, y)).first
    assert (first.kind, first.name, first.samples, first.entries) == (OffenderKind.TARGET, "y", (4,), ((4, 0),))


def test_a_sample_weight_that_is_not_finite_is_blamed():
    model = trained(two_dense)
    weight = np.ones(SIZE, np.float32)
    weight[3] = np.inf
    first = autopsy(model, (*batch(), weight)).first
    assert (first.kind, first.name, first.samples) == (OffenderKind.SAMPLE_WEIGHT, "sample_weight", (3,))


def test_a_label_beyond_the_classes_is_blamed():
    model = trained(two_dense)
    x, y = batch()
    y[6] = 23
    result = autopsy(model, (x, y))
    assert (result.first.kind, result.first.samples) == (OffenderKind.TARGET, (6,))
    assert result.first.found in (23.0, "nan")


# -- weights --------------------------------------------------------------------------------------
def test_a_weight_is_blamed_before_the_input():
    model = trained(two_dense)
    x, y = batch()
    x[1, 1] = np.nan
    kernel = model.layers[1].kernel
    broken = kernel.numpy()
    broken[5, 2] = np.inf
    kernel.assign(broken)
    result = autopsy(model, (x, y))
    assert [offender.kind for offender in result.offenders] == [OffenderKind.WEIGHT, OffenderKind.INPUT]
    assert (result.first.name, result.first.layer) == (kernel.path, model.layers[1].name)
    assert result.first.entries == ((5, 2),)


def test_a_moving_statistic_is_blamed_though_training_does_not_read_it():
    model = trained(with_state)
    norm = model.layers[1]
    norm.moving_variance.assign(np.full(16, np.inf, np.float32))
    first = autopsy(model, batch()).first
    assert (first.kind, first.name, first.layer) == (OffenderKind.WEIGHT, norm.moving_variance.path, norm.name)


@pytest.mark.parametrize("form", ["variables", "weights", "paths"])
def test_given_weights_are_judged_and_taken_out_again(form):
    model = trained(with_state)
    before = state(model)
    values = {v.path: v.numpy() for v in (model.weights if form == "weights" else model.variables)}
    values[model.layers[0].kernel.path][3, 4] = np.nan
    result = autopsy(model, batch(), weights=values if form == "paths" else list(values.values()))
    assert_unchanged(model, before)
    assert (result.first.kind, result.first.entries) == (OffenderKind.WEIGHT, ((3, 4),))


def test_weights_before_the_step_lead_to_the_batch_that_broke_it():
    model = seeded(two_dense, keras.optimizers.SGD(0.1))
    x, y = batch()
    weights = [v.numpy() for v in model.variables]
    x[7, 20] = np.inf
    model.train_on_batch(x, y)
    assert not np.isfinite(model.get_weights()[0]).all()
    assert autopsy(model, (x, y)).first.kind is OffenderKind.WEIGHT
    first = autopsy(model, (x, y), weights=weights).first
    assert (first.kind, first.samples, first.entries) == (OffenderKind.INPUT, (7,), ((7, 20),))


def test_weights_that_do_not_fit_are_noted():
    model = trained(two_dense)
    result = autopsy(model, batch(), weights=[np.zeros(3)], optimizer_variables={"nowhere": 1.0})
    assert result.healthy
    assert any("do not fit" in note for note in result.notes)
    assert any("nowhere" in note for note in result.notes)


def test_an_exception_inside_leaves_the_model_as_it_was(monkeypatch):
    model = trained(with_state)
    before = state(model)
    weights = [v.numpy() * 0 + 1 for v in model.variables]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        autopsy(model, batch(), weights=weights)
    monkeypatch.undo()
    assert_unchanged(model, before)
    assert all("call" not in vars(layer) for layer in (model, *model.layers))


# -- layer outputs --------------------------------------------------------------------------------
def with_fault(function, place: int) -> keras.Model:
    """Return a net of four layers with a faulty one among them; the first feature of a sample marks it."""
    mark = layers.Dense(8, activation="relu", name="first")
    stack = [mark, layers.Dense(8, activation="relu", name="second"), layers.Dense(10, name="last")]
    stack.insert(place, Apply(function, name="culprit"))
    return keras.Sequential([keras.Input((64,)), *stack])


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x: x / ops.cast(ops.sum(x, axis=1, keepdims=True) > 0, x.dtype), "nan"),
        (lambda x: ops.log(ops.sum(x, axis=1, keepdims=True)) + x, "-inf"),
        (lambda x: ops.exp(90.0 - 1000 * ops.sum(x, axis=1, keepdims=True)) + x, "inf"),
    ],
    ids=["division", "log", "exponential"],
)
def test_the_layer_that_makes_it_is_blamed(function, found):
    model = seeded(lambda: with_fault(function, 1))
    model.get_layer("first").set_weights([np.abs(w) for w in model.get_layer("first").get_weights()])
    x, y = batch()
    x[13] = 0  # only this sample's activations are all 0
    result = autopsy(model, (x, y))
    first = result.first
    assert (first.kind, first.name, first.layer) == (OffenderKind.LAYER_OUTPUT, "culprit", "culprit")
    assert (first.samples, first.found) == ((13,), found)
    assert len(result.offenders) == 1
    shares = {reading.layer: reading.nonfinite_share for reading in result.layers}
    assert shares["first"] == 0
    assert shares["culprit"] == shares["last"] == pytest.approx(1 / SIZE)


def test_overflow_is_blamed_on_the_layer_where_it_happens():
    model = seeded(lambda: with_fault(lambda x: x * 1e20, 1))
    model.get_layer("second").set_weights([np.full((8, 8), 1e20, np.float32), np.zeros(8, np.float32)])
    x, y = batch()
    first = autopsy(model, (x, y)).first
    assert (first.kind, first.layer, first.found) == (OffenderKind.LAYER_OUTPUT, "second", "inf")
    assert "float32" in first.sentence


def test_arithmetic_between_layers_is_blamed_on_the_model_that_does_it():
    class Between(keras.Model):
        def __init__(self):
            super().__init__(name="between")
            self.one, self.two = layers.Dense(8, name="one"), layers.Dense(10, name="two")

        def call(self, x):
            return self.two(self.one(x) / ops.max(x, axis=1, keepdims=True))

    x, y = batch()
    model = seeded(Between)
    model.fit(x, y, verbose=0)
    x[2] = 0
    first = autopsy(model, (x, y)).first
    assert (first.kind, first.layer, first.samples) == (OffenderKind.LAYER_OUTPUT, "between", (2,))
    assert "calls two" in first.sentence


# -- what is meant to be so -----------------------------------------------------------------------
def test_missing_values_that_the_model_handles_are_noted_not_blamed():
    def make():
        fill = Apply(lambda x: ops.where(ops.isnan(x), 0.0, x), name="fill")
        return keras.Sequential([keras.Input((64,)), fill, layers.Dense(10)])

    model = seeded(make)
    x, y = batch()
    x[3, 4] = np.nan
    result = autopsy(model, (x, y))
    assert result.healthy
    assert any("survives" in note for note in result.notes)


def test_a_mask_of_minus_infinity_is_not_blamed_for_another_sample():
    def make():
        inputs = keras.Input((64,))
        scores = layers.Dense(10, name="scores")(inputs)
        masked = Apply(lambda s: ops.where(ops.arange(10) < 8, s, -np.inf), name="mask")(scores)
        inverse = Apply(lambda x: 1 / ops.sum(x, axis=1, keepdims=True), name="inverse")(inputs)
        soft = layers.Softmax(name="soft")(masked)
        return keras.Model(inputs, layers.Dense(10, name="out")(layers.concatenate([soft, inverse])))

    model = seeded(make)
    x, y = batch()
    assert autopsy(model, (x, y)).healthy
    x[9] = 0
    result = autopsy(model, (x, y))
    assert [(one.kind, one.layer, one.samples) for one in result.offenders] == [
        (OffenderKind.LAYER_OUTPUT, "inverse", (9,))
    ]
