"""Penalties on inputs against finite differences in float64, and in train steps of every precision."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.regularizers import (
    InputGradientPenalty,
    Penalty,
    R1Penalty,
    WassersteinPenalty,
    interpolate,
    per_sample_gradient_norms,
)

layers = keras.layers
PENALTIES = [InputGradientPenalty(0.3), WassersteinPenalty(2.0, 0.5), R1Penalty(3.0)]


def critic(dtype="float64"):
    return keras.Sequential(
        [keras.Input((4,), dtype=dtype), layers.Dense(6, "tanh", dtype=dtype), layers.Dense(1, dtype=dtype)]
    )


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    return random.normal(size=(5, 4)), random.normal(size=(5, 1))


def loss_of(model, y):
    return lambda x: tf.reduce_mean(tf.square(model(x) - y))


def numeric_input_gradient(function, x, h=1e-5):
    """Return d(sum of function)/dx by central differences, entry by entry."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = h
        gradient[place] = (function(x + step).sum() - function(x - step).sum()) / (2 * h)
    return gradient


def numeric_term(penalty, model, x, y):
    if isinstance(penalty, InputGradientPenalty):
        losses = numeric_input_gradient(lambda x: np.square(model(x).numpy() - y).mean(-1), x)
        return penalty.weight * np.square(losses).sum(-1).mean()
    norms = np.linalg.norm(numeric_input_gradient(lambda x: model(x).numpy(), x), axis=-1)
    if isinstance(penalty, R1Penalty):
        return penalty.weight / 2 * np.square(norms).mean()
    return penalty.weight * np.square(norms - penalty.target).mean()


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_the_term_against_finite_differences(penalty, batch):
    x, y = batch
    model = critic()
    term = penalty.penalty(model, tf.constant(x), tf.constant(y), loss_of(model, y))
    assert term.dtype == tf.float64
    assert float(term) == pytest.approx(numeric_term(penalty, model, x, y), rel=1e-6)
    assert isinstance(penalty, Penalty)


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_its_gradient_in_the_weights_against_finite_differences(penalty, batch):
    x, y = batch
    model = critic()

    def term():
        return penalty.penalty(model, tf.constant(x), tf.constant(y), loss_of(model, y))

    with tf.GradientTape() as tape:
        value = term()
    gradients = tape.gradient(value, [v.value for v in model.trainable_variables])
    direction = np.random.default_rng(1)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        place, step = np.array(variable), 1e-5 * direction.normal(size=variable.shape)
        variable.assign(place + step)
        above = float(term())
        variable.assign(place - step)
        below = float(term())
        variable.assign(place)
        found = 0.0 if gradient is None else float(np.sum(gradient * step))
        assert found == pytest.approx((above - below) / 2, rel=1e-5, abs=1e-14)


def test_several_inputs_of_which_one_is_tokens(batch):
    x, _ = batch
    random = np.random.default_rng(2)
    inputs = {"a": x, "b": random.normal(size=(5, 3, 2)), "tokens": np.arange(5)}

    def function(parts):
        return tf.reduce_sum(parts["a"] ** 3, -1) + tf.reduce_sum(parts["b"] ** 2, [1, 2])

    expected = np.sqrt(np.sum(9 * x**4, -1) + np.sum(4 * inputs["b"] ** 2, (1, 2)))
    np.testing.assert_allclose(per_sample_gradient_norms(function, inputs), expected, rtol=1e-12)


def test_the_root_at_zero_has_a_gradient():
    weight = tf.Variable(0.0)
    with tf.GradientTape() as tape:
        norms = per_sample_gradient_norms(lambda x: weight * tf.reduce_sum(x, -1), tf.ones((3, 2)))
        value = tf.reduce_sum(norms)
    assert float(value) == 0 and float(tape.gradient(value, weight)) == 0


