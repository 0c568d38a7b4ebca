"""A short trial: the steps of a plain fit, a record of them, variations from one start, and a model left as it was."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.probes.signal import weight_scales
from gradrecipes.training.building import build_on
from gradrecipes.training.trial import Trial
from gradrecipes.training.trial_data import trial_data

layers = keras.layers
X = np.random.default_rng(0).normal(size=(96, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def net(optimizer="adam", **compiled):
    keras.utils.set_random_seed(1)
    hidden = [layers.Dense(8, activation="relu"), layers.BatchNormalization(), layers.Dropout(0.2)]
    model = keras.Sequential([keras.Input((6,)), *hidden, layers.Dense(2, activation="softmax")])
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **compiled)
    return model


def state_of(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [np.array(variable) for variable in variables]


def assert_same(one, other):
    assert len(one) == len(other)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def batches():
    return trial_data(X, Y, batch_size=16).cut(6)


def test_the_trial_takes_the_steps_of_the_users_own_train_step():
    ours, plain = net(), net()
    plain.optimizer.build(plain.trainable_variables)
    with Trial(ours, batches(), steps=12) as trial:
        run = trial.recorded(12)
        weights = ours.get_weights()
    losses = []
    for step in range(12):
        plain.reset_metrics()
        losses.append(plain.train_on_batch(*batches()[step % 6])[0])
    np.testing.assert_allclose(run.loss, losses, rtol=1e-5)
    for one, other in zip(weights, plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert run.broken is None and len(trial.trace) == 12
    assert trial.trace.samples["step"].tolist() == [0, 1, 2]
    assert np.isfinite(trial.trace.samples["update_ratio"][0]).any()


class LateLayer(keras.Model):
    """Calls a layer in its train step that its call leaves out, as a variational autoencoder does."""

    def __init__(self):
        super().__init__()
        self.first, self.late = layers.Dense(4), layers.Dense(4)

    def call(self, x):
        return self.first(x)

    def train_step(self, data):
        x, _ = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.first(x)) + tf.square(self.late(x) - 1.0))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def test_weights_that_only_the_train_step_creates_begin_anew_too():
    keras.utils.set_random_seed(2)
    model = LateLayer()
    model.compile(keras.optimizers.SGD(0.1))
    build_on(model, batches()[0])
    with Trial(model, batches(), steps=12) as trial:
        recorded = trial.recorded(12)
        again = trial.varied(12)
        late = model.late.get_weights()
    assert recorded.logs["loss"][-1] < 0.9 * recorded.logs["loss"][0]
    np.testing.assert_allclose(again.logs["loss"], recorded.logs["loss"], rtol=1e-6)
    assert not np.array_equal(late[0], model.late.get_weights()[0])
    np.testing.assert_array_equal(model.late.get_weights()[1], np.zeros(4))


def test_everything_is_put_back_whatever_happens_inside():
    model = net()
    model.fit(X, Y, verbose=0, batch_size=16)
    before, function = state_of(model), model.train_function
    with pytest.raises(KeyboardInterrupt), Trial(model, batches(), steps=8) as trial:
        trial.recorded(4)
        raise KeyboardInterrupt
    assert_same(state_of(model), before)
    assert model.train_function is function and model.steps_per_execution == 1


def test_every_variation_begins_at_the_same_start():
    with Trial(net(), batches(), steps=12) as trial:
        first = trial.recorded(6)
        again, faster = trial.varied(6), trial.varied(6, rate=10.0)
        third = trial.varied(6)
    np.testing.assert_allclose(again.loss, first.loss, rtol=1e-5)
    np.testing.assert_allclose(third.loss, first.loss, rtol=1e-5)
    assert faster.loss[0] == pytest.approx(first.loss[0], rel=1e-5)
    assert abs(faster.loss[-1] - first.loss[-1]) > 1e-3


def test_a_run_goes_on_from_its_end_at_other_rates_and_can_be_taken_back():
    with Trial(net(), batches(), steps=6) as trial:
        trial.recorded(6)
        saved = trial.save()
        as_before, still = trial.continued([1.0] * 14), trial.continued([0.0] * 3)
        end = state_of(trial.model)
        trial.load(saved)
        again = trial.continued([1.0] * 14)
        assert len(as_before.loss) == 14 and len(still.loss) == 3 and as_before.broken is None
        np.testing.assert_allclose(again.loss, as_before.loss, rtol=1e-5)
        assert np.array_equal(end[0], state_of(trial.model)[0])  # the rate of 0 moved no kernel
    with Trial(net(), batches(), steps=20) as trial:
        whole = trial.recorded(20)
    np.testing.assert_allclose(as_before.loss, whole.loss[6:], rtol=1e-5)


def test_the_rate_of_a_schedule_is_multiplied_too():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    with Trial(net(keras.optimizers.SGD(schedule)), batches(), steps=6) as trial:
        trial.recorded(3)
        still = trial.varied(3, rate=0.0)
        weights = trial.model.get_weights()[0]
        trial.restart()
        assert np.array_equal(weights, trial.model.get_weights()[0]) and len(still.loss) == 3


def test_weights_and_an_empty_memory_can_be_lent():
    model = net()
    model.fit(X, Y, verbose=0, batch_size=16)
    (kernel, *_) = (weight for weight in weight_scales(model) if weight.role == "kernel")
    with Trial(model, batches(), steps=4) as trial:
        trial.recorded(2)
        other = trial.varied(2, weights={kernel.path: np.zeros(kernel.shape, "float32")})
        trial.varied(1, fresh_slots=True)
        assert int(model.optimizer.iterations) == 1
    assert np.isfinite(other.loss).all()


def test_what_breaks_is_examined_with_the_weights_before_it():
    bad = X.copy()
    bad[40, 2] = np.nan
    model, order = net(), trial_data(bad, Y, batch_size=16)
    held = order.cut(6)
    place = next(number for number, (x, _) in enumerate(held) if np.isnan(np.asarray(x)).any())
    before = model.get_weights()
    with Trial(model, held, steps=12) as trial:
        run = trial.recorded(12)
        assert np.isfinite(model.get_weights()[0]).all()
    assert (run.broken, trial.broken_batch) == (place, place)
    assert trial.autopsy.first.kind.value == "input" and trial.autopsy.first.entries[0][1] == 2
    assert_same(model.get_weights(), before)


def test_a_loss_scaler_looks_for_its_scale_in_peace():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with Trial(net(), batches(), steps=20) as trial:
            run = trial.recorded(20)
    finally:
        keras.config.set_dtype_policy(before)
    assert run.broken is None and len(run.loss) == 20


def test_a_net_that_its_train_step_calls_on_more_than_the_data_is_built_by_that():
    class WithTime(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.Sequential([layers.Dense(1)])

        def call(self, x):
            return self.inner(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(tf.concat([x, x[:, :1]], axis=1)) - tf.cast(y, tf.float32)))
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {"loss": loss}

    model = WithTime()
    model.compile("sgd")
    with warnings.catch_warnings(action="ignore"):
        model.build((None, X.shape[1]))  # Keras calls this built
    build_on(model, (tf.constant(X[:4]), tf.constant(Y[:4])))
    assert model.inner.weights[0].shape == (X.shape[1] + 1, 1)


def test_a_model_is_built_on_a_batch_and_a_gan_need_not_be():
    model = keras.Sequential([layers.Dense(2)])
    build_on(model, (X[:4], Y[:4]))
    assert model.built

    class Odd(keras.Model):
        def call(self, noise):
            raise ValueError("this wants noise, not images")

        def train_step(self, data):
            return {}

    build_on(Odd(), (X[:4],))
