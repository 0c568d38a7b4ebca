"""The residual blocks: what they start as, what they refuse, and that they train where He dies."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.layers import FixupResidual, PreNormResidual, ReZeroResidual, choose_normalization, normalization

layers = keras.layers


def dense(units=8, last=8):
    return [layers.Dense(units, activation="relu"), layers.Dense(last)]


def bare(*units):
    return [layers.Dense(count, use_bias=False) for count in units]


BLOCKS = {
    "pre_norm": lambda last=8, **more: PreNormResidual(dense(16, last), **more),
    "rezero": lambda last=8, **more: ReZeroResidual(dense(16, last), **more),
    "fixup": lambda last=8, **more: FixupResidual(bare(16, last), blocks=10, **more),
}


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)


@pytest.mark.parametrize("name", ["rezero", "fixup"])
def test_they_start_as_the_identity_and_every_part_has_a_gradient_soon(name, x):
    block = BLOCKS[name]()
    np.testing.assert_array_equal(block(x), x)
    model = keras.Sequential([keras.Input((8,)), block])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    before = model.get_weights()
    model.fit(x, 2 * x + 1, epochs=3, verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert all(changed)


def test_the_residual_weight_is_found_by_its_name(x):
    model = keras.Sequential([keras.Input((8,)), BLOCKS["rezero"]()])
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["residual_weight"])
    model.compile(optimizer, loss=lambda y, p: 0.0 * p)
    model.layers[0].residual_weight.assign(1.0)
    kernel = np.array(model.layers[0].branch.layers[0].kernel)
    model.fit(x, x, batch_size=32, verbose=0)
    assert float(model.layers[0].residual_weight) == 1.0
    np.testing.assert_allclose(model.layers[0].branch.layers[0].kernel, 0.95 * kernel, rtol=1e-5)


def test_pre_norm_by_hand(x):
    block = PreNormResidual(dense())
    up, down = block.branch.layers if block(x) is not None else ()
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    branch = np.maximum(normal @ np.asarray(up.kernel), 0) @ np.asarray(down.kernel)
    np.testing.assert_allclose(block(x), x + branch, rtol=1e-4, atol=1e-5)


def test_fixup_by_hand(x):
    block = FixupResidual(bare(16, 4, 8), blocks=5, activation="tanh")
    block.build((None, 8))
    random = np.random.default_rng(1)
    for weight in block.weights:
        weight.assign(random.normal(size=weight.shape))
    w1, w2, w3 = (np.asarray(layer.kernel) for layer in block.layers)
    b = [float(bias) for bias in block.biases]
    assert len(b) == 6
    hidden = np.tanh((x + b[0]) @ w1 + b[1])
    hidden = np.tanh((hidden + b[2]) @ w2 + b[3])
    expected = x + float(block.scale) * ((hidden + b[4]) @ w3) + b[5]
    np.testing.assert_allclose(block(x), expected, rtol=1e-4, atol=1e-4)


def test_fixup_chooses_the_kernels():
    first, last = layers.Dense(400, use_bias=False), layers.Dense(400, use_bias=False)
    FixupResidual([first, last], blocks=25).build((None, 400))
    assert np.std(first.kernel) == pytest.approx(0.2 * np.sqrt(2 / 400), rel=0.02)
    assert not np.any(last.kernel)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_shortcut_brings_the_input_to_another_shape(name, x):
    block = BLOCKS[name](last=5, shortcut=layers.Dense(5, use_bias=False))
    assert block(x).shape == (32, 5)
    assert block.compute_output_shape((None, 8)) == (None, 5)
    with pytest.raises(ValueError, match=r"\(None, 8\).*\(None, 5\).*shortcut"):
        BLOCKS[name](last=5).build((None, 8))


def test_convolutions_and_strides():
    images = np.ones((2, 8, 8, 3), np.float32)
    make = dict(padding="same", use_bias=False)
    convolutions = [layers.Conv2D(4, 3, strides=2, **make), layers.Conv2D(4, 3, **make)]
    block = FixupResidual(convolutions, blocks=3, shortcut=layers.Conv2D(4, 1, strides=2))
    assert block(images).shape == (2, 4, 4, 4)


# Keras 3.7 says so of a Sequential, though the mask that the block passes on is its own.
@pytest.mark.filterwarnings("ignore:(?s).*does not support masking:UserWarning")
def test_a_branch_may_be_one_layer_and_masks_pass():
    tokens = keras.Input((None,), dtype="int32")
    rows = layers.Embedding(9, 8, mask_zero=True)(tokens)
    rows = ReZeroResidual(dense())(PreNormResidual(layers.Dense(8))(rows))
    model = keras.Model(tokens, layers.LSTM(3)(rows))
    np.testing.assert_allclose(model(np.array([[1, 2, 0, 0, 0]])), model(np.array([[1, 2]])), rtol=1e-5)


@pytest.mark.parametrize("kind", [PreNormResidual, ReZeroResidual])
@pytest.mark.parametrize("branch", [[], "dense", [1, 2], None])
def test_what_is_no_branch(kind, branch):
    with pytest.raises(TypeError, match=f"{kind.__name__}.*Received.*For example"):
        kind(branch)


def test_refusals(x):
    with pytest.raises(TypeError, match="normalization"):
        PreNormResidual(dense(), normalization="layer")
    with pytest.raises(TypeError, match="shortcut"):
        ReZeroResidual(dense(), shortcut=3)
    with pytest.raises(TypeError, match="with a kernel"):
        FixupResidual([layers.ReLU(), layers.ReLU()], blocks=2)
    built = layers.Dense(8, use_bias=False)
    built.build((None, 8))
    for wrong in (layers.Dense(8), built, layers.Dense(8, use_bias=False, activation="relu")):
        with pytest.raises(ValueError, match="must be new, with use_bias=False and without an activation"):
            FixupResidual([*bare(8), wrong], blocks=2)
    with pytest.raises(ValueError, match="layers_per_block"):
        FixupResidual(bare(8), blocks=2)


# -- 100 blocks on the digits: METHODS' claim, at one rate and as few epochs as show it -------------------------
def deep(make_block, *, blocks=100, head="zeros"):
    inputs = keras.Input((64,))
    hidden = layers.Dense(64)(inputs)
    for _ in range(blocks):
        hidden = make_block(hidden)
    return keras.Model(inputs, layers.Dense(10, kernel_initializer=head)(layers.ReLU()(hidden)))


def he(hidden):
    make = dict(kernel_initializer="he_normal")
    return layers.add([hidden, layers.Dense(64, **make)(layers.Dense(64, activation="relu", **make)(hidden))])


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    return x[:1300], y[:1300], x[1300:], y[1300:]


def accuracies(model, digits, *, learning_rates, epochs):
    """Return the test accuracy at each learning rate, always from the same weights, with one trace."""
    x, y, x_test, y_test = digits
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss=loss, metrics=["accuracy"])
    start, found = model.get_weights(), []
    for learning_rate in learning_rates:
        model.set_weights(start)
        for variable in model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        model.optimizer.learning_rate = learning_rate
        model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
        found.append(model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"])
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["rezero", "fixup"])
def test_a_hundred_blocks_train_without_normalization(kind, digits):
    def block(hidden):
        if kind == "fixup":
            return FixupResidual(bare(64, 64), blocks=100)(hidden)
        branch = [layers.Dense(64, activation="relu", kernel_initializer="he_normal"), layers.Dense(64)]
        return ReZeroResidual(branch)(hidden)

    assert accuracies(deep(block), digits, learning_rates=[0.03], epochs=8)[0] > 0.8


@pytest.mark.nightly
def test_a_hundred_blocks_of_he_die_at_every_rate(digits):
    rates = [1e-1, 1e-3, 1e-5, 1e-7, 1e-9]
    found = accuracies(deep(he, head="he_normal"), digits, learning_rates=rates, epochs=1)
    assert max(found) < 0.3, dict(zip(rates, found, strict=True))


@pytest.mark.parametrize(
    "asked, name",
    [
        (dict(residual=True, batch_size=64), "BatchNormalization"),
        (dict(residual=True, batch_size=64, channels=32), "BatchNormalization"),
        (dict(residual=True, batch_size=4), "LayerNormalization"),
        (dict(residual=True, batch_size=4, channels=32), "GroupNormalization"),
        (dict(residual=False, batch_size=512), "LayerNormalization"),
        (dict(residual=False, batch_size=512, channels=7), "GroupNormalization"),
    ],
)
def test_the_rule(asked, name):
    choice = choose_normalization(**asked)
    assert choice.name == name
    assert choice.reason
    assert type(normalization(**asked)).__name__ == name
    assert normalization(**asked) is not normalization(**asked)


def test_the_reason_has_the_number():
    assert "by 1.21 in each ReLU layer" in choose_normalization(residual=False, batch_size=64).reason
    assert "a batch of 4 is too small" in choose_normalization(residual=True, batch_size=4).reason


@pytest.mark.parametrize("channels, groups", [(64, 32), (48, 24), (7, 7), (1, 1), (37, 1)])
def test_groups_divide_the_channels(channels, groups):
    layer = normalization(residual=False, batch_size=2, channels=channels)
    assert layer.groups == groups
    assert layer(np.ones((2, 4, 4, channels), np.float32)).shape == (2, 4, 4, channels)


@pytest.mark.parametrize("asked", [dict(batch_size=0), dict(batch_size=2.0), dict(batch_size=2, channels=0)])
def test_numbers_that_make_no_sense_are_refused(asked):
    with pytest.raises(ValueError, match="whole number"):
        choose_normalization(residual=True, **asked)


def growth(make_normalization, depth=24, width=256, batch=64):
    """Return the gradient's factor per layer in a plain ReLU net with a normalization before each activation."""
    hidden = tf.constant(np.random.default_rng(0).normal(size=(batch, width)).astype(np.float32))
    outputs = []
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        for _ in range(depth):
            hidden = keras.layers.Dense(width, use_bias=False, kernel_initializer="he_normal")(hidden)
            hidden = keras.activations.relu(make_normalization()(hidden, training=True))
            outputs.append(hidden)
        loss = tf.reduce_sum(hidden * tf.constant(np.random.default_rng(1).normal(size=hidden.shape), tf.float32))
    first, last = (float(tf.norm(g)) for g in tape.gradient(loss, [outputs[3], outputs[-3]]))
    return (first / last) ** (1 / (depth - 6))


def test_without_skips_batch_normalization_explodes_and_the_choice_does_not():
    assert growth(keras.layers.BatchNormalization) == pytest.approx(1.2, abs=0.03)
    chosen = growth(lambda: normalization(residual=False, batch_size=64))
    assert chosen == pytest.approx(1.0, abs=0.03)
