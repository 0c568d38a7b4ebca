"""The best constant prediction to a loss of the user's own, and what a run that ends above it is called."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes.probes.loss import loss_probe
from gradrecipes.probes.output_losses import Baselines
from gradrecipes.training.description.describe import describe_model

layers, ops = keras.layers, keras.ops
RNG = np.random.default_rng(0)
X = RNG.normal(size=(192, 4)).astype(np.float32)
Y = (X[:, :1] + 0.1 * RNG.normal(size=(192, 1))).astype(np.float32)


def normal(y_true, y_pred):
    scale = 1e-3 + ops.softplus(y_pred[:, 1:])
    return ops.log(scale) + 0.5 * ops.square((y_true - y_pred[:, :1]) / scale)


def own_entropy(y_true, y_pred):
    y_pred = ops.clip(y_pred, 1e-7, 1 - 1e-7)
    return -ops.mean(y_true * ops.log(y_pred) + (1 - y_true) * ops.log(1 - y_pred))


def contrast(y_true, y_pred):
    return ops.mean(ops.logsumexp(ops.matmul(y_pred, ops.transpose(y_pred)), axis=1))


def compiled(loss, *, units=2, activation=None, rate=2e-3):
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(16, activation="relu")
    model = keras.Sequential([keras.Input((4,)), hidden, layers.Dense(units, activation=activation)])
    model.compile(keras.optimizers.Adam(rate), loss)
    return model


def baseline(model, y):
    batches = [(X[at : at + 32], y[at : at + 32]) for at in range(0, len(X), 32)]
    description = describe_model(model)
    return Baselines(model, description, loss_probe(model, batches[0], description), batches).fitted


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (150.0, 800.0)])
def test_the_constant_prediction_of_a_likelihood_is_mean_and_deviation(scale, shift):
    found = baseline(compiled(normal), scale * Y + shift)
    assert found == pytest.approx(math.log(scale * Y.std()) + 0.5, abs=0.05)


def test_a_bounded_head_is_fitted_within_its_bounds():
    y = (Y > 0.8).astype(np.float32)
    share = float(y.mean())
    expected = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert baseline(compiled(own_entropy, units=1, activation="sigmoid"), y) == pytest.approx(expected, rel=1e-3)


def test_a_loss_that_compares_samples_has_no_constant_prediction():
    assert baseline(compiled(contrast), Y) is None


def test_keras_losses_are_left_to_their_formulas():
    assert baseline(compiled("mse", units=1), Y) is None


@pytest.mark.slow
def test_a_variance_that_grows_instead_of_the_mean_is_unscaled_targets():
    found = gr.diagnose(compiled(normal), X, 150.0 * Y + 800.0)
    assert found.verdict == "unhealthy"
    assert found.findings[0].code == "unscaled_targets"
    assert gr.diagnose(compiled(normal, rate=2e-2), X, Y).verdict == "healthy"
