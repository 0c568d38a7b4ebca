"""Programs whose loss does not fit or is unsafe numerically, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing


def categorical_of_one(loss: str = "categorical_crossentropy") -> Program:
    """Categorical cross-entropy of a single unit, which it divides by itself."""
    keras.utils.set_random_seed(510)
    x, y = data.breast_cancer()
    model = keras.Sequential(
        [
            layers.Input((30,)),
            layers.Dense(24, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile("adam", loss, metrics=["binary_accuracy"])
    return Program(model, data.standardized(x), y.astype("float32")[:, None], batch_size=16, epochs=10)


def relu_before_cross_entropy(activation: str = "relu") -> Program:
    """Cross-entropy of what a ReLU gives, as if it were probabilities."""
    keras.utils.set_random_seed(52)
    x, y = data.mnist(1500)
    inputs = keras.Input((28, 28, 1))
    hidden = layers.Conv2D(16, 3, activation="relu")(inputs)
    hidden = layers.MaxPooling2D(4)(hidden)
    hidden = layers.Dense(64, activation="relu")(layers.Flatten()(hidden))
    model = keras.Model(inputs, layers.Dense(10, activation=activation)(hidden))
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[..., None] / 255, keras.utils.to_categorical(y), batch_size=32, epochs=5)


def plus_minus_one(low: float = -1.0) -> Program:
    """Labels -1 and 1 under binary cross-entropy."""
    keras.utils.set_random_seed(53)
    rng = np.random.default_rng(7)
    angle = rng.uniform(0, np.pi, 1200)
    kind = rng.integers(0, 2, 1200)
    x = np.stack([np.cos(angle) * (1 - 2 * kind) + kind, np.sin(angle) * (1 - 2 * kind) + kind * 0.5], 1)
    x = (x + rng.normal(scale=0.1, size=x.shape)).astype("float32")
    y = np.where(kind == 1, 1.0, low).astype("float32")
    model = keras.Sequential(
        [
            layers.Input((2,)),
            layers.Dense(32, activation="relu"),
            layers.Dense(32, activation="relu"),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x, y[:, None], batch_size=32, epochs=10)


class OwnStep(keras.Model):
    """A step of its own that subtracts (n, 1) from (n,)."""

    def __init__(self, flat: bool):
        super().__init__()
        self.flat = flat
        self.net = keras.Sequential(
            [layers.Dense(32, activation="relu"), layers.Dense(32, activation="relu"), layers.Dense(1)]
        )
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.loss_tracker]

    def call(self, x):
        return self.net(x)

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            y = tf.reshape(y, [-1])
            loss = tf.reduce_mean(tf.square(y - (predicted[:, 0] if self.flat else predicted)))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


def broadcast_loss(flat: bool = False) -> Program:
    """Every prediction is compared with every target, since a column is subtracted from a row."""
    keras.utils.set_random_seed(54)
    x, y = data.auto_mpg()
    model = OwnStep(flat)
    model(np.zeros((1, 7), "float32"))
    model.compile(optimizer=optimizers.Adam(0.005))
    return Program(model, data.standardized(x[:, :7]), data.standardized(y), batch_size=32, epochs=20)


def relative_error(floor: float = 0.0) -> Program:
    """An error relative to counts, many of which are 0."""
    keras.utils.set_random_seed(55)
    x, _ = data.digits()
    ink = (x[:, 56:] > 8).sum(1).astype("float32")  # often 0

    def percentage(true, pred):
        return ops.mean(ops.abs(true - pred) / (true + floor))

    inputs = keras.Input((64,))
    hidden = layers.Dense(64, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile(optimizers.Adam(0.003), percentage)
    return Program(model, x / 16, ink[:, None], batch_size=32, epochs=10)


class Displacement(keras.Model):
    """Position plus a displacement that begins at zero, with a penalty on its length."""

    def __init__(self, safe: bool):
        super().__init__()
        self.hidden = layers.Dense(32, activation="tanh")
        self.move = layers.Dense(3, kernel_initializer="zeros")
        self.safe = safe

    def call(self, x):
        displacement = self.move(self.hidden(x))
        length = ops.sqrt(ops.sum(ops.square(displacement), axis=-1) + (1e-8 if self.safe else 0.0))
        self.add_loss(0.01 * ops.mean(length))
        return x[:, :3] + displacement


def zero_displacement(safe: bool = False) -> Program:
    """The length of a displacement that begins at zero, where the square root's slope has no bound."""
    keras.utils.set_random_seed(56)
    rng = np.random.default_rng(8)
    x = rng.normal(size=(1200, 6)).astype("float32")
    y = (x[:, :3] + 0.8 * np.tanh(x[:, 3:] @ rng.normal(size=(3, 3)))).astype("float32")
    model = Displacement(safe)
    model(np.zeros((1, 6), "float32"))
    model.compile(optimizers.Adam(0.01), "mse")
    return Program(model, x, y, batch_size=32, epochs=8)


def own_softmax(safe: bool = False) -> Program:
    """Softmax as exp over the sum of exp, on logits that reach some hundreds."""
    keras.utils.set_random_seed(57)
    x, y = data.digits()

    def softmax(logits):
        powers = ops.exp(logits)
        return powers / ops.sum(powers, axis=-1, keepdims=True)

    inputs = keras.Input((64,))
    hidden = layers.Dense(256, activation="relu", kernel_initializer="he_normal")(inputs)
    hidden = layers.Dense(256, activation="relu", kernel_initializer="he_normal")(hidden)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax" if safe else softmax)(hidden))
    model.compile(optimizers.Adam(0.001), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x * 3, y, batch_size=32, epochs=8)


CASES = (
    failing(
        "categorical_loss_of_one_unit",
        categorical_of_one,
        "Stack Overflow 42081257 on binary against categorical cross-entropy",
        "loss_output_mismatch",
        loss="binary_crossentropy",
    ),
    failing(
        "relu_before_crossentropy",
        relu_before_cross_entropy,
        "Stack Overflow on relu as last activation with categorical_crossentropy",
        "loss_output_mismatch",
        ("dead_units",),
        activation="softmax",
    ),
    failing(
        "labels_minus_one_and_one",
        plus_minus_one,
        "Stack Overflow: negative binary cross-entropy in Keras, labels -1 and 1",
        "loss_output_mismatch",
        low=0.0,
    ),
    failing(
        "squares_that_broadcast",
        broadcast_loss,
        "TensorFlow issues on (n,) minus (n, 1) in own losses",
        "loss_output_mismatch",
        flat=True,
    ),
    failing(
        "relative_error_of_zero",
        relative_error,
        "keras issues on mean_absolute_percentage_error with targets of 0",
        "unsafe_loss",
        floor=1.0,
    ),
    failing(
        "length_of_no_displacement",
        zero_displacement,
        "keras issue 9097 on the square root at 0; JAX FAQ on gradients of norms",
        "unsafe_loss",
        safe=True,
    ),
    failing(
        "softmax_by_hand",
        own_softmax,
        "Stack Overflow 42599498, 'Numerically stable softmax'",
        "unsafe_loss",
        ("unscaled_inputs",),
        safe=True,
    ),
)
