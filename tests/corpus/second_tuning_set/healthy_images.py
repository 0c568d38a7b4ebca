"""Sound programs on pictures that a hasty rule would take for sick ones."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mobile_net_v2() -> Program:
    """A small MobileNetV2 from random weights."""
    keras.utils.set_random_seed(201)
    x, y = data.mnist(1000)
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)))[..., None].repeat(3, -1) / 127.5 - 1
    base = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None, pooling="max")
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # with the application's 0.999 the moving averages stay, and evaluate is at chance
    model = keras.Sequential([layers.Input((32, 32, 3)), base, layers.Dense(10, activation="softmax")])
    model.compile(optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=50, epochs=5)


def rescaled_pixels() -> Program:
    """A convnet that scales its pixels itself."""
    keras.utils.set_random_seed(202)
    x, y = data.mnist(1500)
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Rescaling(1.0 / 255),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    model.compile("adam", LOGITS, metrics=["accuracy"])
    return Program(model, x[..., None], y, epochs=4)


def raw_pixels_into_batch_norm() -> Program:
    """Pixels from 0 to 255 into BatchNorm."""
    keras.utils.set_random_seed(203)
    x, y = data.mnist(1500)
    inputs = keras.Input((28, 28, 1))
    hidden = layers.BatchNormalization()(inputs)
    for filters in (12, 24):
        hidden = layers.Conv2D(filters, 3, strides=2, use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(hidden)))
    model.compile(optimizers.SGD(0.02, momentum=0.9), "categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[..., None], keras.utils.to_categorical(y), batch_size=64, epochs=4)


def convnet_in_bfloat16() -> Program:
    """A convnet in bfloat16, its logits in float32."""
    keras.utils.set_random_seed(204)
    x, y, validation = data.split_digits(images=True)
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(32, 3, activation="relu")(inputs)
    hidden = layers.Conv2D(32, 3, activation="relu")(hidden)
    hidden = layers.Dropout(0.25)(layers.Flatten()(hidden))
    model = keras.Model(inputs, layers.Dense(10, dtype="float32")(hidden))
    model.compile(optimizers.Adam(0.002), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8, validation_data=validation)


def transferred() -> Program:
    """Trained on 0 to 4, frozen, and a new head for 5 to 9."""
    keras.utils.set_random_seed(205)
    x, y = data.digits()
    x = x / 16
    base = keras.Sequential(
        [layers.Input((64,)), layers.Dense(96, activation="relu"), layers.Dense(48, activation="relu")]
    )
    first = keras.Sequential([base, layers.Dense(5)])
    first.compile("adam", LOGITS)
    first.fit(x[y < 5], y[y < 5], epochs=5, verbose=0)
    base.trainable = False
    inputs = keras.Input((64,))
    model = keras.Model(inputs, layers.Dense(5)(base(inputs, training=False)))
    model.compile(optimizers.Adam(0.01), LOGITS, metrics=["accuracy"])
    return Program(model, x[y >= 5], y[y >= 5] - 5, batch_size=32, epochs=10)


class Vae(keras.Model):
    """Encoder, one sample of the code, decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([layers.Dense(128, activation="relu"), layers.Dense(16)])
        self.decoder = keras.Sequential([layers.Dense(128, activation="relu"), layers.Dense(784, activation="sigmoid")])
        self.seed = keras.random.SeedGenerator(5)
        self.trackers = [keras.metrics.Mean(name=n) for n in ("loss", "reconstruction", "kl")]

    @property
    def metrics(self):
        return self.trackers

    def call(self, x):
        mean, log_variance = ops.split(self.encoder(x), 2, axis=1)
        z = mean + ops.exp(0.5 * log_variance) * keras.random.normal(ops.shape(mean), seed=self.seed)
        return mean, log_variance, self.decoder(z)

    def train_step(self, batch):
        x = batch[0] if isinstance(batch, tuple) else batch
        with tf.GradientTape() as tape:
            mean, log_variance, out = self(x, training=True)
            reconstruction = ops.mean(ops.sum(ops.binary_crossentropy(x, out), axis=1))
            divergence = -0.5 * ops.mean(ops.sum(1 + log_variance - ops.square(mean) - ops.exp(log_variance), axis=1))
            loss = reconstruction + divergence
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
        )
        for tracker, value in zip(self.trackers, (loss, reconstruction, divergence), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}


def variational_autoencoder() -> Program:
    """Pixels from 0 to 1 into a variational autoencoder."""
    keras.utils.set_random_seed(206)
    x, _ = data.mnist(2000)
    model = Vae()
    model(np.zeros((1, 784), "float32"))
    model.compile(optimizer=optimizers.Adam(0.001))
    return Program(model, (x.reshape(-1, 784) / 255).astype("float32"), None, batch_size=64, epochs=8)


