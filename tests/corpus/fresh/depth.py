"""Deep nets, and units that begin dead or saturated; half precision."""

from __future__ import annotations

import keras
from keras import layers, ops

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.fresh.common import compiled, dense_net


def sigmoid_autoencoder(activation: str = "sigmoid") -> Program:
    keras.utils.set_random_seed(111)
    x, _ = data.digits()
    x = x / 16
    model = dense_net(64, [48, 48, 40, 32, 16, 32, 40, 48, 48], 64, activation, "sigmoid", "he_normal")
    compiled(model, keras.optimizers.Adam(1e-3), "binary_crossentropy")
    return Program(model, x, x, 32, 15)


class Skip(layers.Layer):
    """A dense layer with or without a way around it."""

    def __init__(self, units: int, around: bool, normalize: bool = False):
        super().__init__()
        self.around = around
        self.inner = layers.Dense(units, kernel_initializer="he_normal", use_bias=not normalize)
        self.norm = layers.BatchNormalization() if normalize else None

    def call(self, x, training=False):
        hidden = self.inner(x)
        if self.norm is not None:
            hidden = self.norm(hidden, training=training)
        hidden = ops.relu(hidden)
        return x + 0.1 * hidden if self.around else hidden


def sixty_layers(around: bool = False) -> Program:
    keras.utils.set_random_seed(112)
    x, y, held_out = data.split_digits()
    model = keras.Sequential([keras.Input((64,)), layers.Dense(24)])
    for _ in range(60):
        model.add(Skip(24, around))
    model.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.SGD(0.02), loss, ["accuracy"])
    return Program(model, x, y, 32, 8, held_out)


def many_normalized_layers(around: bool = False) -> Program:
    keras.utils.set_random_seed(113)
    x, y, held_out = data.split_digits()
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32)])
    for _ in range(36):
        model.add(Skip(32, around, normalize=True))
    model.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.SGD(0.05), loss, ["accuracy"])
    return Program(model, x, y, 32, 6, held_out)


def bias_far_below_zero(bias: float = -8.0) -> Program:
    keras.utils.set_random_seed(114)
    x, y, held_out = data.split_digits()
    start = keras.initializers.Constant(bias)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(48, "relu")])
    model.add(layers.Dense(48, "relu", bias_initializer=start))
    model.add(layers.Dense(10, "softmax"))
    compiled(model, keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x, y, 32, 8, held_out)


def bounded_units_at_their_bounds(deviation: float = 6.0) -> Program:
    keras.utils.set_random_seed(115)
    x, y, held_out = data.split_digits()
    model = keras.Sequential([keras.Input((64,))])
    for number in range(6):
        start = keras.initializers.RandomNormal(0.0, deviation, seed=number)
        model.add(layers.Dense(48, "tanh", kernel_initializer=start))
    model.add(layers.Dense(10, "softmax"))
    compiled(model, keras.optimizers.SGD(0.02), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x, y, 32, 15, held_out)


class MeanSquareScale(layers.Layer):
    """Divide a row by the root of the sum of its squares, in the dtype of the computation."""

    def __init__(self, divisor: float):
        super().__init__()
        self.divisor = divisor

    def call(self, x):
        x = x / self.divisor
        squares = ops.sum(ops.square(x), axis=-1, keepdims=True)
        return 8.0 * x / ops.sqrt(squares + 1e-3)


def length_of_a_row_in_half_precision(divisor: float = 1.0) -> Program:
    keras.utils.set_random_seed(116)
    x, y = data.split_digits()[:2]
    model = keras.Sequential([keras.Input((64,)), MeanSquareScale(divisor), layers.Dense(48, "relu")])
    model.add(layers.Dense(10, "softmax", dtype="float32"))
    compiled(model, keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x * 255, y, 32, 8)


def half_the_range_of_float16(gain: float = 30.0) -> Program:
    keras.utils.set_random_seed(117)
    x, y = data.split_digits(images=True)[:2]
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(gain)])
    for filters in (16, 16, 16):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal"))
        model.add(layers.Rescaling(gain))
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10, "softmax", dtype="float32"))
    compiled(model, keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x, y, 32, 12)


CASES = (
    failing(
        "sigmoid_autoencoder",
        sigmoid_autoencoder,
        "GitHub, microsoft/CNTK issue 476: one more sigmoid layer, and the error does not fall any more",
        "vanishing_initialization",
        ("plain_depth", "saturated_units"),
        activation="relu",
    ),
    failing(
        "sixty_layers",
        sixty_layers,
        "Paper: He et al. 2016, Deep residual learning (plain nets degrade with depth)",
        "plain_depth",
        ("vanishing_initialization",),
        around=True,
    ),
    failing(
        "many_normalized_layers",
        many_normalized_layers,
        "Paper: Yang et al. 2019, A mean field theory of batch normalization",
        "exploding_batch_normalization",
        ("plain_depth",),
        around=True,
    ),
    failing(
        "bias_far_below_zero",
        bias_far_below_zero,
        "GitHub, facebookresearch/dlrm pull request 358: biases that start far below zero before a ReLU",
        "dead_units",
        bias=0.0,
    ),
    failing(
        "bounded_units_at_their_bounds",
        bounded_units_at_their_bounds,
        "Paper: Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward networks",
        "saturated_units",
        ("exploding_initialization",),
        deviation=0.14,
    ),
    failing(
        "length_of_a_row_in_half_precision",
        length_of_a_row_in_half_precision,
        "GitHub, tensorflow/models issue 10426: normalization in mixed precision",
        "float16_overflow",
        ("unscaled_inputs", "unsafe_arithmetic"),
        needs="mixed_float16",
        divisor=4080.0,
    ),
    failing(
        "half_the_range_of_float16",
        half_the_range_of_float16,
        "GitHub, huggingface/transformers issue 12225, keras-team/keras issue 11832: activations beyond half precision",
        "float16_overflow",
        ("exploding_initialization",),
        needs="mixed_float16",
        gain=1.0,
    ),
)
