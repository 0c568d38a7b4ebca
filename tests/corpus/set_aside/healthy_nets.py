"""Sound programs, deep ones among them, that a hasty rule would take for sick ones."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mobile_net_v3() -> Program:
    """Pixels from 0 to 255: the application scales them itself."""
    keras.utils.set_random_seed(401)
    x, y = data.mnist(900)
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)))[..., None].repeat(3, -1)
    base = keras.applications.MobileNetV3Small(
        (32, 32, 3), alpha=0.75, minimalistic=True, include_top=False, weights=None, pooling="avg", dropout_rate=0.0
    )
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # with the application's 0.999 the moving averages stay, and evaluate is at chance
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(base(inputs))))
    model.compile(optimizers.Adam(0.003), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=5)


def unet_with_dice() -> Program:
    """A small U-Net under a Dice loss that is smoothed."""
    keras.utils.set_random_seed(402)
    x, _ = data.mnist(600)
    images = x[:, ::2, ::2, None][:, :12, :12] / 255
    masks = (images > 0.4).astype("float32")
    noisy = (0.5 * images + np.random.default_rng(0).uniform(0, 0.5, images.shape)).astype("float32")

    def dice(true, pred):
        overlap, total = ops.sum(true * pred), ops.sum(true) + ops.sum(pred)
        return 1 - (2 * overlap + 1) / (total + 1)

    inputs = keras.Input((12, 12, 1))
    wide = layers.Conv2D(12, 3, padding="same", activation="relu")(inputs)
    narrow = layers.Conv2D(24, 3, padding="same", activation="relu")(layers.MaxPooling2D()(wide))
    up = layers.Conv2DTranspose(12, 2, strides=2)(narrow)
    hidden = layers.Conv2D(12, 3, padding="same", activation="relu")(layers.Concatenate()([up, wide]))
    model = keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(hidden))
    model.compile(optimizers.Adam(0.003), dice, metrics=["binary_accuracy", keras.metrics.MeanIoU(2)])
    return Program(model, noisy, masks, batch_size=16, epochs=8)


class ReZero(layers.Layer):
    """A branch times a weight that begins at 0."""

    def __init__(self, units: int):
        super().__init__()
        self.dense = layers.Dense(units, activation="relu", kernel_initializer="he_normal")
        self.alpha = self.add_weight(shape=(), initializer="zeros", name="alpha")

    def call(self, x):
        return x + self.alpha * self.dense(x)


def rezero_chain() -> Program:
    """Twenty-four residual blocks that begin as the identity."""
    keras.utils.set_random_seed(403)
    x, y = data.digits()
    model = keras.Sequential([layers.Input((64,)), layers.Dense(64)])
    for _ in range(24):
        model.add(ReZero(64))
    model.add(layers.Dense(10))
    model.compile(optimizers.Adagrad(0.01), LOGITS, metrics=["accuracy"])
    return Program(model, x / 16, y, batch_size=64, epochs=8)


def self_normalizing() -> Program:
    """Twelve SELU layers with LeCun's weights, and the dropout that belongs to them."""
    keras.utils.set_random_seed(404)
    x, y = data.breast_cancer()
    model = keras.Sequential([layers.Input((30,))])
    for _ in range(12):
        model.add(layers.Dense(32, activation="selu", kernel_initializer="lecun_normal"))
    model.add(layers.AlphaDropout(0.05))
    model.add(layers.Dense(1, activation="sigmoid"))
    model.compile(optimizers.SGD(0.01, momentum=0.9), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=32, epochs=10)


