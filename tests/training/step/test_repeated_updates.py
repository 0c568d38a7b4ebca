"""Train steps whose updates vary: several of one optimizer in a step, or other variables in another step."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import assert_same_state, compiled, deterministic, digits, layers

BATCH, RATE = 32, 0.1


class Twice(keras.Model):
    """Update twice on each batch; at the second look the inputs are doubled, and what is too large then is NaN."""

    def train_step(self, data):
        x, y = data
        norms = []
        for seen in (x, tf.where(x > 5.0, np.nan, 2.0 * x)):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(seen, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            norms.append(tf.linalg.global_norm(gradients))
        return {"loss": loss, "own_norm": tf.linalg.global_norm(norms)}


class InTwoGroups(keras.Model):
    """Hand over the weights of the last layer first, then those of the others."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        for group in (slice(2, None), slice(None, 2)):
            self.optimizer.apply(gradients[group], self.trainable_variables[group])
        return {"loss": loss, "own_norm": tf.linalg.global_norm(gradients)}


def net(kind, **how) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((64,))
    hidden = layers.Dense(16, activation="relu", name="hidden")(inputs)
    model = compiled(
        kind(inputs, layers.Dense(10, name="out")(hidden)), keras.optimizers.SGD(RATE), metrics=None, **how
    )
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, batches, *callbacks):
    x, y = digits(BATCH * batches) if isinstance(batches, int) else batches
    return model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=list(callbacks)).history


@pytest.mark.parametrize("kind", [Twice, InTwoGroups])
def test_watched_and_guarded_it_trains_as_alone(kind):
    with deterministic(rewrites=False):
        plain, guarded, monitor = net(kind), net(kind), gr.GradientMonitor()
        fit(plain, 5)
        history = fit(guarded, 5, monitor, gr.GradientGuard())
    assert_same_state(plain, guarded)
    assert history["skipped_steps"] == [0]
    assert len(monitor.trace) == 5
    assert monitor.trace.gradient_norm[-1] == pytest.approx(history["own_norm"][-1], rel=1e-4)
    of_layers = np.sqrt(np.square(monitor.trace.layer_gradient_norm).sum(axis=1))
    np.testing.assert_allclose(of_layers, monitor.trace.gradient_norm, rtol=1e-5)


def test_weights_are_weighed_before_the_first_update_and_after_the_last():
    model, monitor = net(Twice), gr.GradientMonitor()
    before = [w.astype(float) for w in model.get_weights()]
    fit(model, 1, monitor)
    moved = [np.square(after - old).sum() for after, old in zip(model.get_weights(), before, strict=True)]
    sample, trace = monitor.trace.samples, monitor.trace
    where = [trace.layers.index("hidden"), trace.layers.index("out")]
    np.testing.assert_allclose(sample["update_norm"][0, where], np.sqrt([sum(moved[:2]), sum(moved[2:])]), rtol=1e-4)
    norms = [np.sqrt(sum(np.square(w).sum() for w in part)) for part in (before[:2], before[2:])]
    np.testing.assert_allclose(sample["weight_norm"][0, where], norms, rtol=1e-5)
    assert sample["histogram"][0, where[0]].sum() <= 2 * (64 * 16 + 16)
    assert (sample["zero_share"][0, where] < 1).all()


def test_a_bad_second_update_is_left_out_and_the_first_is_not():
    x, y = digits(BATCH)
    x[3, 5] = 6.0
    model, guard = net(Twice), gr.GradientGuard(clipping=gr.clipping.by_norm(1.0))
    before = model.get_weights()
    history = fit(model, (x, y), guard)
    assert history["skipped_steps"] == [1]
    assert [event.kind for event in guard.events] == ["skip"]
    assert int(model.optimizer.iterations) == 1
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert any((one != other).any() for one, other in zip(before, model.get_weights(), strict=True))


def test_each_update_is_clipped_by_what_is_remembered_of_its_own_kind():
    how = {"clipping": gr.clipping.by_percentile(50.0)}
    for kind in (Twice, InTwoGroups):
        model = net(kind)
        fit(model, 3, gr.GradientGuard(**how), gr.GradientMonitor())
        assert all(np.isfinite(w).all() for w in model.get_weights())


class StochasticDepth(keras.Model):
    """Leave out a layer in every other step, which an eager step can."""

    def __init__(self):
        super().__init__()
        self.first, self.between, self.out = (layers.Dense(units) for units in (10, 10, 10))
        self.__dict__["calls"] = 0

    def call(self, x, training=False):
        hidden = self.first(x)
        self.__dict__["calls"] += bool(training)
        return self.out(hidden + self.between(hidden) if self.calls % 2 else hidden)


@pytest.mark.parametrize("first", [0, 1], ids=["left_out_at_first", "there_at_first"])
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_layer_that_takes_part_in_some_steps_only_has_no_reading_in_the_others(first):
    model = compiled(StochasticDepth(), "sgd", metrics=None, run_eagerly=True)
    model(digits(2)[0], training=True)
    model.optimizer.build(model.trainable_variables)
    model.__dict__["calls"] = first + 1
    monitor = gr.GradientMonitor()
    fit(model, 4, monitor, gr.GradientGuard(clipping=gr.clipping.by_percentile(90.0)))
    trace = monitor.trace
    column = trace.layer_gradient_norm[:, trace.layers.index(model.between.name)]
    assert np.isnan(column).tolist() == [(first + step) % 2 == 0 for step in range(4)]
    of_layers = np.sqrt(np.nansum(np.square(trace.layer_gradient_norm), axis=1))
    np.testing.assert_allclose(of_layers, trace.gradient_norm, rtol=1e-5)
    assert np.isfinite(trace.samples["weight_norm"][:, trace.layers.index(model.out.name)]).all()
