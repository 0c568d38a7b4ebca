"""Programs that fail by BatchNorm or without normalization, and what mends them."""

from __future__ import annotations

import keras
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batch_norm_strip(skip: bool = False) -> Program:
    """Thirty-four convolutions with BatchNorm in a row over a row of pixels."""
    keras.utils.set_random_seed(322)
    x, y = data.digits()
    hidden = inputs = keras.Input((32, 2))
    for index in range(34):
        branch = layers.Conv1D(16, 3, padding="same", use_bias=False)(hidden)
        branch = layers.BatchNormalization()(branch)
        branch = layers.Activation("relu")(branch)
        hidden = layers.Add()([hidden, branch]) if skip and index else branch
    hidden = layers.BatchNormalization()(hidden) if skip else hidden
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(hidden)))
    model.compile(optimizers.SGD(0.02), "categorical_crossentropy", metrics=["accuracy"])
    return Program(
        model, x[:1000].reshape(-1, 32, 2) / 16, keras.utils.to_categorical(y[:1000]), batch_size=50, epochs=6
    )


class NormStack(keras.Model):
    """BatchNorm, ReLU and a dense layer, many times."""

    def __init__(self, depth: int, width: int, out: int, skip: bool):
        super().__init__()
        self.start = layers.Dense(width)
        self.dense = [layers.Dense(width, use_bias=False) for _ in range(depth)]
        self.norms = [layers.BatchNormalization() for _ in range(depth)]
        self.last = layers.BatchNormalization()
        self.head = layers.Dense(out)
        self.skip = skip

    def call(self, x, training=False):
        x = self.start(x)
        for dense, norm in zip(self.dense, self.norms, strict=True):
            branch = dense(ops.relu(norm(x, training=training)))
            x = x + branch if self.skip else branch
        return self.head(self.last(x, training=training))


def batch_norm_regressor(skip: bool = False) -> Program:
    """House prices by thirty-eight layers with BatchNorm in a row."""
    keras.utils.set_random_seed(323)
    x, y = data.boston()
    model = NormStack(38, 40, 1, skip)
    model.compile(optimizers.SGD(0.03), "mse")
    return Program(model, data.standardized(x), data.standardized(y), batch_size=64, epochs=15)


def bare_gelu_blocks(normalized: bool = False) -> Program:
    """Sixteen residual blocks of GELUs and no normalization."""
    keras.utils.set_random_seed(324)
    x, y = data.diabetes()
    inputs = keras.Input((10,))
    hidden = layers.Dense(32)(inputs)
    for _ in range(16):
        branch = layers.RMSNormalization()(hidden) if normalized else hidden
        branch = layers.Dense(64, activation="gelu", kernel_initializer="he_normal")(branch)
        hidden = hidden + layers.Dense(32, kernel_initializer="he_normal")(branch)
    hidden = layers.RMSNormalization()(hidden) if normalized else hidden
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.SGD(0.01), "mse")
    return Program(model, data.standardized(x), data.standardized(y), batch_size=32, epochs=12)


def bare_trunk(normalized: bool = False) -> Program:
    """Every convolution adds to a trunk of residual blocks; nothing is normalized."""
    keras.utils.set_random_seed(325)
    x, y = data.mnist(1000)
    inputs = keras.Input((28, 28, 1))
    hidden = layers.Conv2D(16, 5, strides=4, padding="same", kernel_initializer="he_normal")(inputs)
    for _ in range(12):
        branch = layers.GroupNormalization(4)(hidden) if normalized else hidden
        branch = layers.Conv2D(16, 3, padding="same", activation="relu", kernel_initializer="he_normal")(branch)
        branch = layers.Conv2D(16, 3, padding="same", activation="relu", kernel_initializer="he_normal")(branch)
        hidden = layers.add([hidden, branch])
    hidden = layers.GroupNormalization(4)(hidden) if normalized else hidden
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(hidden)))
    model.compile(optimizers.SGD(0.03, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x[..., None] / 127.5 - 1, y, batch_size=32, epochs=5)


CASES = (
    failing(
        "strip_of_batch_norm",
        batch_norm_strip,
        "Yang et al., 1902.08129",
        "exploding_batch_normalization",
        ("plain_depth",),
        skip=True,
    ),
    failing(
        "regressor_of_batch_norms",
        batch_norm_regressor,
        "Yang et al., 1902.08129",
        "exploding_batch_normalization",
        ("plain_depth",),
        skip=True,
    ),
    failing(
        "bare_gelu_blocks",
        bare_gelu_blocks,
        "Zhang et al., 1901.09321",
        "missing_normalization",
        ("exploding_initialization",),
        normalized=True,
    ),
    failing(
        "trunk_without_group_norm",
        bare_trunk,
        "De, Smith, 2002.10444; Brock et al., 2101.08692",
        "missing_normalization",
        ("exploding_initialization",),
        normalized=True,
    ),
)
