"""Programs that learn: sequences, likelihoods, generators, pairs, models with a step of their own."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests.corpus import data
from tests.corpus.case import Case, Program
from tests.corpus.fresh.attention import Attention, Block, masked_classifier, transformer
from tests.corpus.fresh.common import column, compiled, dense_net, pendulum, ratings, ring, wave_windows
from tests.corpus.fresh.generators import (
    Adversaries,
    Denoiser,
    cross_entropy_of_logits,
    earth_mover,
    fool,
    lift,
    scaled_digits,
)
from tests.corpus.fresh.likelihoods import Autoencoder, gaussian_loss, squared_error
from tests.corpus.fresh.pairs import Distance, Triplets, TwoViews, contrastive, digit_pairs, factors
from tests.corpus.fresh.physics import Equation, decay_residual

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def memory_with_clip() -> Program:
    keras.utils.set_random_seed(231)
    x, y = wave_windows(500, 60)
    model = keras.Sequential([keras.Input((60, 1)), layers.LSTM(24), layers.Dense(1)])
    compiled(model, keras.optimizers.Adam(0.01, clipnorm=1.0), "mse")
    return Program(model, x, data.standardized(y), 32, 12)


def letters_with_clip() -> Program:
    keras.utils.set_random_seed(232)
    x, y, number = data.characters(12, 3000)
    model = keras.Sequential([keras.Input((12,)), layers.Embedding(number, 24), layers.GRU(48), layers.Dense(number)])
    compiled(model, keras.optimizers.RMSprop(5e-3, global_clipnorm=0.5), LOGITS, ["accuracy"])
    return Program(model, x, y, 32, 6)


def rows_before_the_norm() -> Program:
    keras.utils.set_random_seed(233)
    return transformer(False, 3, 2e-3, epochs=8)


def words_with_padding() -> Program:
    keras.utils.set_random_seed(234)
    return masked_classifier(Attention(32, -1e9), empty=0)


def letters_that_look_back() -> Program:
    keras.utils.set_random_seed(235)
    x, y, number = data.characters(16, 1500)
    following = np.concatenate([x[:, 1:], y[:, None]], axis=1)
    inputs = keras.Input((16,), dtype="int32")
    hidden = layers.Embedding(number, 32)(inputs)
    attended = layers.MultiHeadAttention(2, 16)(hidden, hidden, use_causal_mask=True)
    hidden = layers.LayerNormalization()(hidden + attended)
    model = keras.Model(inputs, layers.Dense(number)(layers.Dense(64, "relu")(hidden)))
    compiled(model, keras.optimizers.Adam(5e-3), LOGITS, ["accuracy"])
    return Program(model, x, following, 32, 8)


def deviation_made_positive() -> Program:
    keras.utils.set_random_seed(236)
    x, y = pendulum()
    model = dense_net(4, [48, 48], 2, "tanh")
    compiled(model, keras.optimizers.Adam(3e-3), gaussian_loss(True))
    return Program(model, data.standardized(x), data.standardized(y), 32, 20)


def variational_digits() -> Program:
    keras.utils.set_random_seed(237)
    model = Autoencoder(64, squared_error, 6)
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    return Program(model, scaled_digits(), None, 32, 12)


def ring_of_adversaries() -> Program:
    keras.utils.set_random_seed(238)
    model = Adversaries(dense_net(4, [32, 32], 2), dense_net(2, [64, 64], 1), (cross_entropy_of_logits, fool))
    model.compile(5e-3, 5e-3)
    return Program(model, ring(1024), None, 64, 40)


def ring_of_a_clipped_critic() -> Program:
    keras.utils.set_random_seed(239)
    nets = dense_net(4, [32, 32], 2), dense_net(2, [64, 64], 1)
    model = Adversaries(*nets, (earth_mover, lift), limit=0.2)
    model.compile(5e-3, 2e-3)
    return Program(model, ring(1024), None, 64, 80)


def noise_of_digits() -> Program:
    keras.utils.set_random_seed(240)
    model = Denoiser(dense_net(66, [128, 128], 64), 0.95)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    return Program(model, scaled_digits(), None, 64, 15)


def decay_and_its_equation() -> Program:
    keras.utils.set_random_seed(241)
    time = np.random.default_rng(2).uniform(0, 1, (800, 1)).astype("float32")
    model = Equation(dense_net(1, [24, 24], 1, "tanh"), decay_residual(3.0), 0.1)
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    return Program(model, time, np.exp(-3.0 * time), 50, 25)


def pairs_of_digits() -> Program:
    keras.utils.set_random_seed(242)
    x, same = digit_pairs(0)
    tower = dense_net(64, [64], 16)
    left, right = keras.Input((64,)), keras.Input((64,))
    model = keras.Model([left, right], Distance(1e-6)([tower(left), tower(right)]))
    compiled(model, keras.optimizers.Adam(1e-3), contrastive())
    return Program(model, x, same, 32, 12)


def views_of_digits() -> Program:
    keras.utils.set_random_seed(243)
    x, _, _ = data.split_digits()
    model = TwoViews(dense_net(64, [64], 32), 0.1, by_hand=False)
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    return Program(model, x, None, 50, 15)


def triplets_of_digits() -> Program:
    keras.utils.set_random_seed(244)
    x, y, _ = data.split_digits()
    model = Triplets(dense_net(64, [64], 16), 0.3, unit_length=True)
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    return Program(model, x, y.astype("int32"), 50, 20)


def tastes() -> Program:
    keras.utils.set_random_seed(245)
    x, y = ratings()
    return factors(x, y, keras.optimizers.Adam(5e-3), 0.2, 8)


class TwoRates(keras.Model):
    """The loss is computed in the step; body and head have optimizers of their own."""

    def __init__(self, body: keras.Model, head: keras.Model):
        super().__init__()
        self.body, self.head = body, head
        self.total, self.accuracy = keras.metrics.Mean(name="loss"), keras.metrics.SparseCategoricalAccuracy("accuracy")

    @property
    def metrics(self):
        return [self.total, self.accuracy]

    def call(self, x):
        return self.head(self.body(x))

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape(persistent=True) as tape:
            scores = self(x, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, "int32"), scores))
        for optimizer, part in ((self.optimizer, self.body), (self.head_optimizer, self.head)):
            variables = part.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
        self.total.update_state(loss)
        self.accuracy.update_state(y, scores)
        return {metric.name: metric.result() for metric in self.metrics}


def body_and_head_apart() -> Program:
    keras.utils.set_random_seed(246)
    x, y, _ = data.split_digits()
    model = TwoRates(dense_net(64, [64], 32, last="relu"), dense_net(32, [], 10))
    model.head_optimizer = keras.optimizers.SGD(0.2)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    return Program(model, x, y, 32, 10)


def digits_through_a_bottleneck() -> Program:
    keras.utils.set_random_seed(247)
    x, _ = data.digits()
    x = x / 16
    model = dense_net(64, [48, 8, 48], 64, last="sigmoid")
    compiled(model, keras.optimizers.Adam(3e-3), "binary_crossentropy")
    return Program(model, x, x, 32, 15)


def images_with_batch_statistics() -> Program:
    keras.utils.set_random_seed(248)
    x, y, held_out = data.split_digits(images=True)
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for filters in (16, 32):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(10))
    compiled(model, keras.optimizers.SGD(0.05, momentum=0.9), LOGITS, ["accuracy"])
    return Program(model, x, y, 32, 6, held_out)


def next_price() -> Program:
    keras.utils.set_random_seed(249)
    x, y = data.windows(data.standardized(data.daily_prices()), 15)
    model = keras.Sequential([keras.Input((15, 1)), layers.SimpleRNN(16), layers.Dense(1)])
    compiled(model, keras.optimizers.Adam(3e-3), "huber")
    return Program(model, x, column(y), 32, 10)


def one_block_of_composites() -> Program:
    keras.utils.set_random_seed(250)
    x, y = data.digits()
    inner = keras.Sequential([Block(16, False), keras.Sequential([Block(16, False)], name="inner")], name="outer")
    model = keras.Sequential([keras.Input((8, 8)), layers.Dense(16), inner, layers.Flatten(), layers.Dense(10)])
    compiled(model, keras.optimizers.AdamW(2e-3, weight_decay=1e-3), LOGITS, ["accuracy"])
    return Program(model, x.reshape(-1, 8, 8)[:1000] / 16, y[:1000], 32, 8)


BUILDS = {
    memory_with_clip: "Paper: Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent networks",
    letters_with_clip: "Keras example: Character-level text generation, gradients clipped",
    rows_before_the_norm: "Paper: Xiong et al. 2020, normalization before each part, no warm-up",
    words_with_padding: "GitHub, lsdefine/attention-is-all-you-need-keras issue 16: mask of -1e10",
    letters_that_look_back: "Keras example: Text generation with a miniature GPT (causal mask)",
    deviation_made_positive: "Paper: Nix and Weigend 1994, Estimating the mean and variance of the target",
    variational_digits: "Keras example: Variational autoencoder",
    ring_of_adversaries: "GitHub, soumith/ganhacks issue 36: losses of a GAN that balance each other",
    ring_of_a_clipped_critic: "Paper: Arjovsky, Chintala and Bottou 2017, Wasserstein GAN",
    noise_of_digits: "GitHub, albarji/toy-diffusion issue 1: what a small denoiser can reach",
    decay_and_its_equation: "Paper: Raissi, Perdikaris and Karniadakis 2019, Physics-informed neural networks",
    pairs_of_digits: "GitHub, keras-team/keras pull request 6223: siamese example with a floor under the root",
    views_of_digits: "Keras example: Semi-supervised image classification with SimCLR",
    triplets_of_digits: "GitHub, omoindrot/tensorflow-triplet-loss issue 37: vectors of unit length",
    tastes: "Keras example: Collaborative filtering for movie recommendations",
    body_and_head_apart: "Keras documentation, Customizing what happens in fit",
    digits_through_a_bottleneck: "Keras blog: Building autoencoders in Keras",
    images_with_batch_statistics: "Paper: Ioffe and Szegedy 2015, Batch normalization",
    next_price: "Keras example: Timeseries forecasting",
    one_block_of_composites: "Keras documentation, Making new layers and models (layers that hold layers)",
}

CASES = tuple(Case(build.__name__, build, source) for build, source in BUILDS.items())
