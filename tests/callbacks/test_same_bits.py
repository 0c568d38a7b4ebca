"""A guarded training is the plain one to the bit; a monitored one too, unless TensorFlow merges layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import gradrecipes as gr
from tests.training.nets import deterministic

X = np.random.default_rng(0).normal(size=(64, 12, 16)).astype(np.float32)
Y = 3.0 * X.mean(axis=(1, 2), keepdims=False)[:, None]


def blocks():
    """Return one of each kind of block, so that a bit that moves in any of them moves the weights."""
    attention, dense = keras.layers.MultiHeadAttention(2, 8), keras.layers.Dense(16, "gelu")
    return (
        keras.layers.LayerNormalization(),
        lambda h: attention(h, h),
        keras.layers.Conv1D(16, 3, padding="same", activation="relu"),
        lambda h: keras.layers.Dropout(0.2)(dense(h)),
    )


def train(residual, callbacks, **how):
    keras.utils.set_random_seed(3)
    inputs = h = keras.Input((12, 16))
    for block in blocks():
        h = block(h) + h if residual else block(h)
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(h)))
    # By its own epsilon, Adam would amplify the noise in gradients that are 0 but for rounding, as of a key's bias.
    model.compile(keras.optimizers.Adam(0.01, epsilon=1e-3), "mse", **how)
    model.fit(X, Y, batch_size=16, epochs=3, verbose=0, callbacks=callbacks)
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True])
def test_the_guard_changes_no_bit_and_the_monitor_none_where_the_graph_is_not_rewritten(residual):
    with deterministic():
        plain = train(residual, [])
        np.testing.assert_array_equal(train(residual, [gr.GradientGuard()]), plain)
        monitored = train(residual, [gr.GradientMonitor(sample_every=4)])
        np.testing.assert_allclose(monitored, plain, atol=1e-5)
    with deterministic(rewrites=False):
        plain = train(residual, [])
        np.testing.assert_array_equal(train(residual, [gr.GradientMonitor(sample_every=4)]), plain)


@pytest.mark.nightly
@pytest.mark.parametrize("residual", [False, True])
def test_nor_does_the_guard_under_xla(residual):
    # Not `deterministic()`: Keras compiles nothing by XLA under it, and XLA needs none to give the same bits again.
    plain, guarded = (train(residual, guard, jit_compile=True) for guard in ([], [gr.GradientGuard()]))
    np.testing.assert_array_equal(guarded, plain)
