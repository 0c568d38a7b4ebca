"""Train steps with graphs of their own: taken in where that can be, refused in words where it cannot."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import assert_same_state, compiled, deterministic, digits, layers


def gradients_of(model, data):
    x, y = data
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=True))
    return loss, tape.gradient(loss, model.trainable_variables)


class Decorated(keras.Model):
    @tf.function
    def train_step(self, data):
        loss, gradients = gradients_of(self, data)
        if loss < 2.2:  # a branch on a tensor, which the decorator turns into a tf.cond
            gradients = [2.0 * gradient for gradient in gradients]
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"own_loss": loss}


class DecoratedOnTop(keras.Model):
    @tf.function
    def train_step(self, data):
        return super().train_step(data)


class Compiled(keras.Model):
    @tf.function(jit_compile=True)
    def train_step(self, data):
        return super().train_step(data)


class InBranch(keras.Model):
    def train_step(self, data):
        loss, gradients = gradients_of(self, data)

        def update():
            self.optimizer.apply(gradients, self.trainable_variables)
            return True

        tf.cond(loss > 0.0, update, lambda: False)
        return {"own_loss": loss}


class InFunction(InBranch):
    @tf.function
    def update(self, data):
        loss, gradients = gradients_of(self, data)
        self.optimizer.apply(gradients, self.trainable_variables)
        return loss

    def train_step(self, data):
        return {"own_loss": self.update(data)}


class GradientsInFunction(keras.Model):
    @tf.function
    def gradients(self, data):
        return gradients_of(self, data)

    def train_step(self, data):
        loss, gradients = self.gradients(data)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"own_loss": loss}


def net(kind, **how) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((64,))
    model = compiled(kind(inputs, layers.Dense(10)(inputs)), keras.optimizers.SGD(0.5), metrics=None, **how)
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, *callbacks):
    x, y = digits(96)
    return model.fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=list(callbacks)).history


@pytest.mark.parametrize(
    ("kind", "log"), [(Decorated, "own_loss"), (DecoratedOnTop, "loss"), (GradientsInFunction, "own_loss")]
)
def test_a_step_with_a_function_of_its_own_trains_as_alone(kind, log, caplog):
    with deterministic(rewrites=False):
        plain, watched, monitor = net(kind), net(kind), gr.GradientMonitor()
        alone = fit(plain)
        both = fit(watched, monitor, gr.GradientGuard())
    assert_same_state(plain, watched)
    assert both[log] == alone[log]
    assert "AutoGraph" not in caplog.text
    assert len(monitor.trace) == 3
    assert (monitor.trace.gradient_norm > 0).all()


@pytest.mark.parametrize(
    ("kind", "words"),
    [(InBranch, "gradient_accumulation_steps"), (InFunction, "tf.function"), (Compiled, "jit_compile")],
)
@pytest.mark.parametrize("callback", [gr.GradientMonitor, gr.GradientGuard])
def test_what_cannot_be_read_is_refused_with_the_way_out(kind, words, callback):
    with pytest.raises(ValueError, match=words):
        fit(net(kind), callback())


def test_a_loss_of_each_sample_is_read_as_its_mean_as_keras_logs_it():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    with deterministic(rewrites=False):
        plain, watched, monitor = net(keras.Model, loss=loss), net(keras.Model, loss=loss), gr.GradientMonitor()
        alone = fit(plain)
        both = fit(watched, monitor, gr.GradientGuard())
    assert_same_state(plain, watched)
    assert both["loss"] == alone["loss"]
    assert np.mean(monitor.trace.loss) == pytest.approx(alone["loss"][0], rel=1e-6)
