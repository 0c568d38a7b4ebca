"""Faults planted in the second half of a step: losses, gradients, optimizer slots, updates."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.core.trace.autopsy import OffenderKind
from gradrecipes.training.autopsy import autopsy
from tests.training.nets import Apply, digits, seeded, state, two_dense

layers, ops = keras.layers, keras.ops
SIZE = 16


def batch() -> tuple[np.ndarray, np.ndarray]:
    return digits(SIZE)


class Scaled(layers.Layer):
    """Give x times sqrt(w + x0 - 1), whose slope in w is infinite for a sample with x0 = 1; x gets no gradient."""

    def build(self, shape):
        self.w = self.add_weight(shape=(), initializer="zeros", name="w")

    def call(self, x):
        return ops.stop_gradient(x) * ops.sqrt(self.w + 1 - ops.stop_gradient(x[:, :1]))


def probabilities() -> keras.Model:
    return keras.Sequential([keras.Input((64,)), layers.Dense(8, name="hidden"), layers.Dense(1, "sigmoid", name="p")])


# -- losses ---------------------------------------------------------------------------------------
def test_log_of_zero_in_a_loss_is_blamed_with_its_sample():
    model = seeded(probabilities, loss=lambda y, p: -ops.mean(y * ops.log(p) + (1 - y) * ops.log(1 - p), axis=-1))
    x, y = batch()
    model.get_layer("p").set_weights([np.full((8, 1), 200, np.float32), np.zeros(1, np.float32)])
    model.get_layer("hidden").set_weights([np.eye(64, 8, dtype=np.float32) * 0, np.zeros(8, np.float32)])
    kernel = np.zeros((64, 8), np.float32)
    kernel[0] = 1  # the first pixel of the digits is always 0: it stands for the planted sample
    model.get_layer("hidden").set_weights([kernel, np.zeros(8, np.float32)])
    x[11, 0] = 1.0
    y = np.zeros((SIZE, 1), np.float32)
    before = state(model)
    result = autopsy(model, (x, y))
    first = result.first
    assert (first.kind, first.name, first.samples) == (OffenderKind.LOSS, "loss", (11,))
    assert first.found in ("inf", "nan")
    assert len(result.offenders) == 1
    after = state(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_the_loss_of_the_right_output_is_blamed():
    def make():
        inputs = keras.Input((64,))
        return keras.Model(inputs, [layers.Dense(1, name="one")(inputs), layers.Dense(1, name="two")(inputs)])

    model = seeded(make, loss=["mse", lambda y, p: ops.square(p - y) / y], metrics=None)
    x, _ = batch()
    one, two = np.ones((SIZE, 1), np.float32), np.ones((SIZE, 1), np.float32)
    model.fit(x, [one, two], verbose=0)
    before = state(model)
    two[[3, 8]] = 0
    first = autopsy(model, (x, (one, two))).first
    assert (first.kind, first.name, first.samples) == (OffenderKind.LOSS, "two_loss", (3, 8))
    after = state(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_a_loss_that_breaks_only_as_a_whole_names_no_sample():
    def between(y, p):
        return ops.mean(ops.square(p - y)) + ops.sum(ops.sqrt(1.5 - ops.cast(ops.shape(p)[0], "float32")) * p * 0)

    model = seeded(lambda: keras.Sequential([keras.Input((64,)), layers.Dense(1)]), loss=between)
    first = autopsy(model, (batch()[0], np.ones((SIZE, 1), np.float32))).first
    assert (first.kind, first.samples) == (OffenderKind.LOSS, ())
    assert "whole batch" in first.sentence


def test_a_regularizer_that_overflows_is_blamed_by_its_layer():
    def make():
        small = layers.Dense(8, kernel_regularizer="l2", name="small")
        return keras.Sequential([keras.Input((64,)), small, layers.Dense(10, kernel_regularizer="l2", name="large")])

    model = seeded(make)
    large = model.get_layer("large")
    large.kernel.assign(np.full((8, 10), 1e20, np.float32))
    first = autopsy(model, (np.zeros((SIZE, 64), np.float32), batch()[1])).first
    assert (first.kind, first.layer, first.found) == (OffenderKind.LOSS, "large", "inf")


def test_an_overridden_compute_loss_is_used():
    class Own(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return ops.mean(ops.square(y_pred - y) / y)

    model = seeded(lambda: Own([keras.Input((64,)), layers.Dense(1)]))
    y = np.ones((SIZE, 1), np.float32)
    y[12] = 0
    first = autopsy(model, (batch()[0], y)).first
    assert (first.kind, first.samples) == (OffenderKind.LOSS, (12,))


# -- gradients ------------------------------------------------------------------------------------
def test_the_root_of_zero_in_a_loss_is_a_gradient_without_a_layer():
    model = seeded(
        lambda: keras.Sequential([keras.Input((64,)), layers.Dense(2, use_bias=False, name="out")]),
        loss=lambda y, p: ops.sqrt(ops.sum(ops.square(p - y), axis=-1)),
    )
    x, y = batch()
    y = np.ones((SIZE, 2), np.float32)
    x[5], y[5] = 0, 0  # a distance of exactly 0
    result = autopsy(model, (x, y))
    first = result.first
    assert np.isfinite(result.loss)
    assert (first.kind, first.name, first.layer, first.samples) == (OffenderKind.GRADIENT, "out", None, (5,))
    assert first.found == "nan"
    assert "loss" in first.sentence


def test_the_layer_whose_backward_pass_breaks_is_blamed():
    def make():
        inputs = keras.Input((64,))
        hidden = layers.Dense(8, use_bias=False, name="hidden")(inputs)
        length = Apply(lambda h: ops.sqrt(ops.sum(ops.square(h), axis=1, keepdims=True)), name="length")(hidden)
        return keras.Model(inputs, layers.Dense(10, name="out")(length))

    model = seeded(make)
    x, y = batch()
    x[14] = 0
    result = autopsy(model, (x, y))
    first = result.first
    assert (first.kind, first.name, first.layer) == (OffenderKind.GRADIENT, "hidden", "length")
    assert first.samples == (14,)
    norms = {reading.layer: reading.output_gradient_norm for reading in result.layers}
    assert np.isfinite(norms["length"])
    assert not np.isfinite(norms["hidden"])


def test_a_gradient_of_a_weight_alone_leads_to_the_sample():
    model = seeded(lambda: keras.Sequential([keras.Input((64,)), Scaled(name="scaled"), layers.Dense(10)]))
    x, y = batch()
    x[10, 0] = 1
    result = autopsy(model, (x, y))
    first = result.first
    assert np.isfinite(result.loss)
    assert (first.kind, first.layer, first.samples) == (OffenderKind.GRADIENT, "scaled", (10,))
    assert first.name == model.get_layer("scaled").w.path


@pytest.mark.slow
def test_the_search_for_samples_finds_all_and_has_an_end(monkeypatch):
    model = seeded(lambda: keras.Sequential([keras.Input((64,)), Scaled(name="scaled"), layers.Dense(10)]))
    x, y = digits(256)
    x[[0, 99, 100, 255], 0] = 1
    before = state(model)
    assert autopsy(model, (x, y)).first.samples == (0, 99, 100, 255)
    after = state(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    monkeypatch.setattr("gradrecipes.training.autopsy.step.RUNS_AT_MOST", 4)
    samples = set(autopsy(model, (x, y)).first.samples)
    assert {0, 99, 100, 255} <= samples  # the parts that were not looked into are named whole


def test_arithmetic_in_a_subclassed_model_is_blamed_for_its_gradient():
    class Between(keras.Model):
        def __init__(self):
            super().__init__(name="between")
            self.one, self.two = layers.Dense(8, use_bias=False, name="one"), layers.Dense(10, name="two")

        def call(self, x):
            return self.two(ops.sqrt(ops.abs(self.one(x))))

    model = seeded(Between)
    x, y = batch()
    model.fit(x, y, verbose=0)
    x[1] = 0
    first = autopsy(model, (x, y)).first
    assert (first.kind, first.name, first.layer, first.samples) == (OffenderKind.GRADIENT, "one", "between", (1,))


def test_an_input_and_a_gradient_of_another_sample_are_told_in_order():
    model = seeded(
        lambda: keras.Sequential([keras.Input((64,)), layers.Dense(2, use_bias=False, name="out")]),
        loss=lambda y, p: ops.sqrt(ops.sum(ops.square(p - y), axis=-1)),
    )
    x, y = batch()
    y = np.ones((SIZE, 2), np.float32)
    x[5], y[5] = 0, 0
    x[9, 9] = np.nan
    found = [(one.kind, one.samples) for one in autopsy(model, (x, y)).offenders]
    assert found == [(OffenderKind.INPUT, (9,)), (OffenderKind.GRADIENT, (5,))]


# -- the optimizer --------------------------------------------------------------------------------
def test_a_slot_is_blamed_by_its_path():
    model = seeded(two_dense)
    model.fit(*batch(), verbose=0)
    slot = next(v for v in model.optimizer.variables if "velocity" in v.path and v.shape == (16, 10))
    slots = {slot.path: slot.numpy()}
    slots[slot.path][2, 3] = np.inf
    before = state(model)
    first = autopsy(model, batch(), optimizer_variables=slots).first
    assert (first.kind, first.name, first.entries) == (OffenderKind.OPTIMIZER_SLOT, slot.path, ((2, 3),))
    assert first.layer == model.layers[1].name
    after = state(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert autopsy(model, batch()).healthy


def steep(weight: float):
    return lambda y, p: ops.mean(y * p * weight, axis=-1)


def test_adams_delayed_nan_is_seen_one_step_before_it_comes():
    model = seeded(lambda: keras.Sequential([keras.Input((64,)), layers.Dense(1, name="out")]), loss=steep(1e22))
    y = np.zeros((SIZE, 1), np.float32)
    model.train_on_batch(batch()[0], y)
    y[3] = 1
    before = state(model)
    result = autopsy(model, (batch()[0], y))
    after = state(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    kinds = [one.kind for one in result.offenders]
    assert kinds[0] is OffenderKind.OPTIMIZER_SLOT
    assert "velocity" in result.first.name
    assert OffenderKind.GRADIENT in kinds  # finite, and too large to be squared
    gradient = result.offenders[kinds.index(OffenderKind.GRADIENT)]
    assert gradient.finite and gradient.found > 1.84e19
    assert gradient.layer == "out"
    model.train_on_batch(batch()[0], y)
    model.train_on_batch(batch()[0], y)
    assert not all(np.isfinite(w).all() for w in model.get_weights())


def test_an_update_that_overflows_is_blamed_on_the_weight():
    def make():
        return keras.Sequential([keras.Input((64,)), layers.Dense(1, use_bias=False, name="out")])

    model = seeded(make, keras.optimizers.SGD(3e38), loss=steep(1e4))
    model.optimizer.build(model.trainable_variables)
    x, y = batch()[0], np.ones((SIZE, 1), np.float32)
    before = state(model)
    first = autopsy(model, (x, y)).first
    after = state(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert (first.kind, first.name, first.found) == (OffenderKind.WEIGHT, model.layers[0].kernel.path, "-inf")
    assert "learning rate 3e+38" in first.sentence


def test_adafactor_divides_by_zero_where_a_pixel_is_always_0():
    model = seeded(two_dense, keras.optimizers.Adafactor(0.01))
    model.optimizer.build(model.trainable_variables)
    x, y = batch()
    before = [v.numpy() for v in model.variables]
    slots = [v.numpy() for v in model.optimizer.variables]
    model.train_on_batch(x, y)
    assert np.isnan(model.get_weights()[0]).any()  # Keras 3.15: the row mean of squares times that of columns is 0
    first = autopsy(model, (x, y), weights=before, optimizer_variables=slots).first
    assert (first.kind, first.name, first.found) == (OffenderKind.WEIGHT, model.layers[0].kernel.path, "nan")
    assert "update itself" in first.sentence


# -- low precision --------------------------------------------------------------------------------
@pytest.fixture
def half_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    yield
    keras.mixed_precision.set_global_policy("float32")


def half() -> keras.Model:
    hidden = layers.Dense(16, activation="relu", name="hidden")
    return keras.Sequential([keras.Input((64,)), hidden, layers.Dense(10, name="out", dtype="float32")])


def test_an_overflow_of_float16_says_its_dtype(half_precision):
    model = seeded(half)
    x, y = batch()
    model.fit(x, y, verbose=0)
    assert autopsy(model, (x, y)).healthy
    model.get_layer("hidden").kernel.assign(np.full((64, 16), 3000.0, np.float32))
    x[:] = 0
    x[4] = 1
    first = autopsy(model, (x, y)).first
    assert (first.kind, first.layer, first.found) == (OffenderKind.LAYER_OUTPUT, "hidden", "inf")
    assert (first.samples, first.dtype) == ((4,), "float16")
    assert "float16" in first.sentence and "6.55e+04" in first.sentence


def test_an_input_beyond_float16_is_blamed_though_it_is_finite(half_precision):
    model = seeded(half)
    x, y = batch()
    x[6, 33] = 1e5
    first = autopsy(model, (x, y)).first
    assert (first.kind, first.name, first.samples, first.entries) == (OffenderKind.INPUT, "x", (6,), ((6, 33),))
    assert first.found == pytest.approx(1e5)
    assert first.dtype == "float16"


def test_a_weight_beyond_float16_is_blamed_though_it_is_finite(half_precision):
    model = seeded(half)
    kernel = model.get_layer("hidden").kernel
    kernel.assign(np.where(np.arange(64)[:, None] == 30, 1e5, kernel.numpy()).astype(np.float32))
    first = autopsy(model, batch()).first
    assert (first.kind, first.name, first.found) == (OffenderKind.WEIGHT, kernel.path, pytest.approx(1e5))


def test_a_gradient_that_only_the_loss_scale_breaks_is_said_to_be_harmless(half_precision):
    model = seeded(half)
    model.fit(*batch(), verbose=0)
    scale = next(v for v in model.optimizer.variables if "dynamic_scale" in v.path)
    result = autopsy(model, batch(), optimizer_variables={scale.path: tf.constant(2.0**40)})
    assert result.first.kind is OffenderKind.GRADIENT
    assert "Without the loss scale" in result.first.sentence
    assert float(scale) == 2.0**15
