"""Whether two models are told to be the same program exactly when they are."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from gradrecipes.compat import model_reuse
from gradrecipes.studies.same_program import difference
from tests.training.nets import NETS, compiled, digits, two_dense

layers, schedules = keras.layers, keras.optimizers.schedules
X, Y = digits(32)
METRICS = ("accuracy", lambda: keras.metrics.SparseTopKCategoricalAccuracy(k=3))


def made(make, **how):
    with model_reuse.names_as_in_a_fresh_process():
        model = make(**how)
        model = model if model.compiled else compiled(model, metrics=["accuracy", METRICS[1]()])
    model_reuse.build_whole(model, X, Y)
    return model


def net(
    activation="relu", initializer="glorot_uniform", rate=0.01, clipnorm=None, dropout=0.2, penalty=None, order=(0, 1)
):
    inputs = keras.Input((64,))
    regularizer = keras.regularizers.L2(penalty) if penalty else None
    first = layers.Dense(8, activation, kernel_initializer=initializer, kernel_regularizer=regularizer)(inputs)
    second = layers.Dense(8, activation)(inputs)
    both = [layers.Dropout(dropout)(first), second]
    joined = layers.Subtract()([both[place] for place in order])
    return compiled(keras.Model(inputs, layers.Dense(10)(joined)), keras.optimizers.Adam(rate, clipnorm=clipnorm))


def scheduled(steps):
    return compiled(two_dense(), keras.optimizers.SGD(schedules.CosineDecay(0.1, steps)))


def weighted(weight):
    def loss(y, prediction):
        return weight * keras.losses.sparse_categorical_crossentropy(y, prediction, from_logits=True)

    return compiled(two_dense(), loss=loss)


class Scaled(layers.Layer):
    """Holds a number and an array that the variables do not show."""

    def __init__(self, factor, table):
        super().__init__()
        self.factor, self.table = factor, np.asarray(table, np.float32)

    def call(self, x):
        return x * self.factor + self.table


def scaled(factor=1.0, table=(0.0,)):
    return compiled(keras.Sequential([keras.Input((64,)), Scaled(factor, table), layers.Dense(10)]))


def normalized(samples):
    columns = layers.Normalization()
    columns.adapt(X[:samples])
    return compiled(keras.Sequential([keras.Input((64,)), columns, layers.Dense(10)]))


FIRST_TIER = {"with_state", "functional", "recurrent"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in FIRST_TIER)) for name in NETS if name != "subclassed"],
)
def test_a_model_that_was_trained_and_one_built_anew_are_the_same_program(name):
    trained = made(NETS[name])
    trained.fit(X, Y, verbose=0, validation_data=(X, Y))
    assert difference(trained, made(NETS[name])) is None


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (net, {}, {"rate": 0.1}),
        (net, {}, {"initializer": "he_normal"}),
        (scheduled, {"steps": 10}, {"steps": 10}),
        (weighted, {"weight": 2.0}, {"weight": 2.0}),
        (scaled, {}, {}),
        (normalized, {"samples": 32}, {"samples": 32}),
    ],
)
def test_values_of_variables_and_spent_initializers_do_not_matter(make, one, other):
    assert difference(made(make, **one), made(make, **other)) is None


@pytest.mark.parametrize(
    ("make", "one", "other", "told"),
    [
        (net, {}, {"activation": "tanh"}, "activation"),
        (net, {}, {"clipnorm": 1.0}, "optimizer.clipnorm: None, 1.0|only one of them has it"),
        (net, {}, {"dropout": 0.3}, "rate: 0.2, 0.3"),
        (net, {"penalty": 0.1}, {"penalty": 0.2}, "l2: 0.1, 0.2"),
        (net, {}, {"penalty": 0.2}, "regularizer"),
        (net, {}, {"order": (1, 0)}, ""),
        (scheduled, {"steps": 10}, {"steps": 20}, "decay_steps: 10, 20"),
        (weighted, {"weight": 1.0}, {"weight": 2.0}, "closes over"),
        (scaled, {}, {"factor": 2.0}, "factor: 1.0, 2.0"),
        (scaled, {}, {"table": (1.0,)}, "numbers of an array"),
        (normalized, {"samples": 32}, {"samples": 16}, "numbers of an array"),
    ],
)
def test_whatever_a_trace_may_have_read_does(make, one, other, told):
    found = difference(made(make, **one), made(make, **other))
    assert found is not None
    assert any(part in found for part in told.split("|")), found


def test_what_is_shared_with_what_matters():
    def twice(shared):
        inputs = keras.Input((64,))
        first = layers.Dense(64)
        second = first if shared else layers.Dense(64)
        return compiled(keras.Model(inputs, layers.Dense(10)(second(first(inputs)))))

    assert difference(made(twice, shared=True), made(twice, shared=False)) is not None


def test_what_a_callback_changed_is_seen():
    model = made(net)
    model.layers[2].trainable = False
    assert "trainable" in difference(model, made(net))


def test_numbers_that_python_code_counts_are_seen():
    trained = made(NETS["subclassed"])
    trained.fit(X, Y, verbose=0)
    assert "python_calls" in difference(trained, made(NETS["subclassed"]))


def test_state_outside_of_the_variables_is_found():
    def noisy(draw):
        inputs = keras.Input((64,))
        return compiled(keras.Model(inputs, layers.Dense(10)(layers.Lambda(lambda x: x + draw(x))(inputs))))

    import tensorflow as tf

    def state_of(model):
        model.fit(X, Y, verbose=0)
        known = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
        return model_reuse.hidden_state(model.train_function, known)

    assert state_of(made(net)) is None
    assert "RandomStandardNormal" in state_of(made(noisy, draw=lambda x: tf.random.normal(tf.shape(x))))
    counter = tf.Variable(0.0, name="counter")
    assert "counter" in state_of(made(noisy, draw=lambda x: counter))
    assert model_reuse.hidden_state(None, []) is None


def test_the_private_names_stand_where_they_did():
    with model_reuse.names_as_in_a_fresh_process():
        assert [layers.Dense(1).name for _ in range(2)] == ["dense", "dense_1"]
    before = layers.Dense(1).name
    with model_reuse.names_as_in_a_fresh_process():
        assert layers.Dense(1).name == "dense"
    assert layers.Dense(1).name not in ("dense", before)


def test_the_order_of_an_epoch_is_that_of_fit_and_repeats():
    seen = []
    model = keras.Sequential([keras.Input((64,)), layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    model.train_step = lambda data: seen.append(data[1].numpy()) or {"loss": 0.0}
    keras.utils.set_random_seed(3)
    model.fit(X, np.arange(32), batch_size=8, epochs=2, verbose=0)
    keras.utils.set_random_seed(3)
    order = model_reuse.epoch_in_order(X, np.arange(32), shuffle=True)[1].numpy()
    assert model_reuse.orders_repeat(32)
    assert np.array_equal(np.concatenate(seen), np.tile(order, 2))
    assert np.array_equal(np.sort(order), np.arange(32)) and not np.array_equal(order, np.arange(32))
