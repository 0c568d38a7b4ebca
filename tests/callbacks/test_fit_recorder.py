"""A program that knows nothing of the recorder runs as without it, whatever its train step does."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.callbacks.fit_recorder import FitRecorder

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = 2.0 * X[:, :1]


class OwnStep(keras.Model):
    """A model whose train step has a tape of its own; `update` applies the gradients."""

    def __init__(self):
        super().__init__()
        self.net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, x):
        return self.net(x)

    def gradients(self, x, y):
        with tf.GradientTape() as tape:
            error = tf.reduce_mean(tf.square(self.net(x) - y))
        return error, tape.gradient(error, self.net.trainable_weights)

    def train_step(self, data):
        error, gradients = self.gradients(*data)
        self.update(gradients)
        return {"error": error}


class InFunction(OwnStep):
    @tf.function
    def update(self, gradients):
        self.optimizer.apply_gradients(zip(gradients, self.net.trainable_weights, strict=True))


class InCondition(OwnStep):
    def update(self, gradients):
        self.count.assign_add(1)

        def apply():
            self.optimizer.apply_gradients(zip(gradients, self.net.trainable_weights, strict=True))
            return tf.constant(True)

        tf.cond(self.count.value % 2 == 0, apply, lambda: tf.constant(False))


class ByAssignment(OwnStep):
    def update(self, gradients):
        for gradient, weight in zip(gradients, self.net.trainable_weights, strict=True):
            weight.assign_sub(0.01 * gradient)


class HeldByLayer(OwnStep):
    def __init__(self):
        super().__init__()
        self.net.layers[0].own_optimizer = keras.optimizers.Adam(0.01)

    def update(self, gradients):
        optimizer = self.net.layers[0].own_optimizer
        optimizer.apply_gradients(zip(gradients, self.net.trainable_weights, strict=True))


class CompiledAlone(OwnStep):
    @tf.function(jit_compile=True)
    def train_step(self, data):
        error, gradients = self.gradients(*data)
        self.optimizer.apply_gradients(zip(gradients, self.net.trainable_weights, strict=True))
        return {"error": error}


class Recorded(OwnStep):
    def update(self, gradients):
        self.optimizer.apply_gradients(zip(gradients, self.net.trainable_weights, strict=True))


def train(kind, callbacks, *, eager):
    keras.utils.set_random_seed(5)
    model = kind()
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=eager)
    history = [model.fit(X, Y, batch_size=16, epochs=1, verbose=0, callbacks=callbacks).history for _ in range(2)]
    return history, model.get_weights()


def assert_same(one, other):
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
@pytest.mark.parametrize("kind", [InFunction, InCondition, ByAssignment, HeldByLayer, CompiledAlone])
def test_a_step_that_cannot_be_recorded_runs_as_without_the_recorder(kind, eager):
    recorder = FitRecorder()
    assert_same(train(kind, [recorder], eager=eager), train(kind, [], eager=eager))
    assert "Error" in recorder.not_recorded
    assert len(recorder.trace) == 0


def test_a_step_that_can_be_recorded_gets_no_other_logs():
    recorder = FitRecorder()
    recorded, plain = (train(Recorded, callbacks, eager=False) for callbacks in ([recorder], []))
    assert_same(recorded, plain)
    assert recorder.not_recorded is None
    assert len(recorder.trace) == 8


def test_an_error_of_the_program_is_its_own():
    class Broken(OwnStep):
        def update(self, gradients):
            raise RuntimeError("of the program")

    recorder = FitRecorder()
    with pytest.raises(RuntimeError, match="of the program"):
        train(Broken, [recorder], eager=False)
    assert recorder.not_recorded is None


def test_whatever_the_recorder_itself_raises_stays_within_it(monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("not today")

    monkeypatch.setattr("gradrecipes.training.fit.session.PreparedStep", fails)
    recorder = FitRecorder()
    assert_same(train(Recorded, [recorder], eager=True), train(Recorded, [], eager=True))
    assert recorder.not_recorded == "RuntimeError: not today"
