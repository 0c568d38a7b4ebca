"""Programs whose layers hold other layers, or arithmetic of their own."""

from __future__ import annotations

import keras
from keras import layers, ops

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.fresh.common import column, compiled


class Residual(layers.Layer):
    """x + scale * f(x), f of two dense layers."""

    def __init__(self, units: int, scale: float = 1.0, initializer: object = "he_normal", **options: object):
        super().__init__(**options)
        self.scale = scale
        self.first = layers.Dense(units, "relu", kernel_initializer=initializer)
        self.second = layers.Dense(units, kernel_initializer=initializer)

    def call(self, x):
        return x + self.scale * self.second(self.first(x))


class Tower(layers.Layer):
    """A stack of layers as one layer."""

    def __init__(self, stack: list[layers.Layer], **options: object):
        super().__init__(**options)
        self.stack = stack

    def call(self, x):
        for layer in self.stack:
            x = layer(x)
        return x


def residual_tower(scale: float = 1.0) -> Program:
    keras.utils.set_random_seed(11)
    x, y, held_out = data.split_digits()
    inner = [Tower([Residual(48, scale) for _ in range(6)]) for _ in range(4)]
    model = keras.Sequential([keras.Input((64,)), layers.Dense(48), Tower(inner), layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.SGD(0.05), loss, ["accuracy"])
    return Program(model, x, y, 32, 6, held_out)


def nested_encoders(deviation: float = 1.0) -> Program:
    keras.utils.set_random_seed(12)
    x, y = data.wine()
    start = keras.initializers.RandomNormal(0.0, deviation, seed=3)
    blocks = [
        Tower([layers.Dense(96, kernel_initializer=start.clone()), layers.LeakyReLU(0.2)], name=f"block_{number}")
        for number in range(5)
    ]
    encoder = Tower([Tower(blocks[:3], name="lower"), Tower(blocks[3:], name="upper")], name="encoder")
    model = keras.Sequential([keras.Input((13,)), encoder, layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.SGD(0.01), loss, ["accuracy"])
    return Program(model, data.standardized(x), y, 16, 20)


class Magnitude(layers.Layer):
    """The square root of what ReLU units give."""

    def __init__(self, units: int, floor: float = 0.0, **options: object):
        super().__init__(**options)
        self.floor = floor
        self.inner = Tower([layers.Dense(units), layers.ReLU()])

    def call(self, x):
        return ops.sqrt(self.inner(x) + self.floor)


def root_of_relu(floor: float = 0.0) -> Program:
    keras.utils.set_random_seed(13)
    x, y, held_out = data.split_digits()
    model = keras.Sequential([keras.Input((64,)), Magnitude(64, floor), layers.Dense(10, "softmax")])
    compiled(model, "adam", "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x, y, 32, 5, held_out)


class PowerOrLine(layers.Layer):
    """A power above zero and a line below it, written with a choice between two branches."""

    def __init__(self, guarded: bool = False, **options: object):
        super().__init__(**options)
        self.guarded = guarded

    def call(self, x):
        positive = x > 0.0
        base = ops.where(positive, x + 1e-4, 1.0) if self.guarded else x
        return ops.where(positive, ops.power(base, 0.6), 0.1 * x)


def branch_not_taken(guarded: bool = False) -> Program:
    keras.utils.set_random_seed(14)
    x, y = data.breast_cancer()
    model = keras.Sequential(
        [
            keras.Input((30,)),
            Tower([layers.Dense(32), PowerOrLine(guarded), layers.Dense(16), PowerOrLine(guarded)]),
            layers.Dense(1, "sigmoid"),
        ]
    )
    compiled(model, "adam", "binary_crossentropy", ["accuracy"])
    return Program(model, data.standardized(x), column(y), 32, 10)


class BatchStandardize(layers.Layer):
    """Subtract the batch's mean and divide by the batch's standard deviation."""

    def __init__(self, epsilon: float = 0.0, **options: object):
        super().__init__(**options)
        self.epsilon = epsilon

    def call(self, x):
        centred = x - ops.mean(x, axis=0, keepdims=True)
        return centred / (ops.std(x, axis=0, keepdims=True) + self.epsilon)


def pixels_that_never_change(epsilon: float = 0.0) -> Program:
    keras.utils.set_random_seed(15)
    x, y, _ = data.split_digits()
    model = keras.Sequential(
        [keras.Input((64,)), BatchStandardize(epsilon), layers.Dense(32, "relu"), layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, "adam", loss, ["accuracy"])
    return Program(model, x, y, 64, 6)


class Cube(layers.Layer):
    """A dense layer whose outputs are raised to a power."""

    def __init__(self, units: int, power: int = 3, **options: object):
        super().__init__(**options)
        self.power = power
        self.inner = layers.Dense(units, kernel_initializer="he_normal")

    def call(self, x):
        return self.inner(x) ** self.power if self.power > 1 else ops.tanh(self.inner(x))


def polynomial_tower(power: int = 3) -> Program:
    keras.utils.set_random_seed(16)
    x, y = data.wine()
    tower = Tower([Cube(48, power) for _ in range(4)])
    model = keras.Sequential([keras.Input((13,)), tower, layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.Adam(1e-3), loss, ["accuracy"])
    return Program(model, data.standardized(x), y, 16, 15)


CASES = (
    failing(
        "residual_tower_without_scale",
        residual_tower,
        "GitHub, XPixelGroup/BasicSR issue 121: design of the residual-in-residual block",
        "missing_normalization",
        ("exploding_initialization", "learning_rate_too_high"),
        scale=0.05,
    ),
    failing(
        "nested_encoders_of_unit_weights",
        nested_encoders,
        "GitHub, keras-team/keras issue 10847: large initial weights and gradient values",
        "exploding_initialization",
        deviation=0.12,
    ),
    failing(
        "root_of_relu",
        root_of_relu,
        "GitHub, keras-team/keras issue 13203: K.sqrt and a NaN loss on CPU",
        "unsafe_arithmetic",
        ("unsafe_loss",),
        floor=1e-3,
    ),
    failing(
        "branch_not_taken",
        branch_not_taken,
        "GitHub, jax-ml/jax pull request 1538, apache/mxnet pull request 14673: NaN from the branch not selected",
        "unsafe_arithmetic",
        ("unsafe_loss",),
        guarded=True,
    ),
    failing(
        "pixels_that_never_change",
        pixels_that_never_change,
        "GitHub, google-deepmind/deepmind-research issue 346: normalization gives NaN",
        "unsafe_arithmetic",
        ("unsafe_loss",),
        epsilon=1e-2,
    ),
    failing(
        "polynomial_tower",
        polynomial_tower,
        "Paper: Livni et al. 2014, On the computational efficiency of training neural networks (power activations)",
        "unbounded_activation",
        power=1,
    ),
)
