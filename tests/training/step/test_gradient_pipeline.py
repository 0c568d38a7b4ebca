"""The pipeline in a loop of one's own, and in models with a train step of their own."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import all_finite, digits, layers, two_dense

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def loop(model, pipeline, *, jit_compile=None):
    @tf.function(jit_compile=jit_compile)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        outcome = pipeline.apply(gradients, model.trainable_variables, loss=loss)
        return {"outcome": outcome.outcome, "gradient_norm": outcome.gradient_norm, "clip_factor": outcome.clip_factor}

    return step


@pytest.mark.parametrize("jit_compile", [None, True], ids=["graph", "xla"])
def test_a_loop_by_hand_clips_reports_and_skips(jit_compile):
    keras.utils.set_random_seed(0)
    model, (x, y) = two_dense(), digits(64)
    clipping = gr.clipping.by_global_norm(0.1)
    optimizer = keras.optimizers.SGD(1.0)
    pipeline = gr.GradientPipeline(optimizer, clipping=clipping, xla=bool(jit_compile))
    step = loop(model, pipeline, jit_compile=jit_compile)

    before = model.get_weights()
    outcome = step(x, y)
    change = np.sqrt(sum(np.sum(np.square(a - b)) for a, b in zip(model.get_weights(), before, strict=True)))
    assert change == pytest.approx(0.1, rel=1e-4)
    assert int(outcome["outcome"]) == 0
    assert float(outcome["clip_factor"]) == pytest.approx(0.1 / float(outcome["gradient_norm"]), rel=1e-5)

    before = model.get_weights()
    x[3, 3] = np.inf
    assert int(step(x, y)["outcome"]) == 1
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert pipeline.skipped_steps == 1
    assert int(optimizer.iterations.numpy()) == 1
    assert "apply" not in optimizer.__dict__


def test_what_is_no_optimizer_or_no_clipping_is_refused():
    with pytest.raises(TypeError, match=r"must be a Keras optimizer\. Received: 'adam'\. Make one with"):
        gr.GradientPipeline("adam")
    with pytest.raises(TypeError, match=r"`clipping` of GradientPipeline .*Received: 1\.0"):
        gr.GradientPipeline(keras.optimizers.SGD(), clipping=1.0)


class OwnStep(keras.Model):
    """Train as the guides show it: a tape, and `apply_gradients`."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(16, activation="relu"), layers.Dense(10)

    def call(self, x):
        return self.out(self.hidden(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"my_loss": loss}


class NoUpdate(OwnStep):
    def train_step(self, data):
        return {"my_loss": self.compute_loss(y=data[1], y_pred=self(data[0]))}


def test_a_train_step_of_its_own_is_monitored_and_guarded():
    x, y = digits(96)
    x[40] = np.nan
    model = OwnStep()
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=LOSS)
    monitor, guard = gr.GradientMonitor(), gr.GradientGuard()
    history = model.fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=[monitor, guard]).history
    assert {"my_loss", "gradient_norm", "skipped_steps"} <= set(history)
    assert [event.batch for event in guard.events] == [1]
    assert all_finite(model)
    assert monitor.trace.layers == (model.hidden.name, model.out.name)
    assert np.isfinite(monitor.trace.gradient_norm).tolist() == [True, False, True]


def test_a_train_step_that_applies_nothing_is_told_of_the_loop_by_hand():
    x, y = digits(32)
    model = NoUpdate()
    model.compile(optimizer="sgd", loss=LOSS)
    with pytest.raises(ValueError, match=r"applied no gradients .*gr\.GradientPipeline"):
        model.fit(x, y, verbose=0, callbacks=[gr.GradientGuard()])
