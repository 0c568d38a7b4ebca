"""The reading of an attention is numpy's, wherever its softmax stands."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.probes.attention import AttentionProbe

STEPS, UNITS = 6, 8
X = np.random.default_rng(0).normal(size=(5, STEPS, UNITS)).astype("float32")


class OwnAttention(keras.layers.Layer):
    """One head without biases, whose logits are not divided by anything."""

    def __init__(self, *, causal=False, **how):
        super().__init__(**how)
        self.causal = causal
        self.queries, self.keys = keras.layers.Dense(UNITS, use_bias=False), keras.layers.Dense(UNITS, use_bias=False)

    def call(self, x):
        logits = tf.matmul(self.queries(x), self.keys(x), transpose_b=True)
        if self.causal:
            logits += np.triu(np.full((STEPS, STEPS), -1e9, "float32"), 1)
        return tf.matmul(tf.nn.softmax(logits), x)


def own(**how):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, UNITS))
    layer = OwnAttention(**how)
    return keras.Model(inputs, keras.layers.Dense(1)(layer(inputs))), layer


def expected(layer):
    x = X.astype(np.float64)
    queries, keys = (x @ np.asarray(one.kernel, np.float64) for one in (layer.queries, layer.keys))
    logits = queries @ keys.transpose(0, 2, 1)
    seen = np.tril(np.ones((STEPS, STEPS), bool)) if layer.causal else np.ones((STEPS, STEPS), bool)
    highest = np.where(seen, logits, -np.inf).max(-1)
    weights = np.where(seen, np.exp(logits - highest[..., None]), 0)
    several = seen.sum(-1) > 1
    spread = (highest - np.where(seen, logits, np.inf).min(-1))[:, several].mean()
    top = (weights.max(-1) / weights.sum(-1))[:, several].mean()
    return STEPS, np.abs(logits[:, seen]).max(), spread, top


@pytest.mark.parametrize("causal", [False, True])
def test_a_reading_is_numpys(causal):
    model, layer = own(causal=causal)
    (found,) = AttentionProbe(model).read(X)
    measured = found.keys, found.largest_logit, found.spread, found.top
    np.testing.assert_allclose(measured, expected(layer), rtol=1e-5)
    assert "own_attention" in found.name


def test_it_reads_the_weights_as_they_are_at_the_time():
    model, layer = own()
    probe = AttentionProbe(model)
    (before,) = probe.read(X)
    layer.queries.kernel.assign(10.0 * layer.queries.kernel)
    (after,) = probe.read(X)
    assert after.spread == pytest.approx(10.0 * before.spread, rel=1e-4)
    assert after.top > before.top


def test_keras_own_attention_is_seen_and_a_softmax_over_classes_is_not():
    inputs = keras.Input((STEPS, UNITS))
    mixed = keras.layers.MultiHeadAttention(2, 4)(inputs, inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(mixed))
    assert len(AttentionProbe(model).read(X)) == 1
    plain = keras.Sequential([keras.Input((STEPS, UNITS)), keras.layers.Dense(3, activation="softmax")])
    traced = keras.Sequential([keras.Input((STEPS, UNITS)), keras.layers.Dense(3), keras.layers.Softmax()])
    assert AttentionProbe(plain).read(X) == () == AttentionProbe(traced).read(X)


def test_batches_of_one_shape_are_traced_once():
    model, layer = own()
    calls, call = [], layer.call
    layer.call = lambda x: calls.append(x) or call(x)
    probe = AttentionProbe(model)
    first, again, smaller = probe.read(X), probe.read(X + 1.0), probe.read(X[:2])
    assert len(calls) == 2
    assert first != again and len(smaller) == 1


def test_a_model_that_cannot_be_traced_has_no_reading():
    class Raising(keras.Model):
        def call(self, x, training=False):
            raise RuntimeError("only its train step calls")

    assert AttentionProbe(Raising()).read(X) == ()
