"""One bad sample among thousands is found before the training, and named by its place in the data."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes.core.trace.probes import ForwardPassReading
from gradrecipes.probes.signal import forward_pass
from gradrecipes.training.trial_data import trial_data

ops = keras.ops
X = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
Y = np.abs(X.sum(axis=1, keepdims=True)) + 0.1


def logarithmic(y_true, y_pred):
    return ops.mean(ops.square(ops.log(y_true) - ops.log(y_pred + 1e-3)), axis=-1)


def rooted(y_true, y_pred):
    return ops.sqrt(ops.square(y_true * y_pred))  # finite everywhere, its slope at 0 is not


def net(loss):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1, "softplus")])
    model.compile("adam", loss)
    return model


@pytest.mark.parametrize("loss", [logarithmic, rooted, "mse"])
@pytest.mark.parametrize("bad", [[], [2345], [7, 1024, 2999]])
def test_the_samples_whose_loss_or_slope_is_not_finite_are_named(loss, bad):
    y = Y.copy()
    y[bad] = 0.0
    found = forward_pass(net(loss), trial_data(X, y), seconds=60.0)
    assert found == ForwardPassReading(3000, () if loss == "mse" else tuple(bad))


def test_samples_are_found_by_halves_where_only_the_sum_tells():
    def single(y_true, y_pred):
        return ops.mean(y_pred) * 0.0 + ops.sum(1.0 / ops.stop_gradient(y_true))

    y = Y.copy()
    y[1717] = 0.0
    assert forward_pass(net(single), trial_data(X, y), seconds=60.0).nonfinite_samples == (1717,)


def test_the_model_is_left_as_it_was_and_a_dataset_is_not_read():
    model = net(logarithmic)
    before = [np.array(variable) for variable in model.variables]
    forward_pass(model, trial_data(X, Y))
    assert all(np.array_equal(one, variable) for one, variable in zip(before, model.variables, strict=True))
    batches = trial_data(iter([(X[:32], Y[:32])]))
    assert forward_pass(model, batches).samples == 0


def test_the_trial_meets_the_sample_and_the_finding_names_it():
    y = Y.copy()
    y[2345] = 0.0
    first = gr.diagnose(net(logarithmic), X, y).findings[0]
    assert first.code == "unsafe_loss"
    assert any("sample 2345 of all the data" in evidence.statement for evidence in first.evidence)


@pytest.mark.parametrize("last", [49, 50])
def test_a_batch_that_the_trial_did_not_meet_is_told_where_its_step_fails(last):
    x = np.random.default_rng(0).integers(0, 50, (3000, 6))
    x[x == 49] = 0
    x[2345, 3] = last
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Embedding(50, 4), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((6,), dtype="int32"), *hidden, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    found = forward_pass(model, trial_data(x, x[:, :1] / 50.0), seconds=60.0)
    assert (found.samples, found.error is None) == ((3000, True) if last < 50 else (2336, False))
    first = [finding.code for finding in gr.diagnose(model, x, x[:, :1] / 50.0).findings][:1]
    assert first == ([] if last < 50 else ["failing_step"])


@pytest.mark.parametrize(("least", "verdict"), [(0.0, "unhealthy"), (1.0, "healthy")])
def test_a_batch_that_has_no_loss_though_each_of_its_samples_has_is_found(least, verdict):
    """One row in sixteen counts: a batch of 64 without any comes once in sixty, and a trial has 16 of them."""
    rows = np.random.default_rng(0).permutation(1024)
    counts = (rows % 16 == 0).astype("float32")
    y = np.stack([X[:1024].sum(axis=1), counts], axis=1)

    def over_those_that_count(y_true, y_pred):
        apart = keras.ops.square(y_true[:, 0] - y_pred[:, 0]) * y_true[:, 1]
        return keras.ops.sum(apart) / keras.ops.maximum(keras.ops.sum(y_true[:, 1]), least)

    found = gr.diagnose(net(over_those_that_count), X[:1024], y, batch_size=64, epochs=2)
    assert bool(found.trace.probes.forward_pass.nonfinite_batch) == (verdict == "unhealthy")
    assert found.trace.probes.forward_pass.nonfinite_samples == ()
    assert [one.code for one in found.findings][:1] == ["unsafe_loss"] * (verdict == "unhealthy")
