"""What the structure probe reads, against what is known of published nets and of small ones."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from gradrecipes.training.description.describe import describe_model

layers = keras.layers

PUBLISHED = {"ResNet50": (50, 16, 2), "DenseNet121": (121, 58, 1), "VGG16": (16, 0, 16), "InceptionV3": (48, None, 6)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_depth_of_published_nets(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classes=10)
    found = describe_model(model)
    depth, skips, plain = PUBLISHED[name]
    assert (found.depth, found.plain_depth) == (depth, plain)
    assert skips is None or found.skips == skips
    assert found.outputs[0].activation == "softmax" and found.inputs[0].first_kind == "Conv2D"


def block(x, units, normalize=False):
    x = layers.Dense(units)(x)
    return layers.ReLU()(layers.BatchNormalization()(x) if normalize else x)


def chain(depth, **how):
    x = inputs = keras.Input((8,))
    for _ in range(depth):
        x = block(x, 8, **how)
    return keras.Model(inputs, layers.Dense(1)(x))


def wide_and_deep():
    x = inputs = keras.Input((8,))
    for _ in range(5):
        x = block(x, 8)
    return keras.Model(inputs, layers.Dense(1)(layers.concatenate([inputs, x])))


def two_towers():
    towers = []
    for depth in (3, 6):
        x = start = keras.Input((8,))
        for _ in range(depth):
            x = block(x, 8)
        towers.append((start, x))
    return keras.Model([start for start, _ in towers], layers.Dense(1)(layers.concatenate([x for _, x in towers])))


def nested():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(8, activation="relu"), layers.Dense(8)])
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(2, activation="sigmoid")(inner(inner(inputs)) / 2.0))


def projected():
    """Every block's shortcut has a layer of its own: it counts, for it is the only way past the block."""
    x = inputs = keras.Input((8,))
    for _ in range(3):
        x = layers.Add()([block(block(block(x, 8), 8), 8), layers.Dense(8)(x)])
    return keras.Model(inputs, layers.Dense(1)(x))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: chain(7), (8, 0, 8, 0)),
        (lambda: chain(7, normalize=True), (8, 0, 8, 7)),
        (wide_and_deep, (6, 1, 1, 0)),
        (two_towers, (7, 0, 7, 0)),
        (nested, (5, 0, 5, 0)),
        (projected, (10, 3, 1, 0)),
    ],
)
def test_depth_and_skips(build, expected):
    found = describe_model(build())
    measured = (found.depth, found.skips, found.plain_depth, found.plain_batch_normalizations)
    assert measured == expected


def head(*behind, units=3):
    return keras.Sequential([keras.Input((8,)), layers.Dense(units), *behind])


def functional(operation):
    inputs = keras.Input((8,))
    return keras.Model(inputs, operation(layers.Dense(3)(inputs)))


HEADS = {
    "none": (lambda: head(), "linear"),
    "own": (lambda: keras.Sequential([keras.Input((8,)), layers.Dense(3, activation="tanh")]), "tanh"),
    "layer": (lambda: head(layers.Softmax()), "softmax"),
    "activation_layer": (lambda: head(layers.Activation("sigmoid"), layers.Reshape((3, 1))), "sigmoid"),
    "relu": (lambda: head(layers.ReLU()), "relu"),
    "normalization": (lambda: head(layers.BatchNormalization()), "linear"),
    "operation": (lambda: functional(keras.ops.softmax), "softmax"),
    "arithmetic": (lambda: functional(lambda x: 200.0 * keras.ops.tanh(x)), "unknown"),
    "lambda": (lambda: head(layers.Lambda(lambda x: x * x)), "unknown"),
    "sum": (lambda: functional(lambda x: x + keras.ops.tanh(x)), "linear"),
    "distributed": (
        lambda: keras.Sequential([keras.Input((4, 8)), layers.TimeDistributed(layers.Dense(3, activation="softmax"))]),
        "softmax",
    ),
    "recurrent": (lambda: keras.Sequential([keras.Input((4, 8)), layers.LSTM(3)]), "tanh"),
    "nested": (lambda: keras.Sequential([keras.Input((8,)), head(layers.Softmax())]), "softmax"),
    "not_built": (lambda: keras.Sequential([layers.Dense(4), layers.Dense(3, activation="sigmoid")]), "sigmoid"),
    "pooled": (
        lambda: keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(3, 1), layers.GlobalAveragePooling2D()]),
        "linear",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_activation_that_outputs_leave_through(name):
    build, expected = HEADS[name]
    output = describe_model(build()).outputs[0]
    assert output.activation == expected
    assert output.certain == (expected != "unknown")
    assert output.units == (1 if name == "activation_layer" else 3)


