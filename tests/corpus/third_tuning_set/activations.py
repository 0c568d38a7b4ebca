"""Programs that fail by units that never fire or grow without bound, and what mends them."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def prior_bias_everywhere(bias: float = -4.6) -> Program:
    """The bias of a rare class, -log((1 - p) / p), given to all layers and not to the last alone."""
    keras.utils.set_random_seed(1004)
    x, y = data.breast_cancer()
    inputs = keras.Input((30,))
    options = dict(activation="relu", bias_initializer=initializers.Constant(bias))
    hidden = layers.Dense(48, **options)(inputs)
    hidden = layers.Dense(48, **options)(hidden)
    a = layers.Dense(24, **options)(hidden)
    b = layers.Dense(24, **options)(hidden)
    model = keras.Model(
        inputs, [layers.Dense(1, activation="sigmoid", name="malignant")(a), layers.Dense(1, name="radius")(b)]
    )
    model.compile(optimizers.Adam(0.002), {"malignant": "binary_crossentropy", "radius": "mse"})
    z = data.standardized(x)
    return Program(model, z, {"malignant": y[:, None].astype("float32"), "radius": z[:, :1]}, batch_size=32, epochs=12)


def threshold_of_three(threshold: float = 3.0) -> Program:
    """`threshold` was taken for `max_value`."""
    keras.utils.set_random_seed(1005)
    x, y, validation = data.split_digits()
    inputs = keras.Input((64,))
    hidden = inputs
    for _ in range(3):
        hidden = layers.Dense(64)(hidden)
        hidden = layers.ReLU(threshold=threshold)(hidden)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(hidden))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=8, validation_data=validation)


def sparse_code(strength: float = 0.3) -> Program:
    """An L1 penalty on the code so strong that no unit of the code fires any more."""
    keras.utils.set_random_seed(1006)
    x, _, _ = data.split_digits()
    inputs = keras.Input((64,))
    code = layers.Dense(64, activation="relu", activity_regularizer=keras.regularizers.L1(strength))(inputs)
    model = keras.Model(inputs, layers.Dense(64, activation="sigmoid")(code))
    model.compile(optimizers.Adam(0.003), "mse", metrics=["mse"])
    return Program(model, x, x, batch_size=32, epochs=12)


def shifted_batch_norm(beta: float = -6.0) -> Program:
    """Batch normalization whose beta begins at -6, before each ReLU."""
    keras.utils.set_random_seed(1007)
    x, y, validation = data.split_digits(images=True)
    inputs = keras.Input((8, 8, 1))
    hidden = inputs
    for filters in (16, 32, 32):
        hidden = layers.Conv2D(filters, 3, padding="same", use_bias=False)(hidden)
        hidden = layers.BatchNormalization(beta_initializer=initializers.Constant(beta))(hidden)
        hidden = layers.ReLU()(hidden)
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(hidden)))
    model.compile(optimizers.SGD(0.05, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=64, epochs=6, validation_data=validation)


class ExponentialUnits(keras.Model):
    """A generalized linear model's link, taken for every layer."""

    def __init__(self, hidden: str):
        super().__init__()
        self.hidden = [layers.Dense(32, activation=hidden) for _ in range(3)]
        self.out = layers.Dense(1, activation="exponential", kernel_initializer="zeros")

    def call(self, x):
        for layer in self.hidden:
            x = layer(x)
        return self.out(x)


def exponential_hidden(hidden: str = "exponential") -> Program:
    """Counts whose logarithm is a smooth function, by a net of exponentials."""
    keras.utils.set_random_seed(1011)
    rng = np.random.default_rng(12)
    x = rng.normal(size=(1500, 8)).astype("float32")
    y = rng.poisson(np.exp(0.6 * np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] + 0.3)).astype("float32")
    model = ExponentialUnits(hidden)
    model.compile(optimizers.Adam(0.003), "poisson")
    model(x[:1])
    return Program(model, x, y[:, None], batch_size=32, epochs=10)


