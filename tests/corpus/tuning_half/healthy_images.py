"""Sound programs on images that a hasty rule would take for sick ones."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mobile_net() -> Program:
    """MobileNet at a quarter of its width from random weights, on pictures of 32 x 32."""
    keras.utils.set_random_seed(101)
    x, y = data.mnist(1200)
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)))[..., None].repeat(3, axis=-1) / 127.5 - 1
    base = keras.applications.MobileNet((32, 32, 3), alpha=0.25, include_top=False, weights=None, pooling="avg")
    model = keras.Model(base.input, layers.Dense(10)(base.output))
    model.compile(optimizers.Adam(0.003), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=5)


def residual_net() -> Program:
    """Eight residual blocks of BatchNorm, ReLU and convolution, momentum and a cosine schedule."""
    keras.utils.set_random_seed(102)
    x, y = data.digits()
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(12, 3, padding="same", use_bias=False)(inputs)
    for _ in range(8):
        branch = layers.Activation("relu")(layers.BatchNormalization()(hidden))
        branch = layers.Conv2D(12, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(branch)
        branch = layers.Activation("relu")(layers.BatchNormalization()(branch))
        branch = layers.Conv2D(12, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(branch)
        hidden = layers.Add()([hidden, branch])
    hidden = layers.Activation("relu")(layers.BatchNormalization()(hidden))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(hidden)))
    schedule = optimizers.schedules.CosineDecay(0.05, decay_steps=150)
    model.compile(optimizers.SGD(schedule, momentum=0.9, nesterov=True), LOGITS, metrics=["accuracy"])
    return Program(model, x.reshape(-1, 8, 8, 1) / 16, y, batch_size=64, epochs=5)


def rows_by_lstm() -> Program:
    """MNIST, row by row, by an LSTM with dropout."""
    keras.utils.set_random_seed(103)
    x, y = data.mnist(2000)
    model = keras.Sequential(
        [layers.Input((28, 28)), layers.LSTM(64), layers.Dropout(0.3), layers.Dense(10, activation="softmax")]
    )
    model.compile(optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x / 255, y, epochs=5)


def patches_by_transformer() -> Program:
    """Four-by-four patches, two pre-norm blocks of attention, AdamW with warm-up."""
    keras.utils.set_random_seed(104)
    x, y = data.mnist(1500)
    patches = x.reshape(-1, 7, 4, 7, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 49, 16) / 255
    inputs = keras.Input((49, 16))
    hidden = layers.Dense(48)(inputs)
    hidden += layers.Embedding(49, 48)(np.arange(49))
    for _ in range(2):
        normal = layers.LayerNormalization()(hidden)
        hidden += layers.MultiHeadAttention(4, 12)(normal, normal)
        normal = layers.LayerNormalization()(hidden)
        hidden += layers.Dense(48)(layers.Dense(96, activation="gelu")(normal))
    hidden = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(hidden))
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    schedule = optimizers.schedules.CosineDecay(0.0, 235, warmup_target=0.003, warmup_steps=30)
    model.compile(optimizers.AdamW(schedule, weight_decay=0.01), LOGITS, metrics=["accuracy"])
    return Program(model, patches, y, batch_size=32, epochs=5)


class Autoencoder(keras.Model):
    """A convolutional autoencoder."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential(
            [
                layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
                layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
            ]
        )
        self.decoder = keras.Sequential(
            [
                layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu"),
                layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu"),
                layers.Conv2D(1, 3, padding="same", activation="sigmoid"),
            ]
        )

    def call(self, images):
        return self.decoder(self.encoder(images))


def pixels_by_cross_entropy() -> Program:
    """An autoencoder with gray targets under binary cross-entropy, whose loss can never reach 0."""
    keras.utils.set_random_seed(105)
    x, _ = data.mnist(1200)
    x = x[..., None] / 255
    model = Autoencoder()
    model.compile(optimizers.Adam(0.003), "binary_crossentropy")
    return Program(model, x, x, batch_size=32, epochs=5)


def two_answers() -> Program:
    """One trunk, two answers: which digit, and how much ink."""
    keras.utils.set_random_seed(106)
    x, y = data.digits()
    inputs = keras.Input((64,))
    trunk = layers.Dense(96, activation="relu")(inputs)
    digit = layers.Dense(10, activation="softmax", name="digit")(trunk)
    ink = layers.Dense(1, name="ink")(trunk)
    model = keras.Model(inputs, {"digit": digit, "ink": ink})
    model.compile(
        optimizers.Adam(0.002),
        {"digit": "sparse_categorical_crossentropy", "ink": "huber"},
        metrics={"digit": ["accuracy"]},
        loss_weights={"digit": 1.0, "ink": 0.5},
    )
    return Program(model, x / 16, {"digit": y, "ink": data.standardized(x.sum(axis=1))}, epochs=8)


def frozen_features() -> Program:
    """A random convolution that is not trained, as a stand-in for a frozen backbone, and a trained head."""
    keras.utils.set_random_seed(107)
    x, y = data.mnist(2000)
    backbone = keras.Sequential(
        [layers.Input((28, 28, 1)), layers.Conv2D(32, 5, strides=2, activation="relu"), layers.MaxPooling2D(2)]
    )
    backbone.trainable = False
    model = keras.Sequential(
        [layers.Input((28, 28, 1)), backbone, layers.Flatten(), layers.Dropout(0.5), layers.Dense(10)]
    )
    model.compile(optimizers.Adam(0.002), LOGITS, metrics=["accuracy"])
    return Program(model, x[..., None] / 255, y, epochs=5)


def group_norm_of_four() -> Program:
    """Batches of four, which BatchNorm would not like, under GroupNorm."""
    keras.utils.set_random_seed(108)
    x, y = data.mnist(800)
    model = keras.Sequential([layers.Input((28, 28, 1))])
    for filters in (16, 32):
        model.add(layers.Conv2D(filters, 3, strides=2, use_bias=False))
        model.add(layers.GroupNormalization(8))
        model.add(layers.PReLU(shared_axes=[1, 2]))
    model.add(layers.Flatten())
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(optimizers.SGD(0.005, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[..., None] / 255, y, batch_size=4, epochs=4)


CASES = (
    Case("mobile_net_from_scratch", mobile_net, "Keras applications, MobileNet with weights=None; 1704.04861"),
    Case("residual_net_before_activation", residual_net, "He et al., 1603.05027, with Keras' cosine schedule"),
    Case("lstm_over_rows", rows_by_lstm, "Keras guide 'Working with RNNs': MNIST row by row"),
    Case("transformer_over_patches", patches_by_transformer, "Keras example 'Image classification with ViT'"),
    Case("gray_autoencoder", pixels_by_cross_entropy, "The Keras blog, 'Building Autoencoders in Keras'"),
    Case("digit_and_ink", two_answers, "Keras guide 'The Functional API': several inputs and outputs"),
    Case("frozen_backbone", frozen_features, "Keras guide 'Transfer learning and fine-tuning'"),
    Case("group_norm_on_batches_of_four", group_norm_of_four, "Wu, He, 1803.08494"),
)
