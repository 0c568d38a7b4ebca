"""LSUV: unit variance, measured by models that stop before the activation, on architectures of every kind."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from gradrecipes.initializers import lsuv

layers = keras.layers


@pytest.fixture
def x():
    return (5 + 3 * np.random.default_rng(0).normal(size=(128, 64))).astype(np.float32)


class Block(layers.Layer):
    def __init__(self):
        super().__init__()
        self.parts = [layers.Dense(32, activation="swish", name="up"), layers.Dense(64, name="down")]

    def call(self, x):
        return x + self.parts[1](self.parts[0](x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = {"first": Block(), "second": Block()}
        self.recurrent = layers.LSTM(8)
        self.dropout = layers.Dropout(0.5)
        self.out = layers.Dense(3, activation="softmax")

    def call(self, x, training=False):
        x = self.blocks["second"](self.blocks["first"](x))
        x = self.dropout(x, training=training)
        return self.out(self.recurrent(keras.ops.reshape(x, (-1, 8, 8))))


def dense():
    return keras.Sequential(
        [keras.Input((64,)), *(layers.Dense(40, activation="tanh") for _ in range(8)), layers.Dense(1)]
    )


def convolutional():
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.DepthwiseConv2D(3, activation="gelu"),
            layers.Conv2DTranspose(4, 3, activation="elu"),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def residual():
    inputs = keras.Input((64,))
    hidden = inputs
    for _ in range(6):
        hidden = layers.add([hidden, layers.Dense(64)(layers.Dense(32, activation="relu")(hidden))])
    return keras.Model(inputs, layers.Dense(4, activation="sigmoid")(layers.concatenate([hidden, inputs])))


def nested():
    inputs = keras.Input((64,))
    inner = keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(16, activation="relu")])
    rows = layers.Reshape((4, 4))(inner(inputs))
    rows = layers.MultiHeadAttention(2, 4)(rows, rows)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(rows)))


def outputs_before_activation(model, x):
    """Return the output of every layer with a kernel, by calling the model with all activations heard by hand."""
    heard = {}
    for layer in [layer for layer in model._flatten_layers() if hasattr(layer, "kernel")]:
        if isinstance(layer, layers.LSTM) or not hasattr(layer, "activation") or "cell" in layer.name:
            continue
        original = layer.activation

        def hear(z, layer=layer, original=original):
            heard[layer.path] = np.asarray(z, np.float64)
            return original(z)

        layer.activation = hear
    model(x)
    return heard


@pytest.mark.parametrize(
    "make, count",
    [(dense, 9), (convolutional, 4), (residual, 13), (nested, 7), (Subclassed, 5)],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_every_output_has_variance_one(make, count, x):
    model = make()
    result = lsuv(model, x, seed=0)
    assert len(result.layers) == count
    assert result.reached, str(result)
    heard = outputs_before_activation(model, x)
    assert len(heard) == count
    for layer in result.layers:
        assert 0.9 < heard[layer.name].std() < 1.1
        assert heard[layer.name].std() == pytest.approx(layer.std_after, rel=1e-4)


def test_kernels_stay_orthogonal(x):
    model = dense()
    lsuv(model, x, seed=0)
    kernel = np.asarray(model.layers[2].kernel, np.float64)
    gram = kernel.T @ kernel
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(40), atol=1e-5)


def test_what_it_cannot_set_is_named_and_untouched(x):
    model = Subclassed()
    model(x)
    before = [np.array(weight) for weight in model.recurrent.weights]
    result = lsuv(model, x)
    assert [name for name in result.left_alone if "lstm" in name] == list(result.left_alone) != []
    for weight, old in zip(model.recurrent.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert "left alone" in str(result)


def test_a_shared_layer_a_frozen_one_and_an_unbuilt_model(x):
    shared = layers.Dense(64, activation="relu")
    model = keras.Sequential([shared, layers.Dense(64, trainable=False), layers.Dense(2)])
    result = lsuv(model, x, seed=1)
    assert [layer.name.split("/")[-1] for layer in result.layers] == [shared.name, model.layers[2].name]
    inputs = keras.Input((64,))
    twice = keras.Model(inputs, shared(shared(inputs)))
    assert len(lsuv(twice, x).layers) == 1


def test_the_model_is_the_same_otherwise(x):
    model = Subclassed()
    model(x)
    state = [np.array(v) for v in model.non_trainable_variables]
    activations = [layer.activation for layer in model.blocks["first"].parts]
    lsuv(model, x)
    assert [layer.activation for layer in model.blocks["first"].parts] == activations
    for variable, old in zip(model.non_trainable_variables, state, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_seeds_decide(x):
    models = [dense() for _ in range(3)]
    for model, seed in zip(models, (4, 4, 5), strict=True):
        lsuv(model, x, seed=seed)
    first, same, other = (model.layers[0].kernel.numpy() for model in models)
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)
    assert not np.allclose(models[0].layers[1].kernel, models[0].layers[2].kernel)


def test_several_inputs_and_half_precision(x):
    a, b = keras.Input((64,), name="a"), keras.Input((64,), name="b")
    merged = layers.concatenate([layers.Dense(8, dtype="mixed_float16")(a), layers.Dense(8)(b)])
    model = keras.Model({"a": a, "b": b}, layers.Dense(3)(merged))
    result = lsuv(model, {"a": x, "b": 100 * x})
    assert result.reached and len(result.layers) == 3


def test_a_layer_without_a_signal_is_reported(x):
    model = keras.Sequential([keras.Input((64,)), layers.Rescaling(0.0), layers.Dense(4, name="dead")])
    result = lsuv(model, x)
    assert not result.reached and not result.layers[0].reached
    assert "not reached" in str(result)
    assert np.isfinite(model.get_weights()[0]).all()
    assert result.to_dict()["layers"][0]["name"] == result.layers[0].name


def test_refusals(x):
    with pytest.raises(ValueError, match="no layer with a trainable kernel"):
        lsuv(keras.Sequential([keras.Input((64,)), layers.ReLU()]), x)
    with pytest.raises(ValueError, match="tolerance=0"):
        lsuv(dense(), x, tolerance=0)
    with pytest.raises(ValueError, match="max_divisions=0"):
        lsuv(dense(), x, max_divisions=0)
