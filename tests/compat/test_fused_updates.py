"""Fused updates: the arithmetic of Keras, but for the order of rounding."""

from __future__ import annotations

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.compat.fused_updates import fused
from tests.training.nets import digits, seeded, two_dense

OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
}


def update_of(optimizer, variable, is_fused):
    def update(gradient):
        with fused(optimizer) if is_fused else contextlib.nullcontext():
            optimizer.apply([gradient], [variable])

    return update


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_each_update_is_that_of_keras_in_float64_within_rounding(optimizer, jit_compile):
    """Both float32 updates are compared with Keras' own in float64, over 20 steps of the same gradients."""
    gradients = np.random.default_rng(0).normal(size=(20, 5, 3))
    kernels = []
    for dtype, is_fused in [("float64", False), ("float32", False), ("float32", True)]:
        variable = keras.Variable(np.ones((5, 3)), dtype=dtype, name="w")
        one = OPTIMIZERS[optimizer]()
        one.build([variable])

        step = tf.function(update_of(one, variable, is_fused), jit_compile=jit_compile, autograph=False)
        for gradient in gradients:
            step(tf.constant(gradient, dtype))
        kernels.append(np.array(variable).astype(np.float64))
    exact, plain, ours = kernels
    assert np.abs(ours - exact).max() <= 4 * max(np.abs(plain - exact).max(), 1e-7)


def fit(callbacks, optimizer, build=two_dense, **how):
    x, y = digits(256)
    model = seeded(build, optimizer(), **how)
    model.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    return model


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fused_fit_clips_skips_and_ends_where_the_unfused_one_does(optimizer):
    clipping = gr.clipping.by_global_norm(0.5)
    one = fit([gr.GradientGuard(clipping=clipping)], OPTIMIZERS[optimizer])
    other = fit([gr.GradientGuard(clipping=clipping, fused=True)], OPTIMIZERS[optimizer])
    for mine, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    assert int(one.optimizer.iterations) == int(other.optimizer.iterations) == 16


def test_sparse_gradients_are_updated_as_keras_does():
    def build():
        layers = [keras.Input((64,)), keras.layers.Embedding(17, 4), keras.layers.Flatten(), keras.layers.Dense(10)]
        return keras.Sequential(layers)

    one, other = (fit([gr.GradientGuard(fused=flag)], OPTIMIZERS["adam"], build) for flag in (False, True))
    np.testing.assert_allclose(one.layers[0].embeddings, other.layers[0].embeddings, rtol=1e-3, atol=1e-5)


def test_a_recipe_model_is_fused_too_and_keeps_it_in_its_file(tmp_path):
    def build():
        inputs = keras.Input((64,))
        return gr.RecipeModel(inputs, keras.layers.Dense(10)(inputs), fused=True)

    model = fit([], OPTIMIZERS["adam"], build)
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").fused is True


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (lambda: keras.optimizers.RMSprop(0.01), "RMSprop"),
        (lambda: keras.optimizers.Adam(amsgrad=True), "amsgrad=True"),
    ],
    ids=["rmsprop", "amsgrad"],
)
def test_where_no_kernel_fits_it_is_refused_in_words(optimizer, name):
    with pytest.raises(ValueError, match=rf"`fused=True` .*Adam, AdamW, SGD.*Received: .*{name}.*Leave `fused` out"):
        fit([gr.GradientGuard(fused=True)], optimizer)


def test_fused_is_a_flag():
    with pytest.raises(TypeError, match="`fused` must be True or False"):
        gr.GradientGuard(fused="yes")
