"""Siamese and contrastive nets, recommenders."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.fresh.common import compiled, dense_net, ratings


class Distance(layers.Layer):
    """The Euclidean distance of two vectors."""

    def __init__(self, floor: float):
        super().__init__()
        self.floor = floor

    def call(self, pair):
        return ops.sqrt(ops.sum(ops.square(pair[0] - pair[1]), axis=1, keepdims=True) + self.floor)


def contrastive(margin: float = 1.0):
    def loss(same, distance):
        return same * distance + (1.0 - same) * ops.maximum(margin - distance, 0.0)

    return loss


def digit_pairs(identical: int = 20) -> tuple[list[np.ndarray], np.ndarray]:
    x, y = data.digits()
    x, random = x / 16, np.random.default_rng(13)
    first, second = random.integers(0, len(x), (2, 2000))
    for number in range(0, 2000, 2):
        second[number] = random.choice(np.flatnonzero(y == y[first[number]]))
    second[:identical] = first[:identical]
    return [x[first], x[second]], (y[first] == y[second]).astype("float32")[:, None]


def photograph_beside_itself(floor: float = 0.0) -> Program:
    keras.utils.set_random_seed(81)
    x, same = digit_pairs()
    tower = dense_net(64, [64], 16)
    left, right = keras.Input((64,)), keras.Input((64,))
    model = keras.Model([left, right], Distance(floor)([tower(left), tower(right)]))
    compiled(model, "adam", contrastive())
    return Program(model, x, same, 32, 10)


class Triplets(keras.Model):
    """Pull a digit to one of its class, push it from one of another; the step is its own."""

    def __init__(self, tower: keras.Model, margin: float = 0.5, unit_length: bool = False):
        super().__init__()
        self.tower, self.margin, self.unit_length = tower, margin, unit_length
        self.total, self.ordered = keras.metrics.Mean(name="loss"), keras.metrics.Mean(name="ordered")

    @property
    def metrics(self):
        return [self.total, self.ordered]

    def call(self, x):
        return self.tower(x)

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            code = self.tower(x, training=True)
            if self.unit_length:
                code = tf.math.l2_normalize(code, axis=1)
            squares = tf.reduce_sum(code**2, axis=1, keepdims=True)
            distance = tf.maximum(squares - 2.0 * tf.matmul(code, code, transpose_b=True) + tf.transpose(squares), 0.0)
            same = tf.equal(y[:, None], y[None, :])
            hardest = tf.reduce_max(tf.where(same, distance, 0.0), axis=1)
            nearest = tf.reduce_min(tf.where(same, 1e9, distance), axis=1)
            loss = tf.reduce_mean(tf.maximum(hardest - nearest + self.margin, 0.0))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self.total.update_state(loss)
        self.ordered.update_state(tf.cast(hardest < nearest, "float32"))
        return {metric.name: metric.result() for metric in self.metrics}


def faces_on_one_point(rate: float = 0.1) -> Program:
    keras.utils.set_random_seed(82)
    x, y, _ = data.split_digits()
    model = Triplets(dense_net(64, [64, 64], 8))
    model.compile(optimizer=keras.optimizers.Adam(rate))
    return Program(model, x, y.astype("int32"), 50, 25)


class TwoViews(keras.Model):
    """Tell the other view of an image among those of the batch, with exponentials by hand or a log-softmax."""

    def __init__(self, tower: keras.Model, temperature: float, by_hand: bool):
        super().__init__()
        self.tower, self.temperature, self.by_hand = tower, temperature, by_hand
        self.seeds = keras.random.SeedGenerator(8)
        self.total, self.found = keras.metrics.Mean(name="loss"), keras.metrics.Mean(name="found")

    @property
    def metrics(self):
        return [self.total, self.found]

    def call(self, x):
        return self.tower(x)

    def view(self, x):
        code = self.tower(x + 0.15 * keras.random.normal(tf.shape(x), seed=self.seeds), training=True)
        return tf.math.l2_normalize(code, axis=1)

    def train_step(self, batch):
        x = batch[0] if isinstance(batch, tuple) else batch
        with tf.GradientTape() as tape:
            similarity = tf.matmul(self.view(x), self.view(x), transpose_b=True) / self.temperature
            if self.by_hand:
                weight = tf.exp(similarity)
                loss = -tf.reduce_mean(tf.math.log(tf.linalg.diag_part(weight) / tf.reduce_sum(weight, axis=1)))
            else:
                loss = -tf.reduce_mean(tf.linalg.diag_part(tf.nn.log_softmax(similarity)))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        hit = tf.equal(tf.argmax(similarity, axis=1), tf.range(tf.shape(x)[0], dtype="int64"))
        self.total.update_state(loss)
        self.found.update_state(tf.cast(hit, "float32"))
        return {metric.name: metric.result() for metric in self.metrics}


def cold_similarity(by_hand: bool = True) -> Program:
    keras.utils.set_random_seed(83)
    x, _, _ = data.split_digits()
    model = TwoViews(dense_net(64, [64], 32), 0.01, by_hand)
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    return Program(model, x, None, 50, 20)


def factors(
    x: list[np.ndarray], y: np.ndarray, optimizer: keras.Optimizer, deviation: float, epochs: int = 12
) -> Program:
    start = keras.initializers.RandomNormal(0.0, deviation, seed=6)
    user, item = keras.Input((1,), dtype="int32"), keras.Input((1,), dtype="int32")
    vectors = [
        layers.Flatten()(layers.Embedding(number, 16, embeddings_initializer=start.clone())(index))
        for number, index in ((150, user), (100, item))
    ]
    bias = layers.Flatten()(layers.Embedding(100, 1)(item))
    score = layers.Dense(1)(layers.Concatenate()([layers.Dot(1)(vectors), bias]))
    model = keras.Model([user, item], score)
    compiled(model, optimizer, "mse")
    return Program(model, x, y, 32, epochs)


def tastes_of_great_length(deviation: float = 6.0) -> Program:
    keras.utils.set_random_seed(84)
    x, y = ratings()
    return factors(x, y, keras.optimizers.SGD(0.4), deviation, 15)


def tastes_that_never_move(rate: float = 1e-5) -> Program:
    keras.utils.set_random_seed(85)
    x, y = ratings()
    return factors(x, y, keras.optimizers.Adam(rate), 0.1)


def rating_typed_twice(removed: bool = False) -> Program:
    keras.utils.set_random_seed(86)
    x, y = ratings()
    y[1234] = 4.0 if removed else 4.4e8
    return factors(x, y, keras.optimizers.Adam(5e-3), 0.3)


CASES = (
    failing(
        "photograph_beside_itself",
        photograph_beside_itself,
        "GitHub, keras-team/keras issue 9097: NaN with the distance of two equal inputs",
        "unsafe_arithmetic",
        ("unsafe_loss",),
        floor=1e-6,
    ),
    failing(
        "faces_on_one_point",
        faces_on_one_point,
        "GitHub, omoindrot/tensorflow-triplet-loss issues 6, 18 and 38: the loss stays at the margin",
        "learning_rate_too_high",
        ("dead_units",),
        rate=1e-3,
    ),
    failing(
        "cold_similarity",
        cold_similarity,
        "GitHub, Lightning-Universe/lightning-bolts issue 811: overflow at low temperatures",
        "unsafe_loss",
        by_hand=False,
    ),
    failing(
        "tastes_of_great_length",
        tastes_of_great_length,
        "Paper: Koren, Bell and Volinsky 2009, Matrix factorization techniques; keras-team/keras issue 10273: range",
        "embedding_spike",
        ("exploding_initialization", "learning_rate_too_high"),
        deviation=0.3,
    ),
    failing(
        "tastes_that_never_move",
        tastes_that_never_move,
        "GitHub, keras-team/keras issue 2711: loss not changing when training, learning rate too small",
        "learning_rate_too_low",
        rate=1e-2,
    ),
    failing(
        "rating_typed_twice",
        rating_typed_twice,
        "Web page, theneuralbase.com: NaN loss, learning rate or data (extreme outliers)",
        "corrupt_batch",
        ("unscaled_targets",),
        removed=True,
    ),
)
