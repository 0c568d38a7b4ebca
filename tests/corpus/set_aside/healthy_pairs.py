"""Sound programs with pairs, frozen words or two nets that a hasty rule would take for sick ones."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


class Siamese(keras.Model):
    """The distance of the codes of two pictures."""

    def __init__(self):
        super().__init__()
        self.net = keras.Sequential([layers.Dense(48, activation="relu"), layers.Dense(12)])

    def call(self, pair):
        difference = self.net(pair[:, 0]) - self.net(pair[:, 1])
        return ops.sqrt(ops.sum(difference * difference, axis=-1, keepdims=True) + 1e-7)


def contrastive_pairs() -> Program:
    """Pairs of digits under a contrastive loss."""
    keras.utils.set_random_seed(407)
    x, y = data.digits()
    rng = np.random.default_rng(1)
    i, j = rng.integers(0, len(x), (2, 2400))
    places = [np.flatnonzero(y == digit) for digit in range(10)]
    j[::2] = [rng.choice(places[y[k]]) for k in i[::2]]
    same = (y[i] == y[j]).astype("float32")[:, None]

    def loss(true, distance):
        return ops.mean(true * ops.square(distance) + (1 - true) * ops.square(ops.maximum(1 - distance, 0)))

    def right(true, distance):
        return ops.mean(ops.cast((distance < 0.5) == (true > 0.5), "float32"))

    model = Siamese()
    model.compile(optimizers.RMSprop(0.001), loss, metrics=[right])
    return Program(model, np.stack([x[i], x[j]], 1) / 16, same, batch_size=64, epochs=8)


def frozen_table() -> Program:
    """Random word vectors that are not trained, and a convolution over them."""
    keras.utils.set_random_seed(408)
    x, y = data.source_tokens(1400)
    model = keras.Sequential(
        [
            layers.Input((40,)),
            layers.Embedding(1000, 64, embeddings_initializer=initializers.RandomNormal(stddev=0.4), trainable=False),
            layers.Conv1D(64, 3, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizers.Adam(0.002), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1100], y[:1100], batch_size=32, epochs=5, validation_data=(x[1100:], y[1100:]))


class Gan(keras.Model):
    """Generator and discriminator, trained in one step."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential(
            [layers.Input((8,)), layers.Dense(64, activation="relu"), layers.Dense(64, activation="sigmoid")]
        )
        self.discriminator = keras.Sequential(
            [layers.Input((64,)), layers.Dense(48), layers.LeakyReLU(0.2), layers.Dropout(0.3), layers.Dense(1)]
        )
        self.seed = keras.random.SeedGenerator(7)
        self.cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
        self.trackers = [keras.metrics.Mean(name="loss"), keras.metrics.Mean(name="g_loss")]

    @property
    def metrics(self):
        return self.trackers

    def compile(self, d_optimizer, g_optimizer):
        super().compile(optimizer=d_optimizer)
        self.g_optimizer = g_optimizer

    def call(self, z):
        return self.generator(z)

    def train_step(self, batch):
        real = batch[0] if isinstance(batch, tuple) else batch
        n = ops.shape(real)[0]
        z = keras.random.normal((n, 8), seed=self.seed)
        with tf.GradientTape(persistent=True) as tape:
            fake = self.discriminator(self.generator(z, training=True), training=True)
            true = self.discriminator(real, training=True)
            d_loss = self.cross_entropy(ops.ones_like(true) * 0.9, true) + self.cross_entropy(
                ops.zeros_like(fake), fake
            )
            g_loss = self.cross_entropy(ops.ones_like(fake), fake)
        self.optimizer.apply_gradients(
            zip(
                tape.gradient(d_loss, self.discriminator.trainable_weights),
                self.discriminator.trainable_weights,
                strict=True,
            )
        )
        self.g_optimizer.apply_gradients(
            zip(tape.gradient(g_loss, self.generator.trainable_weights), self.generator.trainable_weights, strict=True)
        )
        self.trackers[0].update_state(d_loss)
        self.trackers[1].update_state(g_loss)
        return {tracker.name: tracker.result() for tracker in self.trackers}


def honest_gan() -> Program:
    """A generator and a discriminator in balance."""
    keras.utils.set_random_seed(409)
    x, _ = data.digits()
    model = Gan()
    model.compile(optimizers.Adam(3e-4, beta_1=0.5), optimizers.Adam(1e-3, beta_1=0.5))
    return Program(model, (x / 16).astype("float32"), None, batch_size=64, epochs=10)


CASES = (
    Case(
        "contrastive_pairs",
        contrastive_pairs,
        "Keras example 'Image similarity estimation using a Siamese Network with a contrastive loss'",
    ),
    Case("word_vectors_that_stay", frozen_table, "Keras example 'Using pre-trained word embeddings'"),
    Case("honest_gan", honest_gan, "Keras guide 'Customizing what happens in fit()': the GAN"),
)
