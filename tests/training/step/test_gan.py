"""Two nets, two optimizers, one train step: each update is judged by itself, and both are in the record."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import digits, layers

BATCH, LATENT, RATE = 16, 4, 0.1
HOW = [pytest.param({}, id="graph"), pytest.param({"jit_compile": True}, id="xla", marks=pytest.mark.slow)]
SCE = keras.losses.BinaryCrossentropy(from_logits=True)


class Gan(keras.Model):
    """The GAN of the Keras guides, small: it keeps the compiled optimizer idle and brings two of its own."""

    def __init__(self):
        super().__init__()
        self.critic = keras.Sequential(
            [keras.Input((64,)), layers.Dense(8, activation="tanh"), layers.Dense(1)], name="critic"
        )
        self.maker = keras.Sequential(
            [keras.Input((LATENT,)), layers.Dense(8, activation="tanh"), layers.Dense(64)], name="maker"
        )
        self.__dict__["norms"] = []

    def compile(self, **how):
        super().compile(**how)
        self.critic_optimizer = keras.optimizers.SGD(RATE, momentum=0.9)
        self.maker_optimizer = keras.optimizers.Adam(0.01)

    def call(self, noise):
        return self.critic(self.maker(noise))

    def train_step(self, real):
        noise = real[:, :LATENT] - 0.5  # of the data, so that two runs have the same
        ones, zeros = tf.ones((tf.shape(real)[0], 1)), tf.zeros((tf.shape(real)[0], 1))
        with tf.GradientTape() as tape:
            critic_loss = SCE(ones, self.critic(real)) + SCE(zeros, self.critic(self.maker(noise)))
        critic_gradients = tape.gradient(critic_loss, self.critic.trainable_weights)
        self.critic_optimizer.apply_gradients(zip(critic_gradients, self.critic.trainable_weights, strict=True))
        with tf.GradientTape() as tape:
            maker_loss = SCE(ones, self.critic(self.maker(noise)))
        maker_gradients = tape.gradient(maker_loss, self.maker.trainable_weights)
        self.maker_optimizer.apply_gradients(zip(maker_gradients, self.maker.trainable_weights, strict=True))
        if self.run_eagerly:
            both = [np.asarray(g, np.float64).ravel() for g in critic_gradients + maker_gradients]
            self.norms.append(np.linalg.norm(np.concatenate(both)))
        return {"critic_loss": critic_loss, "maker_loss": maker_loss}


def gan(**how) -> Gan:
    keras.utils.set_random_seed(1)
    model = Gan()
    model.compile(**how)
    return model


def fit(model, x, *callbacks):
    return model.fit(x, batch_size=BATCH, shuffle=False, verbose=0, callbacks=list(callbacks)).history


def weights_of(model) -> list[np.ndarray]:
    return [w.copy() for w in model.get_weights()]


@pytest.mark.parametrize("how", HOW)
def test_watched_and_guarded_it_trains_as_alone_and_both_nets_are_in_the_record(how):
    x = digits(4 * BATCH)[0]
    plain, guarded = gan(run_eagerly=True), gan(**how)
    theirs = fit(plain, x)
    monitor = gr.GradientMonitor()
    mine = fit(guarded, x, monitor, gr.GradientGuard())
    assert mine["skipped_steps"] == [0]
    assert mine["maker_loss"] == pytest.approx(theirs["maker_loss"], rel=1e-4)
    for one, other in zip(weights_of(guarded), weights_of(plain), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(monitor.trace.gradient_norm, plain.norms, rtol=1e-4)
    dense = [layer.name for part in (guarded.critic, guarded.maker) for layer in part.layers]
    assert set(dense) <= set(monitor.trace.layers)
    columns = [monitor.trace.layers.index(name) for name in dense]
    of_layers = np.sqrt(np.square(monitor.trace.layer_gradient_norm[:, columns]).sum(axis=1))
    np.testing.assert_allclose(of_layers, plain.norms, rtol=1e-4)


@pytest.mark.parametrize("how", HOW)
def test_a_nan_in_the_update_of_one_net_leaves_out_that_update_and_not_the_other(how):
    x = digits(BATCH)[0]
    guarded, alone = gan(**how), gan(**how)
    fit(guarded, x)  # makes all slots
    before = weights_of(guarded)
    x[3, 40] = np.nan  # beyond what the maker is fed with
    guard = gr.GradientGuard()
    history = fit(guarded, x, guard)
    assert [event.batch for event in guard.events] == [0]
    assert history["skipped_steps"] == [1]
    after = weights_of(guarded)
    same = [np.array_equal(a, b) for a, b in zip(after, before, strict=True)]
    assert same == [True] * 4 + [False] * 4  # critic, maker
    assert all(np.isfinite(w).all() for w in after)
    assert int(guarded.critic_optimizer.iterations.numpy()) == 1
    assert int(guarded.maker_optimizer.iterations.numpy()) == 2
    fit(alone, x)
    assert not all(np.isfinite(w).all() for w in weights_of(alone))


def test_each_update_is_bounded_by_itself():
    x = digits(BATCH)[0]
    model = gan()
    model.maker_optimizer = keras.optimizers.SGD(RATE)
    before, bound = weights_of(model), 0.01
    monitor = gr.GradientMonitor()
    fit(model, x, monitor, gr.GradientGuard(clipping=gr.clipping.by_global_norm(bound)))
    change = [a.astype(np.float64) - b for a, b in zip(weights_of(model), before, strict=True)]
    for part in (change[:4], change[4:]):
        assert np.sqrt(sum(np.sum(np.square(c)) for c in part)) == pytest.approx(RATE * bound, rel=1e-3)
    assert monitor.trace.gradient_norm[0] > bound


@pytest.mark.parametrize("kind", [dict, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (list, tuple))])
def test_optimizers_in_a_list_or_dict_are_found(kind):
    class Held(Gan):
        def compile(self, **how):
            super().compile(**how)
            pair = {"critic": self.critic_optimizer, "maker": self.maker_optimizer}
            del self.critic_optimizer, self.maker_optimizer
            self.of_nets = pair if kind is dict else kind(pair.values())

        def train_step(self, real):
            critic, maker = self.of_nets.values() if kind is dict else self.of_nets
            noise = real[:, :LATENT] - 0.5
            with tf.GradientTape(persistent=True) as tape:
                loss = tf.reduce_mean(self.critic(self.maker(noise))) + tf.reduce_mean(self.critic(real))
            for optimizer, part in ((critic, self.critic), (maker, self.maker)):
                optimizer.apply(tape.gradient(loss, part.trainable_weights), part.trainable_weights)
            return {"loss": loss}

    keras.utils.set_random_seed(1)
    model, guard, x = Held(), gr.GradientGuard(), digits(2 * BATCH)[0]
    model.compile()
    x[BATCH + 3, 7] = np.nan
    fit(model, x, guard)
    assert all(np.isfinite(w).all() for w in weights_of(model))
    assert len(guard.trace.layers) == 4
