"""What an optimizer updates, and what it clips first."""

from __future__ import annotations

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.compat.keras_optimizers import (
    AS_WRITTEN,
    clipped_first,
    decayed_as_in_a_graph,
    fused,
    rate_variable,
    runs_as_written,
    scalars_read_once,
    updated_variables,
)
from gradrecipes.compat.tensorflow_private import optimized, rare_cond
from tests.seeds import begin_anew
from tests.training.nets import digits, seeded, two_dense


def built(**arguments) -> tuple[keras.optimizers.Optimizer, keras.Variable]:
    begin_anew()
    weight = keras.Variable([0.0, 0.0])
    optimizer = keras.optimizers.SGD(1.0, **arguments)
    optimizer.build([weight])
    return optimizer, weight


def test_the_variables_are_those_it_was_built_with():
    optimizer, weight = built()
    assert [id(variable) for variable in updated_variables(optimizer)] == [id(weight)]


def test_gradients_are_clipped_by_the_function_then_as_the_optimizer_was_compiled():
    optimizer, weight = built(clipvalue=1.0)
    with clipped_first(optimizer, lambda gradients: [gradient * 0.25 for gradient in gradients]):
        optimizer.apply([keras.ops.array([2.0, 8.0])], [weight])
    optimizer.apply([keras.ops.array([0.0, 8.0])], [weight])
    np.testing.assert_allclose(np.array(weight), [-0.5, -2.0])


def test_of_accumulated_gradients_the_mean_is_clipped():
    optimizer, weight = built(gradient_accumulation_steps=2)
    seen = []
    with clipped_first(optimizer, lambda gradients: seen.extend(gradients) or gradients):
        optimizer.apply([keras.ops.array([2.0, 4.0])], [weight])
        optimizer.apply([keras.ops.array([4.0, 8.0])], [weight])
    assert np.array(seen[-1]).tolist() == [3.0, 6.0]


SETTINGS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "RMSprop": {"momentum": 0.5},
    "Lion": {"clipnorm": 1.0},
    "Nadam": {"global_clipnorm": 1.0},
}


def updated(kind: str, *, guarded: bool, **settings) -> list[np.ndarray]:
    """Return weights and slots after eight updates by a compiled function, in a condition or without one."""
    random = np.random.default_rng(0)
    weights = [keras.Variable(random.normal(size=shape).astype("float32")) for shape in ((64, 64), (512, 300))]
    optimizer = getattr(keras.optimizers, kind)(0.01, **settings)
    optimizer.build(weights)

    @tf.function(autograph=False)
    def step(go, *gradients):
        def apply():
            with scalars_read_once(optimizer), decayed_as_in_a_graph(optimizer):
                optimizer.apply(list(gradients), weights)
            return tf.ones(())

        if not guarded:
            return optimizer.apply(list(gradients), weights)
        return rare_cond(go, apply if runs_as_written(optimizer) else optimized(apply), lambda: tf.ones(()))

    for _ in range(8):
        scale = 10.0 ** random.integers(-4, 2)
        step(tf.constant(True), *[tf.constant(random.normal(size=w.shape) * scale, tf.float32) for w in weights])
    return [np.array(variable) for variable in [*weights, *optimizer.variables]]


@pytest.mark.parametrize("kind", [*sorted(AS_WRITTEN), "RMSprop"])
def test_an_update_within_a_condition_gives_the_bits_of_one_without(kind):
    settings = {"weight_decay": 0.01, "use_ema": True, **SETTINGS.get(kind, {})}
    for mine, plain in zip(
        updated(kind, guarded=True, **settings), updated(kind, guarded=False, **settings), strict=True
    ):
        np.testing.assert_array_equal(mine, plain)


def test_an_update_that_accumulates_or_divides_by_a_root_is_left_to_the_graph_optimizer():
    assert runs_as_written(keras.optimizers.Adam())
    assert not runs_as_written(keras.optimizers.Adam(gradient_accumulation_steps=3))
    assert not runs_as_written(keras.optimizers.RMSprop())


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


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])  # of each optimizer the update itself is compared above
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


def test_the_learning_rate_of_an_optimizer_is_a_variable_of_its_own():
    optimizer = keras.optimizers.Adam(0.25)
    assert any(variable is rate_variable(optimizer) for variable in optimizer.variables)
    assert float(rate_variable(optimizer)) == 0.25