def batch_norm_on_raw_table() -> Program:
    """Raw columns into BatchNorm."""
    keras.utils.set_random_seed(405)
    x, y = data.wine()
    model = keras.Sequential(
        [
            layers.Input((13,)),
            layers.BatchNormalization(),
            layers.Dense(32, activation="relu"),
            layers.BatchNormalization(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizers.Adam(0.005), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=16, epochs=20)


def residual_net() -> Program:
    """Residual blocks whose last BatchNorm begins at zero, with schedule, label smoothing and weight decay."""
    keras.utils.set_random_seed(406)
    x, y = data.mnist(1000)
    inputs = keras.Input((28, 28, 1))
    hidden = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, strides=4, padding="same")(inputs)))
    for filters in (16, 16, 32, 32):
        strides = 2 if filters != hidden.shape[-1] else 1
        branch = layers.ReLU()(
            layers.BatchNormalization()(layers.Conv2D(filters, 3, strides=strides, padding="same")(hidden))
        )
        branch = layers.BatchNormalization(gamma_initializer="zeros")(layers.Conv2D(filters, 3, padding="same")(branch))
        shortcut = hidden if strides == 1 else layers.Conv2D(filters, 1, strides=2)(hidden)
        hidden = layers.ReLU()(layers.Add()([branch, shortcut]))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(hidden)))
    schedule = optimizers.schedules.ExponentialDecay(0.1, 60, 0.8)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile(optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=1e-4), loss, metrics=["accuracy"])
    return Program(model, x[..., None] / 255, keras.utils.to_categorical(y), batch_size=32, epochs=6)


def exclusive_or() -> Program:
    """Four points, all in one batch."""
    keras.utils.set_random_seed(410)
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "float32")
    y = np.array([[0], [1], [1], [0]], "float32")
    model = keras.Sequential(
        [layers.Input((2,)), layers.Dense(8, activation="tanh"), layers.Dense(1, activation="sigmoid")]
    )
    model.compile(optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=4, epochs=150)


def transformer_in_bfloat16() -> Program:
    """Two blocks of a transformer in bfloat16, its logits in float32."""
    keras.utils.set_random_seed(411)
    x, y = data.digits()
    inputs = keras.Input((8, 8))
    hidden = layers.Dense(32)(inputs)
    for _ in range(2):
        normal = layers.LayerNormalization()(hidden)
        hidden = layers.Add()([hidden, layers.MultiHeadAttention(4, 8)(normal, normal)])
        normal = layers.LayerNormalization()(hidden)
        hidden = layers.Add()([hidden, layers.Dense(32)(layers.Dense(64, activation="gelu")(normal))])
    model = keras.Model(
        inputs, layers.Dense(10, dtype="float32")(layers.Flatten()(layers.LayerNormalization()(hidden)))
    )
    model.compile(optimizers.Adam(0.002, global_clipnorm=1.0), LOGITS, metrics=["accuracy"])
    return Program(model, x.reshape(-1, 8, 8) / 16, y, batch_size=32, epochs=5)


def deep_linear_plateau() -> Program:
    """Linear layers from small weights: a plateau, then a fall."""
    keras.utils.set_random_seed(412)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1500, 12)).astype("float32")
    y = (x @ rng.normal(size=(12, 3)) @ rng.normal(size=(3, 6)) / 3).astype("float32")
    init = initializers.RandomNormal(stddev=0.12)
    model = keras.Sequential(
        [
            layers.Input((12,)),
            layers.Dense(24, kernel_initializer=init, use_bias=False),
            layers.Dense(24, kernel_initializer=init, use_bias=False),
            layers.Dense(6, kernel_initializer=init, use_bias=False),
        ]
    )
    model.compile(optimizers.SGD(0.02), "mse")
    return Program(model, x, y, batch_size=32, epochs=15)


CASES = (
    Case(
        "mobile_net_v3_on_raw_pixels",
        mobile_net_v3,
        "Keras applications, MobileNetV3: the scaling is part of the model",
    ),
    Case("small_unet_with_dice", unet_with_dice, "Milletari et al., 1606.04797"),
    Case("rezero_blocks", rezero_chain, "Bachlechner et al., 2003.04887"),
    Case("twelve_selu_layers", self_normalizing, "Klambauer et al., 1706.02515"),
    Case("batch_norm_on_a_raw_table", batch_norm_on_raw_table, "Stack Overflow on BatchNormalization as a first layer"),
    Case("residual_net_with_zero_gammas", residual_net, "Goyal et al., 1706.02677; He et al., 1512.03385"),
    Case("exclusive_or", exclusive_or, "Stack Overflow on XOR in Keras"),
    Case("transformer_in_bfloat16", transformer_in_bfloat16, "Keras guide on mixed precision", needs="mixed_bfloat16"),
    Case("linear_layers_from_small_weights", deep_linear_plateau, "Saxe et al., 1312.6120"),
)