def squares_for_encryption(act: Callable | str = ops.square) -> Program:
    """Only sums and products, as homomorphic encryption wants: x * x for every activation."""
    keras.utils.set_random_seed(1012)
    x, y = data.mnist(1200)
    inputs = keras.Input((28, 28, 1))
    hidden = layers.Conv2D(8, 5, strides=2, activation=act)(inputs)
    hidden = layers.Conv2D(16, 3, strides=2, activation=act)(hidden)
    hidden = layers.Dense(64, activation=act)(layers.Flatten()(hidden))
    hidden = layers.Dense(64, activation=act)(hidden)
    hidden = layers.Dense(64, activation=act)(hidden)
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(optimizers.SGD(0.05, momentum=0.9), LOGITS, metrics=["accuracy"])
    return Program(model, (x[..., None] / 255 - 0.13) / 0.31, y, batch_size=32, epochs=5)


class ScoredSum(layers.Layer):
    """Attention whose weights are exp(score), never divided by their sum."""

    def __init__(self, normalized: bool):
        super().__init__()
        self.q, self.k, self.v = layers.Dense(32), layers.Dense(32), layers.Dense(32)
        self.normalized = normalized

    def call(self, x):
        scores = self.q(x) @ ops.swapaxes(self.k(x), 1, 2)
        weights = ops.softmax(scores / 32**0.5) if self.normalized else ops.exp(scores)
        return x + weights @ self.v(x)


def attention_without_sum(normalized: bool = False) -> Program:
    """Rows of digits through three such layers."""
    keras.utils.set_random_seed(1013)
    x, y, _ = data.split_digits()
    inputs = keras.Input((8, 8))
    hidden = layers.Dense(32)(inputs)
    for _ in range(3):
        hidden = ScoredSum(normalized)(hidden)
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(hidden)))
    model.compile(optimizers.Adam(0.002), LOGITS, metrics=["accuracy"])
    return Program(model, x.reshape(-1, 8, 8), y, batch_size=32, epochs=6)


CASES = (
    failing(
        "prior_bias_in_all_layers",
        prior_bias_everywhere,
        "Lin et al., 1708.02002, on the prior bias of the last layer",
        "dead_units",
        ("vanishing_initialization",),
        bias=0.0,
    ),
    failing(
        "relu_threshold_for_max_value",
        threshold_of_three,
        "Keras' page of ReLU: max_value against threshold",
        "dead_units",
        ("vanishing_initialization",),
        threshold=0.0,
    ),
    failing(
        "code_killed_by_l1",
        sparse_code,
        "Keras blog 'Building autoencoders in Keras', sparse autoencoder; Stack Overflow on its code of zeros",
        "dead_units",
        strength=1e-5,
    ),
    failing(
        "beta_of_minus_six",
        shifted_batch_norm,
        "Lu et al., 1903.06733; Keras' page of BatchNormalization on beta_initializer",
        "dead_units",
        ("vanishing_initialization",),
        beta=0.0,
    ),
    failing(
        "exponential_in_every_layer",
        exponential_hidden,
        "Stack Overflow on activation='exponential' and loss nan in Poisson regression",
        "unbounded_activation",
        hidden="tanh",
    ),
    failing(
        "squares_for_encryption",
        squares_for_encryption,
        "Gilad-Bachrach et al., CryptoNets, on square activations that do not train",
        "unbounded_activation",
        ("exploding_initialization", "learning_rate_too_high"),
        act="relu",
    ),
    failing(
        "attention_by_exp_alone",
        attention_without_sum,
        "Vaswani et al., 1706.03762, section 3.2.1; Stack Overflow on own attention layers that give NaN",
        "unbounded_activation",
        ("missing_normalization", "unsafe_loss", "exploding_initialization"),
        normalized=True,
    ),
)