class Wrapper(keras.Model):
    """A subclassed model around another, as trainers with a step of their own are."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def call(self, inputs, training=False):
        return self.net(inputs, training=training)


def test_a_model_around_another_ends_and_begins_as_that_does():
    inner = [layers.Rescaling(1 / 255), layers.Dense(4, "relu"), layers.Dense(3, "tanh")]
    described = describe_model(Wrapper(keras.Sequential([keras.Input((8,)), *inner])))
    output = described.outputs[0]
    assert (output.activation, output.units, output.certain) == ("tanh", 3, False)
    assert (described.inputs[0].normalized, described.inputs[0].first_kind) == ("Rescaling", "Dense")


def test_two_activations_in_a_row_are_both_named():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(3, activation="softmax"), layers.Softmax()])
    assert describe_model(model).outputs[0].activations == ("softmax", "softmax")


def my_loss(y_true, y_pred):
    return keras.ops.mean(y_true - y_pred, axis=-1)


class MyLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return my_loss(y_true, y_pred)


@pytest.mark.parametrize(
    ("loss", "name", "custom", "from_logits"),
    [
        ("mse", "mean_squared_error", False, None),
        (keras.losses.MeanSquaredError(), "mean_squared_error", False, None),
        ("binary_crossentropy", "binary_crossentropy", False, False),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "sparse_categorical_crossentropy", False, True),
        (keras.losses.CategoricalCrossentropy(), "categorical_crossentropy", False, False),
        ("crossentropy", "categorical_crossentropy", False, False),
        (my_loss, "my_loss", True, None),
        (MyLoss(), "MyLoss", True, None),
        (keras.losses.huber, "huber", False, None),
    ],
)
def test_the_loss_by_its_keras_name(loss, name, custom, from_logits):
    model = head()
    model.compile(loss=loss)
    output = describe_model(model).outputs[0]
    assert (output.loss, output.custom, output.from_logits) == (name, custom, from_logits)


def test_settings_of_the_loss_are_kept():
    model = head()
    model.compile(loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1))
    assert describe_model(model).outputs[0].config["label_smoothing"] == 0.1


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_outputs_have_each_its_loss_and_target(as_dict):
    inputs = keras.Input((8,))
    ends = {"a": layers.Dense(1, activation="sigmoid", name="a")(inputs), "b": layers.Dense(2, name="b")(inputs)}
    model = keras.Model(inputs, ends if as_dict else list(ends.values()))
    model.compile(loss={"a": "binary_crossentropy", "b": "mae"})
    found = describe_model(model).outputs
    assert [(one.name, one.loss, one.target) for one in found] == [
        ("a", "binary_crossentropy", 0),
        ("b", "mean_absolute_error", 1),
    ]
    model.compile(loss="mse")
    assert [one.loss for one in describe_model(model).outputs] == ["mean_squared_error"] * 2
    if not as_dict:
        model.compile(loss=[None, "mse"])
        assert [(one.loss, one.target) for one in describe_model(model).outputs] == [
            (None, None),
            ("mean_squared_error", 0),
        ]


def adapted():
    layer = layers.Normalization()
    layer.adapt(np.array([[1.0, 2.0], [3.0, 5.0]]))
    return layer


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (lambda: layers.Dense(2), None),
        (adapted, "Normalization"),
        (lambda: layers.Normalization(mean=[1.0, 1.0], variance=[2.0, 2.0]), "Normalization"),
        (lambda: layers.Normalization(), None),
        (lambda: layers.Rescaling(1 / 255), "Rescaling"),
        (lambda: layers.BatchNormalization(), "BatchNormalization"),
    ],
)
def test_what_scales_the_inputs(first, expected):
    model = keras.Sequential([keras.Input((2,)), layers.Dropout(0.1), first(), layers.Dense(1)])
    assert describe_model(model).inputs[0].normalized == expected


def test_arithmetic_before_the_weights_scales_them():
    inputs = keras.Input((2,))
    assert describe_model(keras.Model(inputs, layers.Dense(1)(inputs / 255.0))).inputs[0].normalized == "Rescaling"


class Subclassed(keras.Model):
    def __init__(self, broken=False):
        super().__init__()
        self.scale = layers.Rescaling(0.1)
        self.hidden = layers.Dense(4, activation="relu")
        self.out = layers.Dense(3, activation="softmax")

    def call(self, inputs):
        return self.out(self.hidden(self.scale(inputs)))

    def train_step(self, data):
        return {}


@pytest.mark.parametrize("compiled", [False, True])
def test_a_subclassed_model_says_what_is_not_known(compiled):
    model = Subclassed()
    if compiled:
        model.compile(optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 10)))
    found = describe_model(model)
    json.dumps(found.to_json(), allow_nan=False)
    assert found.calls is None and found.own_train_step and found.depth is None
    output = found.outputs[0]
    assert (output.activation, output.certain, output.units, output.loss) == ("softmax", False, 3, None)
    assert (found.inputs[0].normalized, found.inputs[0].first_kind) == ("Rescaling", "Dense")
    assert found.optimizer is None or found.optimizer.schedule == ("CosineDecay" if compiled else None)


@pytest.mark.parametrize(("second", "rate"), [(0.01, 0.01), (0.5, None)])
def test_a_train_step_of_several_optimizers_has_a_rate_where_they_agree(second, rate):
    model = Subclassed()
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.other = keras.optimizers.SGD(second)
    assert describe_model(model).learning_rate == (rate and pytest.approx(rate))


def test_the_length_of_a_normalized_output_is_bounded():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.UnitNormalization()(layers.Dense(3)(inputs)))
    assert not describe_model(model).outputs[0].certain


def test_a_model_without_layers_is_no_error():
    assert describe_model(keras.Sequential()).depth is None
    assert json.dumps(describe_model(keras.Sequential([keras.Input((2,))])).to_json())


def test_what_holds_layers_back_is_named_with_its_strength_at_any_depth():
    held = {"kernel_regularizer": keras.regularizers.L1(0.1), "bias_constraint": keras.constraints.NonNeg()}
    inner = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4, recurrent_dropout=0.25), layers.Dropout(0.0)])
    model = keras.Sequential(
        [keras.Input((5, 3)), layers.GaussianNoise(0.5), inner, layers.Dense(4, **held), layers.Dropout(0.5)]
    )
    found = [(one.kind, one.words) for one in describe_model(model).regularization]
    assert found == [
        ("noise", "noise of 0.5"),
        ("dropout", "dropout of 0.25"),
        ("penalty", "L1(l1=0.1)"),
        ("constraint", "NonNeg()"),
        ("dropout", "dropout of 0.5"),
    ]


def test_the_slowest_moving_average_is_that_of_a_layer_that_is_trained():
    frozen = layers.BatchNormalization(momentum=0.9999, trainable=False)
    model = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(momentum=0.9), frozen])
    assert describe_model(model).slowest_average == 0.9
    model(np.ones((8, 3), "float32"), training=True)
    assert describe_model(model).slowest_average is None
    assert describe_model(keras.Sequential([keras.Input((3,)), layers.Dense(1)])).slowest_average is None


def test_frozen_layers_are_named_and_whether_they_were_trained():
    base, head = layers.Dense(4, name="base"), layers.Dense(2, name="head")
    model = keras.Sequential([keras.Input((3,)), base, layers.BatchNormalization(name="scale"), head])
    assert describe_model(model).frozen == ()
    base.trainable = model.layers[1].trainable = False
    found = describe_model(model)
    assert [(one.name, one.entries, one.kernel, one.untrained) for one in found.frozen] == [
        ("base", 16, True, True),
        ("scale", 8, False, True),
    ]
    assert found.trainable_entries == 10
    base.bias.assign([0.0, 1.0, 0.0, 0.0])
    assert describe_model(model).frozen[0].untrained is False


def test_weights_of_losses_are_read():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, {name: layers.Dense(1, name=name)(inputs) for name in ("a", "b")})
    model.compile("sgd", {"a": "mse", "b": "mae"}, loss_weights={"a": 1e-6})
    assert [one.loss_weight for one in describe_model(model).outputs] == [1e-6, 1.0]
    model.compile("sgd", {"a": "mse", "b": "mae"})
    assert [one.loss_weight for one in describe_model(model).outputs] == [None, None]


@pytest.mark.parametrize(("rates", "expected"), [((0.2, 0.2), 0.2), ((0.2, 0.3), None)])
def test_the_optimizers_that_do_the_steps_are_described(rates, expected):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile()  # with an optimizer that a train step of its own may never use
    model.of_kernel, model.of_bias = map(keras.optimizers.SGD, rates)
    assert describe_model(model).optimizer.count == 3
    for optimizer, variable in zip((model.of_kernel, model.of_bias), model.trainable_variables, strict=True):
        optimizer.apply([keras.ops.ones(variable.shape)], [variable])
    described = describe_model(model).optimizer
    assert (described.name, described.count) == ("SGD", 2)
    assert described.learning_rate == (None if expected is None else pytest.approx(expected))
