"""Bounds of layers, groups and optimizers inside `fit`, and bounds that follow a schedule."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import digits, seeded, two_dense

BATCH = 32


def net():
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(16, activation="tanh", name="first"),
            keras.layers.Dense(10, name="last"),
        ]
    )


def changes(clipping, *, make=net, steps=1, guarded=True, optimizer=None, **how):
    """Return the norm of the change of each layer's weights, with SGD(1)."""
    x, y = digits(steps * BATCH)
    model = seeded(make, optimizer or keras.optimizers.SGD(1.0), **how)
    before = [[weight.copy() for weight in layer.get_weights()] for layer in model.layers]
    guard = [gr.GradientGuard(clipping=clipping)] if guarded else []
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=guard)
    return [
        float(np.sqrt(sum(np.sum(np.square(new - old)) for new, old in zip(layer.get_weights(), kept, strict=True))))
        for layer, kept in zip(model.layers, before, strict=True)
    ]


def test_each_group_of_layers_is_bounded_by_its_own_method():
    plain = changes(None)
    both = changes({"first": gr.clipping.by_global_norm(0.01), "*": gr.clipping.by_global_norm(0.02)})
    np.testing.assert_allclose(both, [0.01, 0.02], rtol=1e-3)
    one = changes({"fir*": gr.clipping.by_global_norm(0.01)})
    np.testing.assert_allclose(one, [0.01, plain[1]], rtol=1e-3)


XLA = pytest.param({"jit_compile": True}, marks=pytest.mark.slow)


@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"steps_per_execution": 2}, XLA], ids=str)
@pytest.mark.parametrize("scaled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_mean_of_accumulated_gradients_is_bounded_by_groups(how, scaled):
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    clipping = {"first": gr.clipping.by_global_norm(0.01), "*": gr.clipping.by_global_norm(0.02)}
    np.testing.assert_allclose(changes(clipping, optimizer=optimizer, steps=2, **how), [0.01, 0.02], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [None, 2])
def test_a_group_that_remembers_does_so_alike_in_every_mode(accumulated):
    clipping = {"first": gr.clipping.by_percentile(50.0, window=16), "*": gr.clipping.by_value(1e-3)}
    eager, *others = (
        changes(clipping, optimizer=keras.optimizers.SGD(1.0, gradient_accumulation_steps=accumulated), steps=8, **how)
        for how in ({"run_eagerly": True}, {}, {"jit_compile": True})
    )
    for other in others:
        np.testing.assert_allclose(other, eager, rtol=1e-4)


class TwoOptimizers(keras.Model):
    def __init__(self, accumulated):
        super().__init__()
        self.parts = [keras.layers.Dense(8, "tanh", name="first"), keras.layers.Dense(10, name="last")]
        self.optimizers = [keras.optimizers.SGD(1.0, gradient_accumulation_steps=n) for n in (accumulated, None)]

    def call(self, x):
        return self.parts[1](self.parts[0](x))

    def train_step(self, data):
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(data[0], data[1], self(data[0], training=True))
        for optimizer, part in zip(self.optimizers, self.parts, strict=True):
            weights = part.trainable_weights
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize("how", [{"run_eagerly": True}, XLA], ids=str)
@pytest.mark.parametrize("accumulated", [None, 2])
@pytest.mark.parametrize("named", ["layers", "optimizers", "both"])
def test_of_several_optimizers_each_is_bounded_by_its_own_method(how, accumulated, named):
    x, y = digits(BATCH)
    keras.utils.set_random_seed(0)
    model = TwoOptimizers(accumulated)
    model(x)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), **how)
    first, last = gr.clipping.by_global_norm(0.01), gr.clipping.by_global_norm(0.02)
    keys = {"layers": ("first", "last"), "optimizers": model.optimizers, "both": (model.optimizers[0], "*")}[named]
    before = [part.get_weights() for part in model.parts]
    guard = gr.GradientGuard(clipping=dict(zip(keys, (first, last), strict=True)), sigmas=None)
    model.fit(x, y, batch_size=BATCH // (accumulated or 1), shuffle=False, verbose=0, callbacks=[guard])
    moved = [
        np.sqrt(sum(np.sum(np.square(new - old)) for new, old in zip(part.get_weights(), kept, strict=True)))
        for part, kept in zip(model.parts, before, strict=True)
    ]
    assert moved[0] == pytest.approx(0.01, rel=1e-3)
    assert moved[1] == pytest.approx(0.02, rel=1e-3) if accumulated is None else 0.02 < moved[1] < 0.0401


def test_a_recipe_model_takes_a_mapping_and_survives_a_file(tmp_path):
    clipping = {"first": gr.clipping.by_global_norm(0.01), "*": gr.clipping.by_percentile(50.0, window=16)}

    def make():
        plain = net()
        return gr.RecipeModel(plain.inputs, plain.outputs, clipping=clipping)

    assert changes(None, make=make, guarded=False)[1] == pytest.approx(0.01, rel=1e-3)
    model = make()
    model.save(tmp_path / "model.keras")
    assert dict(keras.saving.load_model(tmp_path / "model.keras").clipping.methods) == clipping


def test_an_optimizer_has_bounds_of_its_own():
    x, y = digits(BATCH)
    model = seeded(net, keras.optimizers.SGD(1.0))
    other = keras.optimizers.SGD(1.0)
    guard = gr.GradientGuard(
        clipping={other: gr.clipping.by_global_norm(1e-6), model.optimizer: gr.clipping.by_global_norm(0.03)}
    )
    before = model.get_weights()
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[guard])
    moved = sum(np.sum(np.square(new - old)) for new, old in zip(model.get_weights(), before, strict=True))
    assert float(np.sqrt(moved)) == pytest.approx(0.03, rel=1e-3)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(gr.clipping.by_global_norm, marks=pytest.mark.slow),
        gr.clipping.by_norm,
        pytest.param(gr.clipping.by_value, marks=pytest.mark.slow),
    ],
)
def test_a_bound_follows_a_schedule(method, tmp_path):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.04, 0.02, 0.01])
    clipping = method(schedule)
    x, y = digits(5 * BATCH)
    model, moved = seeded(net, keras.optimizers.SGD(1.0)), []

    class Moves(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.before = model.layers[1].kernel.numpy()

        def on_train_batch_end(self, batch, logs=None):
            change = model.layers[1].kernel.numpy() - self.before
            moved.append(np.abs(change).max() if method is gr.clipping.by_value else np.sqrt(np.sum(change**2)))

    model.fit(
        x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[gr.GradientGuard(clipping=clipping), Moves()]
    )
    bounds = np.array([0.04, 0.04, 0.02, 0.02, 0.01])
    assert (np.array(moved) <= bounds * 1.001).all()
    if method is not gr.clipping.by_global_norm:
        np.testing.assert_allclose(moved, bounds, rtol=1e-3)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(clipping))
    assert type(twin) is method and twin.make_state(2)


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({}, TypeError, "must be a mapping of layer patterns"),
        ({3: gr.clipping.by_norm(1.0)}, TypeError, "Received the key: 3"),
        ({"*": 1.0}, TypeError, r"Each layer pattern needs a clipping method. Received: 1\.0 for '\*'"),
    ],
)
def test_wrong_mappings_are_refused(wrong, kind, said):
    with pytest.raises(kind, match=said):
        gr.GradientGuard(clipping=wrong)


def test_a_pattern_that_matches_nothing_is_refused_with_the_layers_there_are():
    with pytest.raises(ValueError, match=r"Received: 'conv_\*'; the layers are"):
        changes({"conv_*": gr.clipping.by_norm(1.0)}, make=two_dense)