class Wgan(keras.Model):
    """WGAN with gradient penalty; its losses may be negative."""

    def __init__(self):
        super().__init__()

        def leak():
            return layers.LeakyReLU(negative_slope=0.2)

        self.generator = keras.Sequential(
            [layers.Input((8,)), layers.Dense(64, activation="relu"), layers.Dense(64, activation="sigmoid")]
        )
        self.critic = keras.Sequential(
            [layers.Input((64,)), layers.Dense(64), leak(), layers.Dense(64), leak(), layers.Dense(1)]
        )
        self.seed = keras.random.SeedGenerator(6)
        self.trackers = [keras.metrics.Mean(name=n) for n in ("loss", "generator_loss")]

    @property
    def metrics(self):
        return self.trackers

    def compile(self, optimizer, generator_optimizer):
        super().compile(optimizer=optimizer)
        self.generator_optimizer = generator_optimizer

    def call(self, z):
        return self.critic(self.generator(z))

    def train_step(self, batch):
        real = batch[0] if isinstance(batch, tuple) else batch
        n = ops.shape(real)[0]
        for _ in range(2):
            fake = self.generator(keras.random.normal((n, 8), seed=self.seed))
            with tf.GradientTape() as tape:
                share = keras.random.uniform((n, 1), seed=self.seed)
                mixed = share * real + (1 - share) * fake
                with tf.GradientTape() as inner:
                    inner.watch(mixed)
                    score = self.critic(mixed)
                slope = inner.gradient(score, mixed)
                norm = ops.sqrt(ops.sum(ops.square(slope), axis=1) + 1e-12)
                loss = ops.mean(self.critic(fake)) - ops.mean(self.critic(real)) + 10 * ops.mean(ops.square(norm - 1))
            weights = self.critic.trainable_weights
            self.optimizer.apply(tape.gradient(loss, weights), weights)
        with tf.GradientTape() as tape:
            generator_loss = -ops.mean(self(keras.random.normal((n, 8), seed=self.seed)))
        weights = self.generator.trainable_weights
        self.generator_optimizer.apply(tape.gradient(generator_loss, weights), weights)
        for tracker, value in zip(self.trackers, (loss, generator_loss), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}


def wgan() -> Program:
    """A critic that takes two steps for each step of the generator."""
    keras.utils.set_random_seed(207)
    x, _ = data.digits()
    model = Wgan()
    model.compile(optimizers.Adam(2e-4, beta_1=0.0, beta_2=0.9), optimizers.Adam(2e-4, beta_1=0.0, beta_2=0.9))
    return Program(model, (x / 16).astype("float32"), None, batch_size=64, epochs=10)


def heavy_dropout() -> Program:
    """Dropout of 0.6 and weights of a bounded norm."""
    keras.utils.set_random_seed(208)
    x, y = data.mnist(2500)
    model = keras.Sequential([layers.Input((784,)), layers.Dropout(0.2)])
    for _ in range(2):
        model.add(layers.Dense(256, activation="relu", kernel_constraint=keras.constraints.MaxNorm(3)))
        model.add(layers.Dropout(0.6))
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(
        model,
        x[:2000].reshape(-1, 784) / 255,
        y[:2000],
        batch_size=64,
        epochs=8,
        validation_data=(x[2000:].reshape(-1, 784) / 255, y[2000:]),
    )


def noisy_labels() -> Program:
    """Digits, a third of whose labels are drawn at random."""
    keras.utils.set_random_seed(209)
    x, y, validation = data.split_digits()
    rng = np.random.default_rng(11)
    wrong = rng.uniform(size=len(y)) < 0.35
    y = np.where(wrong, rng.integers(0, 10, len(y)), y)
    model = keras.Sequential([layers.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(10)])
    model.compile(optimizers.Adam(0.001), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=10, validation_data=validation)


def very_wide() -> Program:
    """One layer of two thousand units."""
    keras.utils.set_random_seed(210)
    x, y, validation = data.split_digits()
    model = keras.Sequential(
        [layers.Input((64,)), layers.Dense(2000, activation="relu", kernel_initializer="he_normal"), layers.Dense(10)]
    )
    model.compile(optimizers.SGD(0.02), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=5, validation_data=validation)


CASES = (
    Case("mobile_net_v2_small", mobile_net_v2, "Keras applications, MobileNetV2 with weights=None"),
    Case("pixels_through_rescaling", rescaled_pixels, "TensorFlow tutorial 'Load and preprocess images'"),
    Case("raw_pixels_into_batch_norm", raw_pixels_into_batch_norm, "Ioffe, Szegedy, 1502.03167"),
    Case("convnet_in_bfloat16", convnet_in_bfloat16, "Keras guide on mixed precision", needs="mixed_bfloat16"),
    Case("new_head_on_frozen_base", transferred, "Keras guide 'Transfer learning and fine-tuning'"),
    Case("vae_on_scaled_pixels", variational_autoencoder, "Keras example 'Variational AutoEncoder'"),
    Case("wgan_with_gradient_penalty", wgan, "Keras example 'WGAN-GP overriding Model.train_step'"),
    Case("heavy_dropout_and_max_norm", heavy_dropout, "Srivastava et al., JMLR 2014"),
    Case("a_third_of_labels_wrong", noisy_labels, "Zhang et al., 1611.03530, on noisy labels"),
    Case("two_thousand_units", very_wide, "scikit-learn digits by a wide net"),
)
