"""Where a loss is no number: Keras' own are safe at every end, naive ones are not, and what a net puts out is read."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.probes.loss import loss_probe
from gradrecipes.training.description.describe import describe_model

layers, ops = keras.layers, keras.ops
X = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
LABELS = np.arange(32) % 3
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]


def net(*behind, units=3, activation=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8,)), layers.Dense(units, activation=activation), *behind])


def probe(model, y, loss, x=X):
    model.compile(loss=loss)
    found = loss_probe(model, (x, y), describe_model(model))
    json.dumps(found.to_json(), allow_nan=False)
    assert found.error is None
    return found


def bad(found):
    return {point.at for point in found.points if point.value != "finite" or point.gradient != "finite"}


OWN = ["categorical_crossentropy", "binary_crossentropy", "kl_divergence", "poisson", "mse", "mae", "mape", "msle"]
OWN += ["huber", "log_cosh", "cosine_similarity", "hinge", "squared_hinge", "categorical_hinge", "dice", "tversky"]
OWN += ["categorical_focal_crossentropy", "binary_focal_crossentropy"]


@pytest.mark.parametrize("loss", OWN)
def test_losses_of_keras_are_safe_wherever_a_softmax_gets(loss):
    found = probe(net(activation="softmax"), ONE_HOT, loss)
    assert {point.at for point in found.points} == {"outputs", "one class", "targets"}
    assert bad(found) == set()


@pytest.mark.parametrize("loss", ["binary_crossentropy", "mse", "poisson", "kl_divergence", "dice"])
def test_losses_of_keras_are_safe_wherever_a_sigmoid_gets(loss):
    assert bad(probe(net(activation="sigmoid"), ONE_HOT, loss)) == set()


def own_binary(y_true, y_pred):
    return -ops.mean(y_true * ops.log(y_pred) + (1 - y_true) * ops.log(1 - y_pred), axis=-1)


def own_safe_binary(y_true, y_pred):
    return own_binary(y_true, ops.clip(y_pred, 1e-7, 1 - 1e-7))


def own_categorical(y_true, y_pred):
    return -ops.sum(y_true * ops.log(y_pred), axis=-1)


def own_distance(y_true, y_pred):
    return ops.sqrt(ops.mean(ops.square(y_true - y_pred), axis=-1))


def own_percentage(y_true, y_pred):
    return ops.mean(ops.abs((y_true - y_pred) / y_true), axis=-1)


def own_log(y_true, y_pred):
    return ops.mean(ops.square(ops.log(y_true) - ops.log(y_pred)), axis=-1)


@pytest.mark.parametrize(
    ("loss", "activation", "y", "where"),
    [
        (own_binary, "sigmoid", ONE_HOT, {"0", "1", "targets"}),
        (own_safe_binary, "sigmoid", ONE_HOT, set()),
        (own_categorical, "softmax", ONE_HOT, {"one class", "targets"}),
        (own_distance, None, X[:, :3], {"targets"}),
        (own_distance, "relu", np.zeros_like(ONE_HOT), {"0", "targets"}),
        (own_percentage, None, np.zeros_like(ONE_HOT), {"outputs", "targets"}),
        (own_log, None, 1.0 + ONE_HOT, {"outputs"}),
    ],
)
def test_naive_losses_are_told_where_they_break(loss, activation, y, where):
    found = probe(net(activation=activation), y, loss)
    if activation == "relu":  # some outputs are 0 already
        where = where | {"outputs"} if (np.asarray(found.outputs[0].min) == 0) else where
    assert bad(found) - {"outputs"} == where - {"outputs"}
    assert ("outputs" in bad(found)) == ("outputs" in where) or activation == "relu"


def test_samples_are_named():
    y = np.ones((32, 3), np.float32)
    y[[4, 9]] = 0.0
    found = probe(net(), y, own_percentage)
    assert next(point for point in found.points if point.at == "outputs").samples == (4, 9)


def test_keras_finds_the_logits_behind_a_softmax_unless_they_were_cast():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert probe(net(activation="softmax"), LABELS, loss).outputs[0].logits_seen is True
    assert probe(net(layers.Softmax(), activation="softmax"), LABELS, loss).outputs[0].logits_seen is True
    assert probe(net(layers.Lambda(lambda x: tf.nn.softmax(x) * 1.0)), LABELS, loss).outputs[0].logits_seen is False
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = net(activation="softmax")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert probe(model, LABELS, loss).outputs[0].logits_seen is False
    assert probe(net(activation="softmax"), LABELS, "sparse_categorical_crossentropy").outputs[0].logits_seen is None


def test_what_the_net_puts_out():
    model = net(activation="softmax")
    output = probe(model, ONE_HOT, "mse").outputs[0]
    values = np.asarray(model(X))
    assert output.shape == output.target_shape == (3,) and output.sums_to_one == 1.0
    assert (output.min, output.max) == (pytest.approx(values.min()), pytest.approx(values.max()))
    assert output.rms == pytest.approx(np.sqrt(np.mean(values**2)), rel=1e-5)
    assert probe(net(activation="sigmoid"), ONE_HOT, "mse").outputs[0].sums_to_one < 0.1
    assert probe(net(units=1), X[:, 0], "mse").outputs[0].target_shape == ()


def test_several_outputs_are_told_apart():
    inputs = keras.Input((8,))
    ends = [
        layers.Dense(1, activation="sigmoid", name="a")(inputs),
        layers.Dense(3, activation="softmax", name="b")(inputs),
    ]
    model = keras.Model(inputs, ends)
    found = probe(model, (X[:, :1] > 0, ONE_HOT), ["binary_crossentropy", own_categorical])
    assert {(point.output, point.at) for point in found.points if point.value != "finite"} == {
        (1, "one class"),
        (1, "targets"),
    }


def test_the_model_is_left_as_it_was_and_trouble_is_told():
    model = net(layers.Dropout(0.5), layers.BatchNormalization())
    model.compile(loss="mse")
    before = [np.array(variable) for variable in model.variables]
    loss_probe(model, (X, ONE_HOT), describe_model(model))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)
    assert loss_probe(model, (X[:, :3], ONE_HOT), describe_model(model)).error.startswith("ValueError")
    assert loss_probe(model, (X,), describe_model(model)).points == ()
    model.compile(loss=None, optimizer="sgd")
    assert loss_probe(model, (X, ONE_HOT), describe_model(model)).outputs[0].shape == (3,)


class Squared(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.square(y_true - y_pred)


def test_a_loss_that_compares_all_with_all_is_found():
    y = X[:, 0]
    assert probe(net(units=1), y, Squared()).outputs[0].pairs_samples is False
    assert probe(net(units=1), y, lambda a, b: ops.square(a - b)).outputs[0].pairs_samples is True
    assert probe(net(units=1), y[:, None], Squared()).outputs[0].pairs_samples is True
    assert probe(net(units=1), y, "mse").outputs[0].pairs_samples is None


def test_keras_takes_the_logits_behind_a_sigmoid_for_those_of_a_softmax():
    assert probe(net(activation="sigmoid"), ONE_HOT, "categorical_crossentropy").outputs[0].logits_seen is True


def by_tensorflow(y_true, y_pred):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y_true, tf.int32), y_pred)


def smooth(y_true, y_pred):
    return ops.mean(ops.softplus(ops.abs(y_true - y_pred)), axis=-1)


@pytest.mark.parametrize(
    ("loss", "activation", "y", "like"),
    [
        (by_tensorflow, "softmax", LABELS, ("sparse_categorical_crossentropy", True)),
        (own_categorical, "softmax", ONE_HOT, ("categorical_crossentropy", False)),
        (own_safe_binary, "sigmoid", ONE_HOT, ("binary_crossentropy", False)),
        (
            lambda a, b: keras.losses.binary_crossentropy(a, b, from_logits=True),
            None,
            ONE_HOT,
            ("binary_crossentropy", True),
        ),
        (lambda a, b: ops.mean(ops.square(a - b), axis=-1), None, X[:, :3], ("mean_squared_error", None)),
        (smooth, None, X[:, :3], None),
        (own_distance, None, X[:, :3], None),
    ],
)
def test_a_loss_is_recognized_by_what_it_does(loss, activation, y, like):
    found = probe(net(activation=activation), y, loss).outputs[0].acts_like
    assert (found and (found.loss, found.from_logits)) == like


def own_difference(y_true, y_pred):
    return ops.mean(y_true - y_pred)


def own_square(y_true, y_pred):
    return 3.0 * ops.mean(ops.square(y_true - y_pred))


def test_a_loss_of_the_users_is_followed_far_out():
    at = probe(net(), ONE_HOT, own_difference).outputs[0].far_losses
    assert at[1] < at[0] and at[2] / at[1] == pytest.approx(100.0, rel=0.1) and at[3] < 10.0 * at[2]
    assert probe(net(), ONE_HOT, own_square).outputs[0].far_losses[3] > 0.0


def test_a_distance_is_not_followed_below_0_nor_a_cosine_beyond_1():
    distance = layers.Lambda(lambda x: 10.0 * tf.sqrt(tf.square(x) + 1e-6))
    assert probe(net(distance), ONE_HOT, lambda y, p: ops.mean(p)).outputs[0].far_losses == (
        pytest.approx(float(ops.mean(net(distance)(X))), rel=1e-3),
        *(0.0,) * 3,
    )
    cosine = layers.Lambda(lambda x: tf.math.l2_normalize(x, axis=-1))
    assert probe(net(cosine), ONE_HOT, own_difference).outputs[0].far_losses is None


def test_outputs_that_sum_to_1_over_another_axis():
    assert probe(net(layers.Softmax(axis=0)), ONE_HOT, "mse").outputs[0].sums_over == 0
    assert probe(net(layers.Softmax()), ONE_HOT, "mse").outputs[0].sums_over is None
    assert probe(net(), ONE_HOT, "mse").outputs[0].sums_over is None


def test_a_loss_is_not_followed_where_something_holds_the_answers():
    held = layers.Dense(3, kernel_constraint="max_norm")
    assert probe(net(held), ONE_HOT, own_difference).outputs[0].far_losses is None
    assert probe(net(activation="sigmoid"), ONE_HOT, own_difference).outputs[0].far_losses is None
    assert probe(net(), ONE_HOT, "mse").outputs[0].far_losses is None


def test_a_hard_decision_in_the_loss_is_flat_and_a_smooth_one_is_not():
    labels = (2.0 * (X[:, :1] > 0) - 1.0).astype(np.float32)
    for side, flat in ((ops.sign, True), (ops.tanh, False)):
        (read,) = probe(net(units=1), labels, lambda y, p, side=side: 1.0 - y * side(p)).outputs
        assert read.flat == flat
    assert not probe(net(units=1), labels, "mse").outputs[0].flat


def test_a_loss_of_distances_between_equal_predictions_is_not_flat():
    model = net(units=3)
    model.layers[0].kernel.assign(np.zeros((8, 3)))

    def spread(y_true, y_pred):
        return 1.0 - ops.square(y_pred[:, 0] - y_pred[:, 1])

    assert not probe(model, ONE_HOT, spread).outputs[0].flat
