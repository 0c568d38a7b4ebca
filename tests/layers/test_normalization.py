"""The rule of the normalization, and the growth in Keras nets that it rests on."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.layers import choose_normalization, normalization


@pytest.mark.parametrize(
    "asked, name",
    [
        (dict(residual=True, batch_size=64), "BatchNormalization"),
        (dict(residual=True, batch_size=64, channels=32), "BatchNormalization"),
        (dict(residual=True, batch_size=4), "LayerNormalization"),
        (dict(residual=True, batch_size=4, channels=32), "GroupNormalization"),
        (dict(residual=False, batch_size=512), "LayerNormalization"),
        (dict(residual=False, batch_size=512, channels=7), "GroupNormalization"),
    ],
)
def test_the_rule(asked, name):
    choice = choose_normalization(**asked)
    assert choice.name == name
    assert choice.reason
    assert type(normalization(**asked)).__name__ == name
    assert normalization(**asked) is not normalization(**asked)


def test_the_reason_has_the_number():
    assert "by 1.21 in each ReLU layer" in choose_normalization(residual=False, batch_size=64).reason
    assert "a batch of 4 is too small" in choose_normalization(residual=True, batch_size=4).reason


@pytest.mark.parametrize("channels, groups", [(64, 32), (48, 24), (7, 7), (1, 1), (37, 1)])
def test_groups_divide_the_channels(channels, groups):
    layer = normalization(residual=False, batch_size=2, channels=channels)
    assert layer.groups == groups
    assert layer(np.ones((2, 4, 4, channels), np.float32)).shape == (2, 4, 4, channels)


@pytest.mark.parametrize("asked", [dict(batch_size=0), dict(batch_size=2.0), dict(batch_size=2, channels=0)])
def test_refusals(asked):
    with pytest.raises(ValueError, match="whole number"):
        choose_normalization(residual=True, **asked)


def growth(make_normalization, depth=24, width=256, batch=64):
    """Return the gradient's factor per layer in a plain ReLU net with a normalization before each activation."""
    hidden = tf.constant(np.random.default_rng(0).normal(size=(batch, width)).astype(np.float32))
    outputs = []
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        for _ in range(depth):
            hidden = keras.layers.Dense(width, use_bias=False, kernel_initializer="he_normal")(hidden)
            hidden = keras.activations.relu(make_normalization()(hidden, training=True))
            outputs.append(hidden)
        loss = tf.reduce_sum(hidden * tf.constant(np.random.default_rng(1).normal(size=hidden.shape), tf.float32))
    first, last = (float(tf.norm(g)) for g in tape.gradient(loss, [outputs[3], outputs[-3]]))
    return (first / last) ** (1 / (depth - 6))


def test_without_skips_batch_normalization_explodes_and_the_choice_does_not():
    assert growth(keras.layers.BatchNormalization) == pytest.approx(1.2, abs=0.03)
    chosen = growth(lambda: normalization(residual=False, batch_size=64))
    assert chosen == pytest.approx(1.0, abs=0.03)
