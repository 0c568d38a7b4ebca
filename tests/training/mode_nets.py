"""Nets, and their data, for the modes of `fit` that depend on the shape of a model."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tests.training.nets import digits, layers, two_dense

TWO_LOSSES = {
    "loss": [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"],
    "loss_weights": [1.0, 0.3],
    "metrics": [["accuracy"], ["mae"]],
}


def two_dense_tanh() -> keras.Model:
    return two_dense("tanh")  # which hands a NaN on to the loss, where a ReLU may swallow it


def two_in_two_out() -> keras.Model:
    one, two = keras.Input((64,)), keras.Input((64,))
    both = layers.add([layers.Dense(8, activation="tanh")(one), layers.Dense(8)(two)])
    return keras.Model([one, two], [layers.Dense(10, name="digit")(both), layers.Dense(1, name="tenth")(both)])


def two_in_two_out_data(samples: int) -> tuple:
    x, y = digits(samples)
    return [x, x[:, ::-1].copy()], [y, (y / 10).astype(np.float32)[:, None]], None


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(16, activation="relu"), layers.Dense(10)

    def call(self, x):
        return self.out(self.hidden(x))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 64), np.float32))
    return model


class OwnStep(Subclassed):
    """Train as the guides show it: a tape, and `apply_gradients`."""

    def __init__(self):
        super().__init__()
        self(np.zeros((1, 64), np.float32))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"my_loss": loss}


class WithUnused(Subclassed):
    def __init__(self):
        super().__init__()
        self.frozen, self.unused = layers.Dense(64, trainable=False), layers.Dense(3)

    def call(self, x):
        self.unused(x)
        return super().call(self.frozen(x) + x)


def with_frozen_and_unused() -> keras.Model:
    model = WithUnused()
    model(np.zeros((1, 64), np.float32))
    return model


def tokens_and_features() -> keras.Model:
    tokens, features = keras.Input((64,), dtype="int32"), keras.Input((64,))
    words = layers.GlobalAveragePooling1D()(layers.Embedding(20, 8)(tokens))
    return keras.Model([tokens, features], layers.Dense(10)(layers.concatenate([words, features])))


def tokens_and_features_data(samples: int) -> tuple:
    x, y = digits(samples)
    return [(x * 16).astype(np.int32), x], y, None  # most pixels are 0: each row repeats its indices


def nested() -> keras.Model:
    inside = keras.Sequential([keras.Input((64,)), layers.Dense(12, activation="tanh"), layers.Dense(12)])
    inputs = keras.Input((64,))
    return keras.Model(inputs, layers.Dense(10)(keras.Sequential([inside, layers.LayerNormalization()])(inputs)))
