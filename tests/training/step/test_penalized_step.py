"""A penalty in RecipeModel's step moves the weights as an independent tape says it must."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.regularizers import InputGradientPenalty, ParameterGradientPenalty
from tests.training.nets import compiled, digits, layers

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PENALTIES = [InputGradientPenalty(0.5), ParameterGradientPenalty(radius=0.3, share=0.7)]


def make(penalty, **how):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    outputs = layers.Dense(10)(layers.Dense(16, activation="tanh")(inputs))
    model = gr.RecipeModel(inputs, outputs, clipping=None, penalty=penalty)
    return compiled(model, keras.optimizers.SGD(1.0), loss=LOSS, **how)


def gradient_of_loss(model, x, y):
    with tf.GradientTape() as tape:
        loss = LOSS(y, model(x, training=True))
    return tape.gradient(loss, [weight.value for weight in model.trainable_variables])


def expected_change(penalty, x, y):
    model = make(None)
    if isinstance(penalty, InputGradientPenalty):
        x = tf.constant(x)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                losses = keras.losses.sparse_categorical_crossentropy(y, model(x), from_logits=True)
            steepness = tf.reduce_sum(tf.square(inner.gradient(losses, x)), axis=1)
            loss = tf.reduce_mean(losses) + penalty.weight * tf.reduce_mean(steepness)
        return outer.gradient(loss, [weight.value for weight in model.trainable_variables])
    here = gradient_of_loss(model, x, y)
    norm = tf.linalg.global_norm(here)
    for weight, part in zip(model.trainable_variables, here, strict=True):
        weight.assign_add(penalty.radius * part / norm)
    beyond = gradient_of_loss(model, x, y)
    return [(1 - penalty.share) * a + penalty.share * b for a, b in zip(here, beyond, strict=True)]


@pytest.mark.parametrize("guarded", [False, True], ids=["alone", "with callbacks"])
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "xla"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)
def test_one_step_goes_where_the_penalized_gradient_points(penalty, jit_compile, guarded):
    x, y = digits(32)
    model = make(penalty, jit_compile=jit_compile)
    before = model.get_weights()
    callbacks = [gr.GradientMonitor(), gr.GradientGuard()] if guarded else []
    model.fit(x, y, batch_size=32, verbose=0, callbacks=callbacks)
    for old, new, gradient in zip(before, model.get_weights(), expected_change(penalty, x, y), strict=True):
        np.testing.assert_allclose(old - new, gradient, rtol=2e-4, atol=1e-5)


def test_the_norm_that_is_recorded_is_that_of_the_penalized_gradient():
    x, y = digits(32)
    monitor, penalty = gr.GradientMonitor(), PENALTIES[0]
    make(penalty).fit(x, y, batch_size=32, verbose=0, callbacks=[monitor])
    assert monitor.trace.gradient_norm[0] == pytest.approx(float(tf.linalg.global_norm(expected_change(penalty, x, y))))


def test_a_batch_with_nan_is_skipped_in_both_looks():
    x, y = digits(64)
    x[3] = np.nan
    for penalty in PENALTIES:
        model, guard = make(penalty), gr.GradientGuard()
        before = model.get_weights()
        model.fit(x[:32], y[:32], batch_size=32, verbose=0, callbacks=[guard])
        assert [event.kind for event in guard.events] == ["skip"]
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)
def test_a_saved_model_has_its_penalty(penalty, tmp_path):
    make(penalty).save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").penalty == penalty


def test_what_is_no_penalty_is_refused():
    with pytest.raises(TypeError, match=r"`penalty` of RecipeModel .*Received: 0\.1\. Choose one of"):
        make(0.1)
