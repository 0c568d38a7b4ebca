"""Programs that fail by small batches, and what mends them."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _contrast(queries_and_keys):
    queries, keys = queries_and_keys
    queries = queries / ops.sqrt(ops.sum(queries * queries, -1, keepdims=True) + 1e-6)
    keys = keys / ops.sqrt(ops.sum(keys * keys, -1, keepdims=True) + 1e-6)
    return queries @ ops.transpose(keys) * 10.0


class Contrastive(keras.Model):
    """Halves of digits that belong together against all others of the batch."""

    def __init__(self):
        super().__init__()
        self.left = keras.Sequential([layers.Dense(64, activation="relu"), layers.Dense(16)])
        self.right = keras.Sequential([layers.Dense(64, activation="relu"), layers.Dense(16)])
        self.trackers = [keras.metrics.Mean(name="loss")]

    @property
    def metrics(self):
        return self.trackers

    def call(self, x):
        return self.left(x[:, :32]), self.right(x[:, 32:])

    def train_step(self, batch):
        x = batch[0] if isinstance(batch, tuple) else batch
        with tf.GradientTape() as tape:
            scores = _contrast(self(x, training=True))
            labels = tf.range(tf.shape(scores)[0])
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores))
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
        )
        self.trackers[0].update_state(loss)
        return {"loss": self.trackers[0].result()}


def alone_in_its_batch(batch_size: int = 1) -> Program:
    """A contrast with the others of the batch, where there are no others."""
    keras.utils.set_random_seed(339)
    x, _ = data.digits()
    x = (x / 16).astype("float32")
    model = Contrastive()
    model(x[:2])
    model.compile(optimizer=optimizers.Adam(0.002))
    return Program(
        model, x[:600] if batch_size == 1 else x, None, batch_size=batch_size, epochs=1 if batch_size == 1 else 10
    )


def two_pictures_a_step(batch_size: int = 2) -> Program:
    """BatchNorm over two pictures a step."""
    keras.utils.set_random_seed(340)
    x, y = data.digits()
    x = x.reshape(-1, 8, 8, 1) / 16
    hidden = inputs = keras.Input((8, 8, 1))
    for filters in (16, 16, 32, 32):
        hidden = layers.Conv2D(filters, 3, padding="same", strides=2 if filters == 32 else 1, use_bias=False)(hidden)
        hidden = layers.Activation("relu")(layers.BatchNormalization()(hidden))
    hidden = layers.Flatten()(hidden)
    for _ in range(3):
        hidden = layers.Activation("relu")(layers.BatchNormalization()(layers.Dense(32)(hidden)))
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(optimizers.SGD(0.05, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(
        model,
        x[:800],
        y[:800],
        batch_size=batch_size,
        epochs=2 if batch_size == 2 else 8,
        validation_data=(x[1400:], y[1400:]),
    )


CASES = (
    failing(
        "alone_in_its_batch",
        alone_in_its_batch,
        "Chen et al., 2002.05709: in-batch negatives need large batches",
        "batch_too_small",
        ("loss_output_mismatch",),
        batch_size=64,
    ),
    failing(
        "two_pictures_a_step",
        two_pictures_a_step,
        "YvanYin/GoalFlow issue 17; Wu, He, 1803.08494",
        "batch_too_small",
        ("learning_rate_too_high",),
        batch_size=32,
    ),
)
