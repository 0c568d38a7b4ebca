"""Programs on tables and images that learn, and that may look ill."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from tests.corpus import data
from tests.corpus.case import Case, Program
from tests.corpus.fresh.common import ballistic_range, column, compiled, dense_net, pendulum, source_task, target_task

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def one_unit() -> Program:
    keras.utils.set_random_seed(201)
    x, y = data.iris()
    model = dense_net(4, [], 1, last="sigmoid")
    compiled(model, keras.optimizers.SGD(0.5), "binary_crossentropy", ["accuracy"])
    return Program(model, data.standardized(x), column(y == 0), 16, 10)


def sample_by_sample() -> Program:
    keras.utils.set_random_seed(202)
    x, y = data.breast_cancer()
    model = dense_net(30, [16], 1, last="sigmoid")
    compiled(model, keras.optimizers.SGD(0.01), "binary_crossentropy", ["accuracy"])
    return Program(model, data.standardized(x)[:300], column(y)[:300], 1, 3)


def already_converged() -> Program:
    keras.utils.set_random_seed(203)
    x, y = data.wine()
    x = data.standardized(x)
    model = dense_net(13, [24], 3)
    compiled(model, keras.optimizers.Adam(0.01), LOGITS, ["accuracy"])
    model.fit(x, y, batch_size=32, epochs=60, verbose=0)
    return Program(model, x, y, 32, 10)


def high_and_stable() -> Program:
    keras.utils.set_random_seed(204)
    x, y, held_out = data.split_digits()
    model = dense_net(64, [64], 10)
    compiled(model, keras.optimizers.SGD(0.8), LOGITS, ["accuracy"])
    return Program(model, x, y, 64, 15, held_out)


def metres_behind_a_scale() -> Program:
    keras.utils.set_random_seed(205)
    x, y = ballistic_range()
    net = dense_net(3, [64, 64], 1)
    net.add(layers.Rescaling(float(y.std()), float(y.mean())))
    compiled(net, keras.optimizers.Adam(3e-3), "mse")
    return Program(net, data.standardized(x), y, 32, 25)


def dozens_with_adam() -> Program:
    keras.utils.set_random_seed(206)
    x, y = data.boston()
    model = dense_net(13, [64, 64], 1)
    compiled(model, keras.optimizers.Adam(5e-3), "mae")
    return Program(model, data.standardized(x), column(y), 16, 30)


def frozen_body() -> Program:
    keras.utils.set_random_seed(207)
    body = source_task()
    body.trainable = False
    x, y = target_task()
    model = keras.Sequential([keras.Input((64,)), body, layers.Dense(5, "softmax")])
    compiled(model, keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x, y, 32, 15)


class Normalized(layers.Layer):
    """x + f(norm(x))."""

    def __init__(self, units: int):
        super().__init__()
        self.norm = layers.LayerNormalization()
        self.first = layers.Dense(units, "gelu")
        self.second = layers.Dense(units, kernel_initializer=keras.initializers.RandomNormal(0.0, 0.02, seed=1))

    def call(self, x):
        return x + self.second(self.first(self.norm(x)))


def deep_and_residual() -> Program:
    keras.utils.set_random_seed(208)
    x, y, held_out = data.split_digits()
    blocks = [Normalized(48) for _ in range(16)]
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(48), *blocks, layers.LayerNormalization(), layers.Dense(10)]
    )
    compiled(model, keras.optimizers.Adam(1e-3), LOGITS, ["accuracy"])
    return Program(model, x, y, 32, 6, held_out)


class Gated(layers.Layer):
    """x + gate * f(x), the gate zero at the start."""

    def __init__(self, units: int):
        super().__init__()
        self.inner = layers.Dense(units, "relu", kernel_initializer="he_normal")

    def build(self, shape):
        self.gate = self.add_weight(shape=(), initializer="zeros", name="gate")
        self.inner.build(shape)

    def call(self, x):
        return x + self.gate * self.inner(x)


def gates_closed_at_the_start() -> Program:
    keras.utils.set_random_seed(209)
    x, y, held_out = data.split_digits()
    blocks = [Gated(48) for _ in range(12)]
    model = keras.Sequential([keras.Input((64,)), layers.Dense(48), *blocks, layers.Dense(10)])
    compiled(model, keras.optimizers.Adam(3e-3), LOGITS, ["accuracy"])
    return Program(model, x, y, 32, 8, held_out)


def few_of_one_class() -> Program:
    keras.utils.set_random_seed(210)
    x, y = data.breast_cancer()
    kept = np.concatenate([np.flatnonzero(y == 1), np.flatnonzero(y == 0)[:22]])
    x, y = data.shuffled(data.standardized(x)[kept], column(1 - y[kept]))
    model = dense_net(30, [16], 1, last="sigmoid")
    compiled(model, keras.optimizers.Adam(3e-3), "binary_crossentropy", [keras.metrics.AUC(name="auc")])
    return Program(model, x, y, 32, 20)


def mostly_noise() -> Program:
    keras.utils.set_random_seed(211)
    random = np.random.default_rng(21)
    x = random.normal(0, 1, (1500, 6)).astype("float32")
    y = column(0.7 * x[:, 0] - 0.5 * x[:, 1] * x[:, 2] + random.normal(0, 1.3, 1500))
    model = dense_net(6, [24], 1)
    compiled(model, keras.optimizers.Adam(3e-3), "mse")
    return Program(model, x, y, 32, 15)


def self_normalizing() -> Program:
    keras.utils.set_random_seed(212)
    x, y, held_out = data.split_digits()
    model = dense_net(64, [48] * 12, 10, "selu", initializer="lecun_normal")
    compiled(model, keras.optimizers.SGD(0.02), LOGITS, ["accuracy"])
    return Program(model, data.standardized(x), y, 32, 12, (data.standardized(held_out[0]), held_out[1]))


def words_of_a_bag() -> Program:
    keras.utils.set_random_seed(213)
    tokens, labels = data.source_tokens(1400, 900)
    bag = np.zeros((len(tokens), 900), "float32")
    np.put_along_axis(bag, tokens, 1.0, axis=1)
    model = dense_net(900, [24], 3)
    compiled(model, keras.optimizers.Adam(1e-3), LOGITS, ["accuracy"])
    return Program(model, bag[:1100], labels[:1100], 32, 10, (bag[1100:], labels[1100:]))


def half_of_the_units_dropped() -> Program:
    keras.utils.set_random_seed(214)
    x, y, held_out = data.split_digits()
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(2):
        model.add(layers.Dense(96, "relu"))
        model.add(layers.Dropout(0.5, seed=3))
    model.add(layers.Dense(10))
    compiled(model, keras.optimizers.Adam(2e-3), LOGITS, ["accuracy"])
    return Program(model, x, y, 32, 12, held_out)


class Sine(layers.Layer):
    """sin(frequency * (W x + b)) with the start its paper gives."""

    def __init__(self, units: int, inputs: int, frequency: float, first: bool = False):
        super().__init__()
        bound = 1.0 / inputs if first else (6.0 / inputs) ** 0.5 / frequency
        start = keras.initializers.RandomUniform(-bound, bound, seed=units + inputs)
        self.inner, self.frequency = layers.Dense(units, kernel_initializer=start), frequency

    def call(self, x):
        return ops.sin(self.frequency * self.inner(x))


def waves_for_activations() -> Program:
    keras.utils.set_random_seed(215)
    x = np.linspace(-1, 1, 1200, dtype="float32")[:, None]
    y = np.sin(9 * x) + 0.5 * np.sin(31 * x)
    x, y = data.shuffled(x, y)
    model = keras.Sequential([keras.Input((1,)), Sine(48, 1, 15.0, True), Sine(48, 48, 15.0), layers.Dense(1)])
    compiled(model, keras.optimizers.Adam(1e-3), "mse")
    return Program(model, x, y, 32, 20)


def half_precision_digits() -> Program:
    keras.utils.set_random_seed(216)
    x, y, held_out = data.split_digits(images=True)
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(16, 3, activation="relu"), layers.Flatten()])
    model.add(layers.Dense(48, "relu"))
    model.add(layers.Dense(10, "softmax", dtype="float32"))
    compiled(model, keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x, y, 32, 10, held_out)


def heads_of_many_kinds() -> Program:
    keras.utils.set_random_seed(217)
    x, y = data.digits()
    inputs = keras.Input((64,))
    trunk = layers.Dense(64, "relu")(inputs)
    outputs = {
        "digit": layers.Dense(10, name="digit")(trunk),
        "odd": layers.Dense(1, "sigmoid", name="odd")(trunk),
        "ink": layers.Dense(1, name="ink")(trunk),
    }
    model = keras.Model(inputs, outputs)
    losses = {"digit": LOGITS, "odd": "binary_crossentropy", "ink": "huber"}
    compiled(model, keras.optimizers.Adam(2e-3), losses, {"digit": ["accuracy"]})
    targets = {"digit": y, "odd": column(y % 2), "ink": column(x.mean(axis=1))}
    return Program(model, x / 16, targets, 32, 10)


def quantile(share: float):
    def loss(y_true, y_pred):
        error = y_true - y_pred
        return ops.maximum(share * error, (share - 1.0) * error)

    return loss


def three_quantiles() -> Program:
    keras.utils.set_random_seed(218)
    x, y = pendulum()
    inputs = keras.Input((4,))
    trunk = layers.Dense(48, "tanh")(layers.Dense(48, "tanh")(inputs))
    model = keras.Model(inputs, [layers.Dense(1, name=name)(trunk) for name in ("low", "middle", "high")])
    compiled(model, keras.optimizers.Adam(3e-3), [quantile(share) for share in (0.1, 0.5, 0.9)])
    y = data.standardized(y)
    return Program(model, data.standardized(x), [y, y, y], 32, 20)


def counts_with_a_link() -> Program:
    keras.utils.set_random_seed(219)
    random = np.random.default_rng(23)
    x = random.normal(0, 1, (1200, 5)).astype("float32")
    y = column(random.poisson(np.exp(0.8 * x[:, 0] - 0.4 * x[:, 1] + 0.5)))
    model = dense_net(5, [16], 1, last="exponential")
    compiled(model, keras.optimizers.Adam(5e-3), "poisson")
    return Program(model, x, y, 32, 20)


BUILDS = {
    one_unit: "Keras documentation, Sequential model: logistic regression as one unit",
    sample_by_sample: "Paper: LeCun et al. 1998, Efficient backprop (stochastic learning, sample by sample)",
    already_converged: "GitHub, keras-team/keras issue 198: accuracy of 1 with a logistic loss",
    high_and_stable: "Paper: Cohen et al. 2021, Gradient descent typically occurs at the edge of stability",
    metres_behind_a_scale: "Stats Stack Exchange 409000: should the targets be normalized, too",
    dozens_with_adam: "Book: Chollet, Deep learning with Python, Boston housing prices in thousands of dollars",
    frozen_body: "Keras documentation, Transfer learning and fine-tuning",
    deep_and_residual: "Paper: He et al. 2016, Identity mappings in deep residual networks",
    gates_closed_at_the_start: "Paper: Bachlechner et al. 2021, ReZero is all you need",
    few_of_one_class: "TensorFlow tutorial: Classification on imbalanced data",
    mostly_noise: "Data Science Stack Exchange 81132: regression problem with deep learning",
    self_normalizing: "Paper: Klambauer et al. 2017, Self-normalizing neural networks",
    words_of_a_bag: "Book: Chollet, Deep learning with Python, multi-hot words of reviews",
    half_of_the_units_dropped: "Paper: Srivastava et al. 2014, Dropout",
    waves_for_activations: "Paper: Sitzmann et al. 2020, Implicit neural representations with periodic activations",
    half_precision_digits: "Keras documentation, Mixed precision",
    heads_of_many_kinds: "GitHub, keras-team/keras issue 10306: several losses and their weights",
    three_quantiles: "Paper: Koenker and Bassett 1978, Regression quantiles, as losses of three heads",
    counts_with_a_link: "GitHub, keras-team/keras pull request 479: Poisson loss",
}

CASES = tuple(
    Case(build.__name__, build, source, needs="mixed_float16" if build is half_precision_digits else "")
    for build, source in BUILDS.items()
)
