"""What a net does to a signal, against plain numpy; how large its weights are; how its activations answer."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from gradrecipes.probes.signal import activation_response, signal, weight_scales

layers = keras.layers
X = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 64)


def net(*hidden, head=3):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), *hidden, layers.Dense(head, name="head")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_outputs_and_gradients_are_those_of_numpy():
    model = net(layers.Dense(7, activation="relu", name="first"))
    read = {layer.name: layer for layer in signal(model, (X, Y)).layers}
    (kernel, bias), (head, head_bias) = (layer.get_weights() for layer in model.layers)
    hidden = np.maximum(X.astype(float) @ kernel + bias, 0.0)
    logits = hidden @ head + head_bias
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gradient = (shares - np.eye(3)[Y]) / len(Y)
    assert read["first"].input_rms == pytest.approx(np.sqrt(np.mean(X.astype(float) ** 2)), rel=1e-5)
    assert read["first"].output_rms == pytest.approx(np.sqrt(np.mean(hidden**2)), rel=1e-4)
    assert read["first"].zero_share == pytest.approx(np.mean(hidden == 0))
    assert read["head"].output_gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    assert read["first"].output_gradient_norm == pytest.approx(np.linalg.norm(gradient @ head.T), rel=1e-4)


def test_dead_and_saturated_shares():
    dead = layers.Dense(8, activation="relu", bias_initializer=keras.initializers.Constant(-50.0))
    full = layers.Dense(8, activation="tanh", kernel_initializer=keras.initializers.RandomNormal(stddev=30.0))
    assert signal(net(dead), (X, Y)).layers[0].dead_share == 1.0
    assert signal(net(full), (X, Y)).layers[0].saturated_share > 0.9
    sound = signal(net(layers.Dense(8, activation="relu"), layers.Dense(8, activation="tanh")), (X, Y)).layers
    assert sound[0].dead_share < 0.3 and sound[1].saturated_share < 0.1


def test_the_model_is_left_as_it_was():
    model = net(layers.BatchNormalization(), layers.Dropout(0.5))
    before = [np.array(variable) for variable in model.variables]
    signal(model, (X, Y))
    assert all(np.array_equal(a, np.array(b)) for a, b in zip(before, model.variables, strict=True))


def test_a_model_that_cannot_be_called_is_told():
    class Odd(keras.Model):
        def call(self, x):
            raise ValueError("not like this")

    odd = Odd()
    odd.compile("sgd", "mse")
    found = signal(odd, (X, Y))
    assert "not like this" in found.error and found.layers == ()


# -- weights -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("initializer", ["glorot_uniform", "he_normal", "lecun_normal", "orthogonal"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "selu", None])
def test_no_usual_initializer_is_out_of_its_bounds(initializer, activation):
    (kernel,) = (weight for weight in weight_scales(net_of(200, activation, initializer)) if weight.shape[0] == 300)
    assert kernel.least / 1.25 < kernel.rms < 1.5 * kernel.most  # He under tanh is sqrt(2) too large


def net_of(units, activation, initializer):
    keras.utils.set_random_seed(0)
    dense = layers.Dense(units, activation=activation, kernel_initializer=initializer)
    return keras.Sequential([keras.Input((300,)), dense])


def test_roles_and_fans():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8)(inputs)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.Conv1D(5, 3)(x)
    model = keras.Model(inputs, layers.GRU(4)(x))
    read = weight_scales(model)
    roles = {weight.path.rsplit("/", 1)[-1]: weight.role for weight in read}
    assert roles["embeddings"] == "embedding" and roles["recurrent_kernel"] == "recurrent"
    (convolution,) = (weight for weight in read if weight.kind == "Conv1D" and weight.role == "kernel")
    assert (convolution.fan_in, convolution.fan_out) == (24, 15)
    queries = [weight for weight in read if weight.kind == "EinsumDense" and weight.role == "kernel"]
    assert {(weight.fan_in, weight.fan_out) for weight in queries} == {(8, 8)}
    assert len({weight.path for weight in read}) == len(model.trainable_variables)


# -- activations ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("activation", "exponent", "gain"),
    [
        ("relu", 1.0, math.sqrt(0.5)),
        ("tanh", math.log10(0.9598 / 0.6279), 0.6279),
        (keras.ops.square, 2.0, math.sqrt(3.0)),
        ("gelu", math.log10(7.07 / 0.652), 0.652),
    ],
)
def test_activations_answer_as_their_moments_say(activation, exponent, gain):
    layer = layers.Dense(4, activation=activation)
    found = activation_response(layer)
    assert found == pytest.approx((exponent, gain), rel=0.02, abs=0.02)


def test_exponentials_have_no_exponent_that_is_finite_or_small():
    assert activation_response(layers.Dense(4, activation="exponential"))[0] > 5.0
    assert activation_response(layers.Dense(4)) == (None, None)
    assert activation_response(layers.LeakyReLU(negative_slope=2.0))[1] == pytest.approx(math.sqrt(2.5), rel=0.02)