def test_points_between_real_and_fake():
    real, fake = np.zeros((300, 2, 2), np.float32), np.ones((300, 2, 2), np.float32)
    generator = keras.random.SeedGenerator(1)
    mixed = interpolate(real, fake, seed=generator).numpy()
    assert np.all(mixed == mixed[:, :1, :1])  # one point for a sample
    assert mixed.min() >= 0 and mixed.max() <= 1 and mixed[:, 0, 0].std() == pytest.approx(12**-0.5, rel=0.1)
    assert not np.allclose(interpolate(real, fake, seed=generator), mixed)
    assert set(interpolate({"a": real}, {"a": fake})) == {"a"}


class Penalized(keras.Model):
    """The least train step that a penalty needs: one outer tape, the loss scale last."""

    def __init__(self, net, penalty):
        super().__init__()
        self.net, self.term = net, penalty

    def call(self, x):  # takes no `training`: as many subclassed models do
        return self.net(x)

    def train_step(self, data):
        x, y = data

        def compute_loss(inputs):
            return self.compute_loss(inputs, y, self(inputs))

        with tf.GradientTape() as tape:
            loss = compute_loss(x) + self.term.penalty(self, x, y, compute_loss)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


@pytest.mark.parametrize(("policy", "jit"), [("float32", False), ("mixed_float16", True)])
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_it_trains_compiled_and_in_half_precision(penalty, policy, jit, batch):
    x, y = (part.astype(np.float32) for part in batch)
    net = keras.Sequential([layers.Dense(6, "tanh", dtype=policy), layers.Dense(1, dtype=policy)])
    model = Penalized(net, penalty)
    optimizer = keras.optimizers.SGD(0.01)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    model.compile(optimizer, loss="mse", jit_compile=jit)
    model(x)
    reference = net.get_weights()
    model.fit(x, y, batch_size=5, epochs=1, verbose=0)
    # the same step in float32, outside of any graph
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(6, "tanh"), layers.Dense(1)])
    plain.set_weights(reference)
    with tf.GradientTape() as tape:
        loss = loss_of(plain, y)(x) + penalty.penalty(plain, x, y, loss_of(plain, y))
    gradients = tape.gradient(loss, [v.value for v in plain.trainable_variables])
    tolerance = dict(rtol=1e-4, atol=1e-6) if policy == "float32" else dict(rtol=0.05, atol=3e-4)
    for before, after, gradient in zip(reference, net.get_weights(), gradients, strict=True):
        step = np.zeros_like(before) if gradient is None else -0.01 * gradient
        np.testing.assert_allclose(after, before + step, **tolerance)


def test_the_penalty_does_what_it_is_for(batch):
    x, y = batch
    slopes = []
    for penalty in (R1Penalty(1e-9), R1Penalty(1.0)):
        keras.utils.set_random_seed(0)
        net = critic("float32")
        model = Penalized(net, penalty)
        model.compile(keras.optimizers.Adam(0.05), loss="mse")
        many, targets = np.tile(x, (40, 1)), np.tile(5 * y, (40, 1))
        model.fit(many.astype("float32"), targets.astype("float32"), batch_size=5, shuffle=False, verbose=0)
        slopes.append(float(tf.reduce_mean(per_sample_gradient_norms(net, x.astype("float32")))))
    assert slopes[1] < 0.5 * slopes[0]


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_configs(penalty):
    config = keras.saving.serialize_keras_object(penalty)
    assert keras.saving.deserialize_keras_object(config) == penalty
    for wrong in (0, -1, float("nan"), "1", True):
        with pytest.raises(ValueError, match="`weight` must be a number above 0"):
            type(penalty)(wrong)


def test_refusals():
    with pytest.raises(ValueError, match=r"one output for each sample.*InputGradientPenalty"):
        R1Penalty().penalty(keras.Sequential([layers.Dense(3)]), tf.ones((2, 4)))
    with pytest.raises(ValueError, match=r"embedding.*int32"):
        per_sample_gradient_norms(lambda x: x, tf.constant([1, 2]))
    with pytest.raises(ValueError, match="does not depend"):
        per_sample_gradient_norms(lambda x: tf.ones(2), tf.constant([1.0, 2.0]))
