"""Where an optimizer accumulates, everything is counted by update: norms, losses, clipping, logs, samples."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.core.analysis.clipping_report import clipping_report

SAMPLES, BATCH, MICRO = 96, 4, 4  # 24 batches an epoch, 6 updates
UPDATES = SAMPLES // BATCH // MICRO


def data(samples=SAMPLES):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(samples, 5)).astype("float32")
    return x, (x @ generator.normal(size=(5, 1))).astype("float32")


def net(optimizer=None, **compile_arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)])
    optimizer = optimizer or keras.optimizers.SGD(0.05, gradient_accumulation_steps=MICRO)
    model.compile(optimizer, "mse", **compile_arguments)
    return model


def fit(model, *callbacks, x=None, y=None, epochs=2):
    if x is None:
        x, y = data()
    return model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))


def true_updates(epochs=2, bound=None):
    """Return norms and losses of a plain loop over whole batches, which is what accumulation stands for."""
    model, (x, y) = net(keras.optimizers.SGD(0.05)), data()
    norms, losses = [], []
    for _ in range(epochs):
        for start in range(0, SAMPLES, BATCH * MICRO):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x[start : start + 16]) - y[start : start + 16]))
            gradients = tape.gradient(loss, model.trainable_variables)
            norms.append(float(tf.linalg.global_norm(gradients)))
            losses.append(float(loss))
            if bound is not None:
                gradients, _ = tf.clip_by_global_norm(gradients, bound)
            model.optimizer.apply(gradients, model.trainable_variables)
    return np.array(norms), np.array(losses)


MODES = {
    "graph": {},
    "eager": {"run_eagerly": True},
    "steps_per_execution": {"steps_per_execution": 6},
    "xla": {"jit_compile": True},
}


@pytest.mark.parametrize(
    "mode", [mode if mode == "graph" else pytest.param(mode, marks=pytest.mark.slow) for mode in MODES]
)
@pytest.mark.parametrize("guarded", [False, True], ids=["monitor", "guard"])
def test_a_step_of_the_record_is_an_update(mode, guarded):
    monitor = gr.GradientMonitor(sample_every=1)
    bound = 3.5 if guarded else None
    guards = [gr.GradientGuard(clipping=gr.clipping.by_global_norm(bound))] if guarded else []
    history = fit(net(**MODES[mode]), monitor, *guards).history
    norms, losses = true_updates(bound=bound)
    trace = monitor.trace
    assert len(trace) == 2 * UPDATES
    np.testing.assert_allclose(trace.gradient_norm, norms, rtol=1e-4)
    np.testing.assert_allclose(trace.loss, losses, rtol=1e-4)
    np.testing.assert_array_equal(trace.steps["batch"], np.tile(np.arange(3, 24, 4), 2))
    np.testing.assert_array_equal(trace.steps["epoch"], np.repeat([0, 1], UPDATES))
    np.testing.assert_array_equal(trace.samples["step"], np.arange(2 * UPDATES))
    assert (trace.samples["update_norm"] > 0).all()
    by_layer = np.sqrt(np.square(trace.layer_gradient_norm).sum(axis=1))
    np.testing.assert_allclose(by_layer, norms, rtol=1e-4)
    epochs = norms.reshape(2, -1)
    np.testing.assert_allclose(history["gradient_norm"], epochs.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(history["gradient_norm_max"], epochs.max(axis=1), rtol=1e-4)
    if guarded:
        clipped = int((norms > bound).sum())
        assert 0 < clipped < len(norms)
        assert history["clipped_steps"][-1] == clipped
        report = clipping_report(trace)
        assert (report.steps, report.clipped_steps) == (len(norms), clipped)
        np.testing.assert_allclose(trace.steps["clip_factor"], np.minimum(1, bound / norms), rtol=1e-4)


def test_the_weights_are_those_of_plain_keras():
    plain, watched = net(), net()
    fit(plain)
    fit(watched, gr.GradientMonitor(), gr.GradientGuard(sigmas=None))
    for mine, theirs in zip(plain.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_a_batch_that_is_skipped_is_a_step_of_its_own_and_another_takes_its_place():
    x, y = data()
    x[5 * BATCH] = np.nan  # batch 5, the second of the second update
    monitor, guard = gr.GradientMonitor(), gr.GradientGuard()
    history = fit(net(), monitor, guard, x=x, y=y, epochs=1).history
    trace = monitor.trace
    np.testing.assert_array_equal(trace.steps["batch"], [3, 5, 8, 12, 16, 20])
    np.testing.assert_array_equal(trace.skipped, [False, True, False, False, False, False])
    assert [(event.kind, event.batch) for event in guard.events] == [("skip", 5)]
    sound = ~trace.skipped
    assert np.isfinite(trace.loss[sound]).all()
    assert history["skipped_steps"] == [1]
    assert history["gradient_norm"][0] == pytest.approx(trace.gradient_norm[sound].mean(), rel=1e-5)


def test_a_batch_that_is_an_outlier_does_not_spoil_the_update():
    x, y = data(4 * SAMPLES)
    y[50 * BATCH] *= 1e4
    guard = gr.GradientGuard()
    fit(net(), guard, x=x, y=y, epochs=1)
    assert [(event.kind, event.batch) for event in guard.events] == [("skip", 50)]
    applied = guard.trace.gradient_norm[~guard.trace.skipped]
    assert applied.max() < 1e3


def test_a_loss_scaler_leaves_out_batches_and_not_updates():
    inner = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    monitor = gr.GradientMonitor()
    x, y = data()
    y[3 * BATCH] = 1e35  # overflows in the scaled gradient
    history = fit(net(keras.optimizers.LossScaleOptimizer(inner)), monitor, x=x, y=y, epochs=1).history
    trace = monitor.trace
    finite = np.isfinite(trace.gradient_norm)
    np.testing.assert_array_equal(trace.steps["batch"][~finite], [3])
    assert int(finite.sum()) == 11  # 23 batches
    assert history["gradient_norm"][0] == pytest.approx(trace.gradient_norm[finite].mean(), rel=1e-5)


class TwoOptimizers(keras.Model):
    """Trains two heads, each with an optimizer of its own."""

    def __init__(self):
        super().__init__()
        self.one, self.two = keras.layers.Dense(1), keras.layers.Dense(1)

    def build(self, shape):
        self.one.build(shape)
        self.two.build(shape)

    def call(self, x):
        return self.one(x) + self.two(x)

    def compile(self, second, **arguments):
        super().compile(**arguments)
        self.second = second

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x))
        gradients = tape.gradient(loss, [*self.one.trainable_variables, *self.two.trainable_variables])
        self.optimizer.apply(gradients[:2], self.one.trainable_variables)
        self.second.apply(gradients[2:], self.two.trainable_variables)
        return {"loss": loss}


@pytest.mark.parametrize("steps", [(2, 3), (None, 4)], ids=str)
def test_optimizers_may_accumulate_differently(steps):
    keras.utils.set_random_seed(1)
    model = TwoOptimizers()
    first, second = (keras.optimizers.SGD(0.01, gradient_accumulation_steps=number) for number in steps)
    model.compile(second, optimizer=first, loss="mse")
    monitor = gr.GradientMonitor(sample_every=1)
    fit(model, monitor, epochs=1)
    trace, batches = monitor.trace, np.arange(24)
    updates = [(batches + 1) % (number or 1) == 0 for number in steps]
    seen = updates[0] | updates[1]
    np.testing.assert_array_equal(trace.steps["batch"], batches[seen])
    for column, updated in enumerate(updates):
        np.testing.assert_array_equal(np.isfinite(trace.layer_gradient_norm[:, column]), updated[seen])
        moved = trace.samples["update_norm"][:, column] > 0
        np.testing.assert_array_equal(moved, updated[seen])
    of_layers = np.sqrt(np.nansum(np.square(trace.layer_gradient_norm), axis=1))
    np.testing.assert_allclose(trace.gradient_norm, of_layers, rtol=1e-5)


def test_the_memory_of_a_clipping_method_holds_updates_only():
    guard = gr.GradientGuard(clipping=gr.clipping.by_percentile(50), sigmas=None)
    fit(net(), guard, epochs=3)
    norms = true_updates(epochs=3)[0]
    remembered = np.concatenate([np.ravel(part.numpy()) for part in guard._session.pipeline.clipper.states["0"]])
    assert np.isclose(remembered[:, None], norms[0], rtol=1e-4).any()
    assert len(guard.trace) == 3 * UPDATES


def test_a_model_with_a_step_of_its_own_counts_updates_in_its_logs():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(8, activation="tanh")(inputs)
    model = gr.RecipeModel(inputs, keras.layers.Dense(1)(hidden), clipping=gr.clipping.by_global_norm(1e-3))
    model.compile(keras.optimizers.SGD(0.05, gradient_accumulation_steps=MICRO), "mse")
    assert fit(model).history["clipped_steps"] == [UPDATES, 2 * UPDATES]
