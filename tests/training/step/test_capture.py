"""The loss of a batch is seen, whichever way a train step computes it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr

X = np.random.default_rng(0).normal(size=(320, 4)).astype(np.float32)
Y = X @ np.ones((4, 1), np.float32)


class OwnTape(keras.Model):
    """A train step with its own tape, which returns what `returned(model, loss)` makes of its loss."""

    def __init__(self, returned):
        super().__init__()
        self.net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        self.returned, self.batches = returned, []
        self.tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.tracker]

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.net(x) - y))
        weights = self.net.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        if tf.executing_eagerly():
            self.batches.append(float(loss))
        return self.returned(self, loss)


def running_mean(model, loss):
    model.tracker.update_state(loss)
    return {"loss": model.tracker.result()}


RETURNED = {
    "running mean": running_mean,
    "loss": lambda model, loss: {"loss": loss, "other": 2.0 * loss},
    "single scalar": lambda model, loss: {"error": loss},
    "nested": lambda model, loss: {"all": {"error": loss}},
    "nothing that tells": lambda model, loss: {"first": 2.0 * loss, "second": 3.0 * loss},
}


def fitted(returned, *, rate=0.1, callbacks=(), eager=True, epochs=2):
    model = OwnTape(returned)
    model.compile(keras.optimizers.SGD(rate), run_eagerly=eager)
    model.fit(X, Y, batch_size=32, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))
    return model


@pytest.mark.parametrize("returned", RETURNED)
def test_the_trace_has_the_loss_of_each_batch(returned):
    monitor = gr.GradientMonitor()
    model = fitted(RETURNED[returned], callbacks=[monitor])
    np.testing.assert_allclose(monitor.trace.loss, model.batches, rtol=1e-6)


def test_the_same_holds_in_a_graph():
    traces = []
    for eager in (True, False):
        monitor = gr.GradientMonitor()
        fitted(running_mean, callbacks=[monitor], eager=eager)
        traces.append(monitor.trace)
    np.testing.assert_allclose(traces[0].loss, traces[1].loss, rtol=1e-4)


def test_a_rate_that_is_too_high_is_found_and_one_that_learns_is_healthy():
    verdicts = []
    for rate in (0.1, 2.0):
        monitor = gr.GradientMonitor()
        fitted(running_mean, rate=rate, callbacks=[monitor], eager=False, epochs=3)
        verdicts.append(gr.diagnose(monitor.trace).verdict)
    assert verdicts == ["healthy", "unhealthy"]


def test_a_guard_leaves_out_a_step_whose_loss_is_an_outlier():
    x = X.copy()
    x[256:288] *= 1e6  # finite, and beyond all that came before
    model = OwnTape(running_mean)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    guard = gr.GradientGuard()
    model.fit(
        np.concatenate([X] * 4 + [x]),
        np.concatenate([Y] * 5),
        batch_size=32,
        verbose=0,
        shuffle=False,
        callbacks=[guard],
    )
    assert [event.reason for event in guard.events if event.kind == "skip"] == ["loss_outlier"]


def test_a_loss_that_is_not_seen_leaves_the_verdict_undecided():
    class Hidden(OwnTape):
        @tf.function
        def gradients(self, x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self.net(x) - y))
            return tape.gradient(loss, self.net.trainable_weights)

        def train_step(self, data):
            weights = self.net.trainable_weights
            self.optimizer.apply_gradients(zip(self.gradients(*data), weights, strict=True))
            return {"updates": tf.ones([2])}

    monitor = gr.GradientMonitor()
    model = Hidden(None)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model.fit(X, Y, verbose=0, callbacks=[monitor])
    diagnosis = gr.diagnose(monitor.trace)
    assert diagnosis.verdict == "undecided"
    assert "loss was not seen" in diagnosis.summary
