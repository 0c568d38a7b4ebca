"""The penalty on parameters against finite differences in float64; weights return to the bit."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.regularizers import GradientCombination, ParameterGradientPenalty, penalized_gradients

layers = keras.layers


def net(dtype="float64"):
    return keras.Sequential([keras.Input((3,), dtype=dtype), layers.Dense(4, "tanh", dtype=dtype), layers.Dense(1)])


def loss_and_gradients(model, x, y, scale=1.0):
    def compute():
        with tf.GradientTape() as tape:
            loss = scale * tf.reduce_mean(tf.square(tf.cast(model(x), y.dtype) - y))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    return compute


@pytest.fixture
def double():
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def data():
    random = np.random.default_rng(0)
    return random.normal(size=(20, 3)), random.normal(size=(20, 1))


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_against_finite_differences_of_the_penalized_loss(double, scale):
    x, y = data()
    model = net()
    compute = loss_and_gradients(model, x, y, scale)
    radius, share = 1e-4, 0.7  # L + share * radius * norm of the gradient, to first order in the radius
    found = penalized_gradients(model.trainable_variables, compute, radius=radius, share=share)
    plain = compute()

    def penalty():
        return np.sqrt(sum(float(tf.reduce_sum(g / scale * g / scale)) for g in compute()))

    for variable, gradient, bare in zip(model.trainable_variables, found, plain, strict=True):
        place = np.array(variable)
        numeric = np.zeros_like(place)
        for entry in np.ndindex(place.shape):
            step = np.zeros_like(place)
            step[entry] = 1e-5
            variable.assign(place + step)
            above = penalty()
            variable.assign(place - step)
            numeric[entry] = (above - penalty()) / 2e-5
        variable.assign(place)
        np.testing.assert_allclose((gradient - bare) / scale / (share * radius), numeric, rtol=5e-3, atol=5e-4)


def test_the_rule_as_the_paper_writes_it(double):
    x, y = data()
    model = net()
    compute = loss_and_gradients(model, x, y)
    before = [np.array(v) for v in model.trainable_variables]
    found = ParameterGradientPenalty(0.3, 0.6).gradients(model.trainable_variables, compute)
    for variable, place in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, place)  # to the bit
    first = [g.numpy() for g in compute()]
    norm = np.sqrt(sum(np.square(g).sum() for g in first))
    for variable, gradient in zip(model.trainable_variables, first, strict=True):
        variable.assign(variable + 0.3 * gradient / norm)
    for gradient, here, there in zip(found, first, compute(), strict=True):
        np.testing.assert_allclose(gradient, 0.4 * here + 0.6 * there, rtol=1e-12)


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_a_gradient_that_cannot_be_squared(size):
    weight = tf.Variable([1.0, 1.0])
    seen = []

    def compute():
        seen.append(weight.numpy())
        return [tf.constant([3.0, 4.0]) * size]

    found = penalized_gradients([weight], compute, radius=1.0, share=0.5)[0]
    np.testing.assert_allclose(seen[1], [1.6, 1.8], rtol=1e-6)
    np.testing.assert_allclose(found / size, [3.0, 4.0], rtol=1e-6)


def test_a_gradient_of_zero_and_one_that_is_not_finite():
    weight = tf.Variable([1.0, 1.0])
    zero = penalized_gradients([weight], lambda: [tf.zeros(2)], radius=1.0, share=0.5)[0]
    np.testing.assert_array_equal(zero, 0)
    for bad in (np.nan, np.inf):
        found = penalized_gradients([weight], lambda bad=bad: [tf.constant([bad, 1.0])], radius=1.0, share=0.5)[0]
        assert not np.isfinite(found).all()
        np.testing.assert_array_equal(weight, [1, 1])


def test_sparse_and_missing_gradients():
    table, unused = tf.Variable(tf.ones((4, 2))), tf.Variable(1.0)

    def compute():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, [1, 1, 3]) ** 2)
        return tape.gradient(loss, [table, unused])

    sparse, missing = penalized_gradients([table, unused], compute, radius=0.1, share=1.0)
    assert missing is None
    norm = np.sqrt(2 * 4**2 + 2 * 2**2)  # the slices of row 1 added before the norm is taken
    np.testing.assert_allclose(sparse[:, 0], [0, 4 * (1 + 0.4 / norm), 0, 2 * (1 + 0.2 / norm)], rtol=1e-6)
    assert penalized_gradients([unused], lambda: [None], radius=1, share=1) == [None]


class Flat(keras.Model):
    def __init__(self, net, rule):
        super().__init__()
        self.net, self.rule = net, rule

    def call(self, x):
        return self.net(x)

    def train_step(self, data):
        x, y = data

        def compute():
            with tf.GradientTape() as tape:
                loss = self.optimizer.scale_loss(self.compute_loss(x, y, self(x)))
            return tape.gradient(loss, self.trainable_variables)

        self.optimizer.apply(self.rule.gradients(self.trainable_variables, compute), self.trainable_variables)
        return {"loss": tf.zeros(())}


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_in_a_compiled_train_step(policy, jit):
    x, y = (part.astype(np.float32) for part in data())
    inner = keras.Sequential([layers.Dense(4, "tanh", dtype=policy), layers.Dense(1, dtype="float32")])
    model = Flat(inner, ParameterGradientPenalty(0.2, 0.5))
    optimizer = keras.optimizers.SGD(0.1)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    model.compile(optimizer, loss="mse", jit_compile=jit)
    model(x)
    before = inner.get_weights()
    model.fit(x, y, batch_size=20, epochs=1, verbose=0)
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(1)])
    plain.set_weights(before)
    steps = model.rule.gradients(plain.trainable_variables, loss_and_gradients(plain, x, y))
    tolerance = dict(rtol=1e-5, atol=1e-6) if policy == "float32" else dict(rtol=0.02, atol=1e-3)
    for old, new, step in zip(before, inner.get_weights(), steps, strict=True):
        np.testing.assert_allclose(new, old - 0.1 * step, **tolerance)


def test_config_and_refusals():
    rule = ParameterGradientPenalty(0.1, 0.8)
    assert isinstance(rule, GradientCombination)
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule)) == rule
    with pytest.raises(ValueError, match="radius=0"):
        ParameterGradientPenalty(0)
    with pytest.raises(ValueError, match=r"at most 1.*share=1\.5"):
        ParameterGradientPenalty(share=1.5)
