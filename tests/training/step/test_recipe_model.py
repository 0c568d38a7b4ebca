"""RecipeModel and its mixin: the update is the bound, and the model is saved, loaded and copied whole."""

from __future__ import annotations

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.training.fit.session import is_attached
from tests.training.nets import all_finite, compiled, digits, layers, moved, seeded

BOUND = 0.01


def functional(**how):
    inputs = keras.Input((64,))
    return gr.RecipeModel(inputs, layers.Dense(10)(layers.Dense(16, activation="relu")(inputs)), **how)


@keras.saving.register_keras_serializable(package="tests")
class Mixed(gr.RecipeModelMixin, keras.Model):
    def __init__(self, **how):
        super().__init__(**how)
        self.hidden, self.out = layers.Dense(16, activation="relu"), layers.Dense(10)

    def call(self, x):
        return self.out(self.hidden(x))

    def build(self, shape):
        self.hidden.build(shape)
        self.out.build((None, 16))


KINDS = pytest.mark.parametrize("kind", [functional, Mixed], ids=lambda kind: kind.__name__)


def one_step(model, *callbacks, samples=32):
    x, y = digits(samples)
    return model.fit(x, y, batch_size=samples, verbose=0, callbacks=list(callbacks)).history


@pytest.mark.parametrize(
    ("kind", "optimizer", "how"),
    [
        (functional, {}, {}),
        (Mixed, {}, {}),
        (functional, {"loss_scale_factor": 128.0}, {}),
        (functional, {}, {"jit_compile": True}),
        (functional, {}, {"run_eagerly": True}),
    ],
)
def test_under_plain_descent_at_rate_one_the_update_is_the_bound(kind, optimizer, how):
    clipping = gr.clipping.by_global_norm(BOUND)
    model = seeded(lambda: kind(clipping=clipping), keras.optimizers.SGD(1.0, **optimizer), **how)
    model.build((None, 64))
    before = model.get_weights()
    history = one_step(model)
    assert moved(model, before) == pytest.approx(BOUND, rel=1e-4)
    assert history["gradient_norm"][0] > BOUND
    assert history["clipped_steps"] == [1]


def test_accumulated_gradients_are_clipped_as_their_mean():
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2, loss_scale_factor=64.0)
    model = seeded(lambda: functional(clipping=gr.clipping.by_global_norm(BOUND)), optimizer)
    before = model.get_weights()
    x, y = digits(64)
    model.fit(x, y, batch_size=32, verbose=0, shuffle=False)
    assert moved(model, before) == pytest.approx(BOUND, rel=1e-4)


def test_it_leaves_out_bad_steps_when_asked():
    x, y = digits(96)
    x[40] = np.nan
    model = seeded(lambda: functional(skip_nonfinite=True))
    history = model.fit(x, y, batch_size=32, shuffle=False, verbose=0).history
    assert history["skipped_steps"] == [1]
    assert np.isfinite(history["loss"]).all()
    assert all_finite(model)


def test_saved_and_loaded_it_trains_on_from_where_it_was(tmp_path):
    model = seeded(lambda: functional(clipping=gr.clipping.by_norm(0.1), name="mine"))
    one_step(model)
    model.save(tmp_path / "m.keras")
    read = keras.saving.load_model(tmp_path / "m.keras")
    assert (type(read), read.name, read.clipping) == (gr.RecipeModel, "mine", gr.clipping.by_norm(0.1))
    mine, theirs = one_step(model), one_step(read)
    assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-6)
    for one, other in zip(model.get_weights(), read.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_a_copy_trains_apart_from_its_original():
    model = seeded(functional)
    one_step(model)
    before = model.get_weights()
    twin = copy.deepcopy(model)
    assert twin.clipping == model.clipping
    one_step(twin)
    assert moved(model, before) == 0
    assert moved(twin, before) > 0


def test_with_a_monitor_and_a_guard_there_is_one_pipeline():
    model = seeded(lambda: functional(clipping=gr.clipping.by_global_norm(BOUND)), keras.optimizers.SGD(1.0))
    before, monitor, seen = model.get_weights(), gr.GradientMonitor(), []
    during = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(is_attached(model)))
    history = one_step(model, monitor, gr.GradientGuard(), during)
    assert seen == [True]
    assert not is_attached(model)
    assert moved(model, before) == pytest.approx(BOUND, rel=1e-4)
    assert history["clipped_steps"] == [1]
    assert monitor.trace.gradient_norm[0] == pytest.approx(history["gradient_norm"][0], rel=1e-6)


def test_compiled_anew_it_uses_the_new_optimizer():
    model = seeded(lambda: functional(clipping=gr.clipping.by_global_norm(BOUND)), keras.optimizers.SGD(1.0))
    one_step(model)
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss=model.loss)
    before = model.get_weights()
    one_step(model)
    assert moved(model, before) == pytest.approx(BOUND / 2, rel=1e-4)


@KINDS
def test_a_bare_number_is_no_clipping_method(kind):
    with pytest.raises(TypeError, match=r"`clipping` of .* must be a clipping method or None\. Received: 1\.0\. "):
        kind(clipping=1.0)


@pytest.mark.slow
def test_what_a_clipping_method_remembers_is_saved_with_the_model(tmp_path):
    x, y = digits(128)
    inputs = keras.Input((64,))

    def make():
        keras.utils.set_random_seed(0)
        outputs = layers.Dense(10)(inputs)
        return compiled(gr.RecipeModel(inputs, outputs, clipping=gr.clipping.by_percentile(50.0)), "sgd")

    def fit(model, first, last):
        model.fit(x[first:last], y[first:last], batch_size=16, shuffle=False, verbose=0)

    whole, halved = make(), make()
    fit(whole, 0, 64)
    fit(whole, 64, 128)
    fit(halved, 0, 64)
    halved.save(tmp_path / "half.keras")
    halved.save_weights(tmp_path / "half.weights.h5")
    resumed, loaded = keras.models.load_model(tmp_path / "half.keras"), make()
    loaded.load_weights(tmp_path / "half.weights.h5")
    forgetful = make()
    forgetful.set_weights(halved.get_weights())
    for model in (resumed, loaded, forgetful):
        fit(model, 64, 128)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(whole.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(whole.get_weights()[0] - forgetful.get_weights()[0]).max() > 1e-6


class Net(keras.Model):
    def __init__(self, **how):
        super().__init__(**how)
        self.out = layers.Dense(10)

    def build(self, shape):
        self.out.build(shape)

    def call(self, x):
        return self.out(x)


class OwnStep:
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}


def test_a_train_step_that_would_go_past_the_clipping_is_refused():
    class Past(OwnStep, gr.RecipeModelMixin, Net):
        pass

    class Before(gr.RecipeModelMixin, OwnStep, Net):
        pass

    class Through(gr.RecipeModelMixin, Net):
        def train_step(self, data):
            return super().train_step(data)

    with pytest.raises(TypeError, match="Past, whose train_step takes its place"):
        Past()
    x, y = digits(32)
    for kind in (Before, Through):
        model = compiled(kind(clipping=gr.clipping.by_global_norm(1e-9)), keras.optimizers.SGD(1.0), metrics=None)
        model.build((None, 64))
        before = model.get_weights()[0]
        model.fit(x, y, verbose=0)
        assert np.abs(model.get_weights()[0] - before).max() < 1e-8
