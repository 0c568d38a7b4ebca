"""What trains in plain Keras trains with a monitor and a guard to the same bits, whatever its train step returns."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = 2.0 * X[:, :1]


def net():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])


class Distiller(keras.Model):
    """A model without `call`."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = net(), net()

    def train_step(self, data):
        x, y = data
        weights = self.student.trainable_weights
        with tf.GradientTape() as tape:
            predicted = self.student(x, training=True)
            error = tf.reduce_mean(tf.square(predicted - y)) + tf.reduce_mean(tf.square(predicted - self.teacher(x)))
        self.optimizer.apply_gradients(zip(tape.gradient(error, weights), weights, strict=True))
        for metric in self.metrics:
            if metric.name != "loss":
                metric.update_state(y, predicted)
        return {**{m.name: m.result() for m in self.metrics if m.name != "loss"}, "error": error}


class OtherStructure(keras.Model):
    """A model whose metrics see one of the tensors that `call` returns."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def call(self, x):
        predicted = self.net(x)
        return predicted, {"again": predicted}

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)[0]
            error = self.compute_loss(x, y, predicted)
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(error, weights), weights, strict=True))
        return self.compute_metrics(x, y, predicted)


class Returning(OtherStructure):
    """A model whose train step returns what `returned` makes of its loss."""

    def __init__(self, returned):
        super().__init__()
        self.returned = returned

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            error = tf.reduce_mean(tf.square(self.net(x) - y))
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(error, weights), weights, strict=True))
        return self.returned(error)


KINDS = {
    "no call": (Distiller, ["mae"]),
    "other structure": (OtherStructure, ["mae"]),
    "nested": (lambda: Returning(lambda loss: {"nested": {"one": {"two": loss}, "three": 2.0 * loss}}), None),
    "a variable within": (
        lambda: Returning(lambda loss: {"nested": [loss, 2.0 * loss], "rate": keras.Variable(0.1)}),
        None,
    ),
    "vector": (lambda: Returning(lambda loss: {"vector": tf.stack([loss, loss])}), None),
    "None within": (lambda: Returning(lambda loss: {"loss": loss, "nothing": None}), None),
    "scalar": (lambda: Returning(lambda loss: loss), None),
    "None": (lambda: Returning(lambda loss: None), None),
    "list": (lambda: Returning(lambda loss: [loss, loss]), None),
}


def train(kind, callbacks):
    keras.utils.set_random_seed(5)
    make, metrics = KINDS[kind]
    model = make()
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=metrics, run_eagerly=kind != "None within")
    try:
        history = model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks).history
    except Exception as error:  # Keras itself refuses some of them behind the first epoch
        history = type(error)
    return str(history), [weight.tolist() for weight in model.get_weights()]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("list", "a variable within"))) for kind in KINDS]
)
def test_a_train_step_of_any_kind_trains_as_in_plain_keras(kind):
    plain = train(kind, [])
    assert train(kind, [gr.GradientMonitor(logs=False)]) == plain
    assert train(kind, [gr.GradientGuard(), gr.GradientMonitor(logs=False)]) == plain


@pytest.mark.parametrize("kind", ["no call", pytest.param("other structure", marks=pytest.mark.slow)])
def test_diagnose_finds_no_fault_in_a_step_that_trains(kind):
    keras.utils.set_random_seed(5)
    make, metrics = KINDS[kind]
    model = make()
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=metrics, run_eagerly=True)
    diagnosis = gr.diagnose(model, X, Y)
    assert diagnosis.verdict != "unhealthy"
    assert diagnosis.trace.probes.failure is None
    assert len(diagnosis.trace) > 0


def test_what_the_record_raises_is_no_finding(monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("not today")

    model = net()
    model.compile("sgd", "mse", run_eagerly=True)
    monkeypatch.setattr("gradrecipes.training.trial.TraceWriter.collect", fails)
    diagnosis = gr.diagnose(model, X, Y)
    assert diagnosis.verdict == "undecided"
    assert diagnosis.findings == ()
