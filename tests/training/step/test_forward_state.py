"""A skipped step leaves everything as it was, not only what an optimizer updates; and its logs stay sensible."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.compat import tensorflow_private
from gradrecipes.training.recovery.model_state import SnapshotRing
from tests.training.nets import all_finite, digits, layers, seeded, two_dense

BATCH = 32


def fit(model, *callbacks, bad=(1,), steps=3, epochs=1, **how):
    x, y = digits(steps * BATCH)
    for batch in bad:
        x[batch * BATCH + 5, 7] = np.nan
    return model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **how)


class Rescaled(layers.Layer):
    """Assign its own trainable weight in the forward pass, as `SpectralNormalization` does."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 8))

    def call(self, x):
        self.kernel.assign(self.kernel / keras.ops.maximum(keras.ops.max(keras.ops.sum(x * x, axis=-1)), 1.0))
        return x @ self.kernel


class Follower(keras.Model):
    """Let a copy of its weights follow them at the end of each step."""

    def __init__(self, function=False):
        super().__init__()
        self.leader, self.follower = layers.Dense(10), layers.Dense(10)
        self.__dict__["move"] = tf.function(self._move) if function else self._move

    def build(self, shape):
        self.leader.build(shape)
        self.follower.build(shape)

    def call(self, x):
        return self.leader(x)

    def _move(self, pull):
        for mine, other in zip(self.follower.weights, self.leader.weights, strict=True):
            mine.assign(0.9 * mine + other * pull)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        weights = self.leader.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.move(0.1 * tf.reduce_max(x))
        return {"loss": loss}


@pytest.mark.parametrize("how", [{}, {"run_eagerly": True}], ids=["compiled", "eager"])
def test_a_weight_that_is_assigned_in_the_forward_pass_is_put_back(how):
    model = seeded(lambda: keras.Sequential([keras.Input((64,)), Rescaled(), layers.Dense(10)]), metrics=[], **how)
    guard = gr.GradientGuard()
    fit(model, guard)
    assert all_finite(model)
    assert [event.step for event in guard.events] == [1]


@pytest.mark.parametrize("function", [False, True], ids=["plain", "in a function"])
@pytest.mark.parametrize("callbacks", [[], [gr.GradientMonitor(sample_every=3)]], ids=["guard", "guard and monitor"])
def test_weights_that_no_optimizer_has_are_put_back(callbacks, function):
    keras.utils.set_random_seed(1)
    model = Follower(function)
    model.build((None, 64))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, gr.GradientGuard(), *callbacks, bad=(1, 4), steps=6)
    assert all_finite(model)


def test_recurrent_states_are_put_back():
    def stateful():
        shape = [keras.Input((64,), batch_size=BATCH), layers.Reshape((8, 8))]
        return keras.Sequential([*shape, layers.GRU(4, stateful=True), layers.Dense(10)])

    model, guard = seeded(stateful, metrics=[]), gr.GradientGuard()
    fit(model, guard)
    assert [event.step for event in guard.events] == [1]
    (state,) = model.layers[1].states
    assert np.isfinite(state).all()
    ring, before = SnapshotRing(model), np.array(state)
    ring.keep(3)
    state.assign(state + 1.0)
    ring.restore()
    np.testing.assert_array_equal(state, before)


def test_nothing_listens_after_a_step():
    fit(seeded(two_dense, metrics=[]), gr.GradientGuard())
    assert all(vars(kind)[name] is original for kind, name, original in tensorflow_private._ORIGINALS)


def test_a_skip_in_double_precision():
    keras.config.set_floatx("float64")
    try:
        model = seeded(two_dense)
        history = fit(model, gr.GradientGuard(), bad=(0,)).history
    finally:
        keras.config.set_floatx("float32")
    assert all_finite(model)
    assert np.isfinite(history["loss"]).all()


class Counts(keras.metrics.Metric):
    def __init__(self, **how):
        super().__init__(**how)
        self.seen = self.add_weight(name="seen", initializer="zeros")

    def update_state(self, y, p, sample_weight=None):
        self.seen.assign_add(1.0)

    def result(self):
        return {"seen": self.seen * 1.0, "half": self.seen / 2}


def test_a_metric_may_give_a_dict():
    history = fit(seeded(two_dense, metrics=[Counts()]), gr.GradientGuard()).history
    assert (history["seen"], history["half"]) == ([2.0], [1.0])


def test_a_first_batch_that_is_skipped_does_not_end_a_training_by_its_loss():
    model, guard, seen = seeded(two_dense, metrics=[]), gr.GradientGuard(), []
    look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs["loss"]))
    history = fit(model, guard, keras.callbacks.TerminateOnNaN(), look, bad=(0,), epochs=2).history
    assert len(guard.trace) == 6
    assert seen[0] == np.float32(np.finfo(np.float32).max)
    assert seen[3] == history["loss"][0]


def test_the_loss_of_an_epoch_of_which_nothing_was_applied_is_no_improvement():
    history = fit(seeded(two_dense, metrics=[]), gr.GradientGuard(), bad=(0, 1), steps=2).history
    assert history["loss"] == [np.finfo(np.float32).max]


def test_a_train_step_may_take_its_batch_apart_by_itself():
    class Named(keras.Model):
        def __init__(self):
            super().__init__()
            self.out = layers.Dense(10)

        def build(self, shape):
            self.out.build(shape)

        def call(self, x):
            return self.out(x)

        def train_step(self, data):
            x, y = data["image"], data["label"]
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=(p := self(x, training=True)))
            self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
            return self.compute_metrics(x, y, p)

    x, y = digits(3 * BATCH)
    x[BATCH + 5, 7] = np.nan
    model = seeded(Named)
    model.build((None, 64))
    data = tf.data.Dataset.from_tensor_slices({"image": x, "label": y}).batch(BATCH)
    history = model.fit(data, shuffle=False, verbose=0, callbacks=[gr.GradientGuard()]).history
    assert all_finite(model)
    (count,) = [v for v in model.metrics_variables if v.path.endswith("accuracy/count")]
    assert (float(count.numpy()), history["skipped_steps"]) == (2 * BATCH, [1.0])
