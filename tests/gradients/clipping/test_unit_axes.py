from __future__ import annotations

import keras
import numpy as np
import pytest

from gradrecipes.gradients.clipping.unit_wise import head_layers, summed_axes, unit_axes

layers = keras.layers


def built(layer, shape):
    """Return the layer inside a model whose head is another."""
    inputs = keras.Input(shape)
    outputs = layers.Dense(1, name="the_head")(layers.Flatten(name="flat")(layer(inputs)))
    return keras.Model(inputs, outputs)


def axes_by_name(model, layer):
    own = {id(variable) for variable in layer.weights}
    chosen = zip(model.trainable_variables, unit_axes(model, model.trainable_variables), strict=True)
    return {variable.path.split("/", 1)[1]: axes for variable, axes in chosen if id(variable) in own}


KINDS = {
    "dense": (layers.Dense(3), (4,), {"kernel": (0,), "bias": (0,)}),
    "conv1d": (layers.Conv1D(3, 2), (6, 2), {"kernel": (0, 1), "bias": (0,)}),
    "conv2d": (layers.Conv2D(3, 2), (6, 6, 2), {"kernel": (0, 1, 2), "bias": (0,)}),
    "conv3d": (layers.Conv3D(3, 2), (6, 6, 6, 2), {"kernel": (0, 1, 2, 3), "bias": (0,)}),
    "depthwise1d": (layers.DepthwiseConv1D(2, depth_multiplier=2), (6, 3), {"kernel": (0,), "bias": (0,)}),
    "depthwise2d": (layers.DepthwiseConv2D(2, depth_multiplier=2), (6, 6, 3), {"kernel": (0, 1), "bias": (0,)}),
    "separable2d": (
        layers.SeparableConv2D(4, 2),
        (6, 6, 3),
        {"depthwise_kernel": (0, 1), "pointwise_kernel": (0, 1, 2), "bias": (0,)},
    ),
    "conv1d_transpose": (layers.Conv1DTranspose(4, 2), (6, 3), {"kernel": (0, 2), "bias": (0,)}),
    "conv2d_transpose": (layers.Conv2DTranspose(4, 2), (6, 6, 3), {"kernel": (0, 1, 3), "bias": (0,)}),
    "einsum": (
        layers.EinsumDense("abc,cde->abde", (6, 3, 2), bias_axes="de"),
        (6, 4),
        {"kernel": (0,), "bias": (0, 1)},
    ),
    "embedding": (layers.Embedding(9, 3), (5,), {"embeddings": (1,)}),
    "lstm": (
        layers.LSTM(3),
        (5, 2),
        {"lstm_cell/kernel": (0,), "lstm_cell/recurrent_kernel": (0,), "lstm_cell/bias": (0,)},
    ),
    "gru": (
        layers.GRU(3),
        (5, 2),
        {"gru_cell/kernel": (0,), "gru_cell/recurrent_kernel": (0,), "gru_cell/bias": (0, 1)},
    ),
    "batch_normalization": (layers.BatchNormalization(), (5, 2), {"gamma": (0,), "beta": (0,)}),
    "layer_normalization": (layers.LayerNormalization(axis=(1, 2)), (5, 2), {"gamma": (0, 1), "beta": (0, 1)}),
    "prelu": (layers.PReLU(), (5, 2), {"alpha": (0, 1)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_is_what_the_layer_makes_of_its_inputs(kind):
    layer, shape, expected = KINDS[kind]
    assert axes_by_name(built(layer, shape), layer) == expected


def test_every_projection_of_attention_goes_by_its_own_equation():
    attention = layers.MultiHeadAttention(2, 4)
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layers.Dense(1)(attention(inputs, inputs)))
    axes = axes_by_name(model, attention)
    assert {name: axes[f"{name}/kernel"] for name in ("query", "key", "value", "attention_output")} == {
        **dict.fromkeys(("query", "key", "value"), (0,)),
        "attention_output": (0, 1),
    }
    assert axes["query/bias"] == (0, 1)


@pytest.mark.parametrize(
    ("layer", "shape", "units"),
    [
        (layers.Dense(3, use_bias=False), (4,), 3),
        (layers.Conv2D(5, 2, use_bias=False), (6, 6, 2), 5),
        (layers.DepthwiseConv2D(2, depth_multiplier=2, use_bias=False), (6, 6, 3), 6),
        (layers.Conv2DTranspose(4, 2, use_bias=False), (6, 6, 3), 4),
        (layers.EinsumDense("abc,cde->abde", (6, 3, 2)), (6, 4), 6),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_change_to_one_unit_moves_one_output_feature_and_no_other(layer, shape, units):
    """The meaning itself: outputs are compared before and after one unit's weights are changed."""
    layer.build((None, *shape))
    kernel = layer.trainable_variables[0]
    axes = unit_axes(built(layer, shape), [kernel, *built(layer, shape).trainable_variables])[0]
    free = [axis for axis in range(len(kernel.shape)) if axis not in axes]
    assert np.prod([kernel.shape[axis] for axis in free]) == units
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    before, weights = np.asarray(layer(x)), kernel.numpy()
    features = before.reshape(*before.shape[: -max(1, len(free) - ("depthwise" in layer.name))], -1)
    for unit in np.ndindex(*[kernel.shape[axis] for axis in free]):
        place = [slice(None)] * len(kernel.shape)
        for axis, index in zip(free, unit, strict=True):
            place[axis] = index
        changed = weights.copy()
        changed[tuple(place)] += 1.0
        kernel.assign(changed)
        moved = np.abs(np.asarray(layer(x)).reshape(features.shape) - features).reshape(-1, units).max(axis=0)
        assert (moved > 1e-4).sum() == 1
    kernel.assign(weights)


def test_equations():
    assert summed_axes("abc,cd->abd") == (0,)
    assert summed_axes("aecd,abcd->acbe") == (3,)
    assert summed_axes("...x, xy -> ...y") == (0,)
    assert summed_axes("abc,c->abc") == (0,)  # sums over nothing: the variable as a whole


def heads(model) -> list[str]:
    return [layer.name for layer in head_layers(model)]


def test_the_head_is_the_last_layer_with_a_kernel_whatever_follows_it():
    inputs = keras.Input((4,))
    hidden = layers.Dense(3, name="hidden")(inputs)
    last = layers.Dense(2, name="last")(hidden)
    outputs = layers.Softmax()(layers.PReLU()(layers.BatchNormalization()(last)))
    model = keras.Model(inputs, outputs)
    assert heads(model) == ["last"]
    axes = dict(
        zip([v.path for v in model.trainable_variables], unit_axes(model, model.trainable_variables), strict=True)
    )
    assert [path for path, chosen in axes.items() if chosen is None] == ["last/kernel", "last/bias"]


def test_each_output_has_its_head():
    inputs = keras.Input((4,))
    hidden = layers.Dense(3, name="hidden")(inputs)
    outputs = [layers.Dense(2, name="one")(hidden), layers.ReLU()(layers.Dense(1, name="two")(hidden))]
    assert heads(keras.Model(inputs, outputs)) == ["one", "two"]


def test_after_a_merge_the_nearest_layers_are_the_head():
    inputs = keras.Input((4,))
    wide = layers.Dense(4, name="wide")(inputs)
    deep = layers.Dense(4, name="deep")(layers.Dense(4, name="below")(inputs))
    assert sorted(heads(keras.Model(inputs, layers.Add()([wide, deep])))) == ["deep", "wide"]
    block = layers.Dense(4, name="block")(wide)
    assert heads(keras.Model(inputs, layers.Add()([layers.ReLU()(wide), block]))) == ["block"]


def test_nested_models_sequential_models_and_wrappers_are_looked_into():
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, layers.ReLU()(layers.Dense(4, name="inner_last")(layers.Dense(3)(inputs))))
    outer = keras.Input((4,))
    assert heads(keras.Model(outer, layers.Softmax()(inner(outer)))) == ["inner_last"]
    sequence = keras.Sequential([keras.Input((4,)), layers.Dense(4), inner.layers[1], layers.Softmax()])
    assert heads(sequence) == [inner.layers[1].name]
    rows = keras.Input((5, 4))
    states = layers.LSTM(3, return_sequences=True)(rows)
    wrapped = keras.Model(rows, layers.TimeDistributed(layers.Dense(3, name="in_time"))(states))
    assert heads(wrapped) == ["in_time"]


def test_the_last_projection_of_attention_can_be_the_head():
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, layers.MultiHeadAttention(2, 2)(inputs, inputs))
    assert heads(model) == ["attention_output"]


def test_a_subclassed_model_goes_by_the_order_in_which_its_layers_were_made():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.out, self.drop = layers.Dense(3), layers.Dense(2, name="out"), layers.Dropout(0.1)
            self.outputs = ["a name that functional models use otherwise"]

        def call(self, x):
            return self.out(self.drop(self.hidden(x)))

    net = Net()
    net(np.ones((1, 4), np.float32))
    assert heads(net) == ["out"]
    assert unit_axes(net, net.trainable_variables) == [(0,), (0,), None, None]


def test_where_only_the_head_is_trained_it_is_bounded():
    net = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2)])
    net.layers[0].trainable = False
    assert unit_axes(net, net.trainable_variables) == [(0,), (0,)]


def test_a_frozen_head_stays_the_head():
    net = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2)])
    net.layers[1].trainable = False
    assert unit_axes(net, net.trainable_variables) == [(0,), (0,)]
    assert heads(net) == [net.layers[1].name]


def test_a_layer_of_ones_own_counts_by_the_last_axis():
    class Mine(layers.Layer):
        def build(self, shape):
            self.matrix = self.add_weight(name="matrix", shape=(shape[-1], 2, 3))

        def call(self, x):
            return keras.ops.einsum("ab,bcd->acd", x, self.matrix)

    mine = Mine()
    assert axes_by_name(built(mine, (4,)), mine) == {"matrix": (0, 1)}


def test_keras_still_says_who_made_a_tensor():
    """Not public: moved in a release, `unit_axes` would silently find no head."""
    inputs = keras.Input((4,))
    dense = layers.Dense(2)
    history = dense(inputs)._keras_history
    assert history.operation is dense
    assert dense._inbound_nodes[history.node_index].input_tensors[0] is inputs
