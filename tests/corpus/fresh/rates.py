"""Rates, schedules and settings of the optimizer; some fail only after hundreds of steps."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.fresh.common import column, compiled, dense_net, pendulum, source_task, target_task


@keras.saving.register_keras_serializable(package="corpus")
class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """Rise linearly for a number of steps, then stay."""

    def __init__(self, peak: float, steps: float):
        self.peak, self.steps = peak, steps

    def __call__(self, step):
        return self.peak * ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps}


def warm_up_that_never_ends(peak: float = 4.0) -> Program:
    keras.utils.set_random_seed(91)
    x, y, held_out = data.split_digits()
    model = dense_net(64, [64, 64, 64], 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.SGD(Ramp(peak, 1500.0), momentum=0.9), loss, ["accuracy"])
    return Program(model, x, y, 32, 30, held_out)


def exponential_rise(growth: float = 1.7) -> Program:
    keras.utils.set_random_seed(92)
    x, y = pendulum()
    schedule = keras.optimizers.schedules.ExponentialDecay(4e-3, 60, growth)
    model = dense_net(4, [32, 32], 1, "tanh")
    compiled(model, keras.optimizers.Adam(schedule), "mse")
    return Program(model, data.standardized(x), data.standardized(y), 32, 25)


def slow_growth(rate_of_the_limit: float = 1.04) -> Program:
    keras.utils.set_random_seed(93)
    x, y = data.diabetes()
    x, y = data.standardized(x), data.standardized(column(y))
    largest = float(np.linalg.eigvalsh(np.cov(x.T, bias=True))[-1])
    model = keras.Sequential([keras.Input((10,)), layers.Dense(1)])
    compiled(model, keras.optimizers.SGD(rate_of_the_limit / largest), "mse")
    return Program(model, x, y, 148, 150)


def almost_no_friction(momentum: float = 0.9995) -> Program:
    keras.utils.set_random_seed(94)
    x, y, held_out = data.split_digits()
    model = dense_net(64, [48, 48], 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.SGD(0.05, momentum=momentum), loss, ["accuracy"])
    return Program(model, x, y, 32, 12, held_out)


def short_memory_of_squares(beta_2: float = 0.3) -> Program:
    keras.utils.set_random_seed(95)
    x, y, held_out = data.split_digits()
    model = dense_net(64, [48, 48], 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.Adam(5e-3, beta_1=0.995, beta_2=beta_2), loss, ["accuracy"])
    return Program(model, x, y, 16, 15, held_out)


def epsilon_of_a_hundred(epsilon: float = 100.0) -> Program:
    keras.utils.set_random_seed(96)
    x, y = data.iris()
    model = dense_net(4, [32, 32], 3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.Adam(0.01, epsilon=epsilon), loss, ["accuracy"])
    return Program(model, data.standardized(x), y, 16, 20)


def decay_of_a_half(decay: float = 50.0) -> Program:
    keras.utils.set_random_seed(97)
    x, y, held_out = data.split_digits()
    model = dense_net(64, [48], 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.AdamW(0.01, weight_decay=decay), loss, ["accuracy"])
    return Program(model, x, y, 32, 8, held_out)


def body_thawed_at_full_rate(rate: float = 3.0) -> Program:
    keras.utils.set_random_seed(98)
    body = source_task()
    x, y = target_task()
    model = keras.Sequential([body, layers.Dense(5)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, keras.optimizers.SGD(rate, momentum=0.9), loss, ["accuracy"])
    return Program(model, x, y, 32, 8)


def frozen_body_and_raw_pixels(scaled: bool = False) -> Program:
    keras.utils.set_random_seed(99)
    body = source_task()
    body.trainable = False
    x, y = target_task()
    model = keras.Sequential([keras.Input((64,)), body, layers.Dense(32, "relu"), layers.Dense(5, "softmax")])
    compiled(model, keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x if scaled else 255 * x, y, 32, 15)


def everything_frozen(trainable: bool = False) -> Program:
    keras.utils.set_random_seed(100)
    body = source_task()
    x, y = target_task()
    model = keras.Sequential([keras.Input((64,)), body, layers.Dense(5, "softmax")])
    model.trainable = trainable
    compiled(model, "adam", "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x, y, 32, 8)


def one_sample_at_a_time(batch_size: int = 1) -> Program:
    keras.utils.set_random_seed(101)
    x, y = target_task()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(32),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dense(5, "softmax"),
        ]
    )
    compiled(model, keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", ["accuracy"])
    return Program(model, x[:400], y[:400], batch_size, 4 if batch_size == 1 else 15)


CASES = (
    failing(
        "warm_up_that_never_ends",
        warm_up_that_never_ends,
        "GitHub, YunYang1994/TensorFlow2.0-Examples issue 8: NaN while the learning rate still rises",
        "learning_rate_too_high",
        peak=0.05,
    ),
    failing(
        "exponential_rise",
        exponential_rise,
        "GitHub, CyberZHG/keras-radam issue 43: NaN after the warm-up",
        "learning_rate_too_high",
        ("saturated_units",),
        growth=0.9,
    ),
    failing(
        "slow_growth",
        slow_growth,
        "GitHub, keras-team/keras issue 3040: linear regression becomes NaN after a few iterations",
        "learning_rate_too_high",
        rate_of_the_limit=0.5,
    ),
    failing(
        "almost_no_friction",
        almost_no_friction,
        "GitHub, keras-team/keras issues 3687 and 12408: momentum of 0.99 and a loss that explodes",
        "optimizer_state",
        ("learning_rate_too_high",),
        momentum=0.9,
    ),
    failing(
        "short_memory_of_squares",
        short_memory_of_squares,
        "Paper: Reddi, Kale and Kumar 2018, On the convergence of Adam; GitHub, wandb/senpai pull request 3110",
        "optimizer_state",
        ("learning_rate_too_high",),
        beta_2=0.9999,
    ),
    failing(
        "epsilon_of_a_hundred",
        epsilon_of_a_hundred,
        "GitHub, AdeDZY/K-NRM issue 10, deepconvolution/LipNet issue 2: Adam depends on its epsilon",
        "optimizer_state",
        ("learning_rate_too_low",),
        epsilon=1e-7,
    ),
    failing(
        "decay_of_a_half",
        decay_of_a_half,
        "GitHub, keras-team/keras issue 1013: a deep net that learns nothing, weight decay too large",
        "optimizer_state",
        decay=0.01,
    ),
    failing(
        "body_thawed_at_full_rate",
        body_thawed_at_full_rate,
        "GitHub, facebookresearch/maskrcnn-benchmark issue 721: NaN when all layers are fine-tuned",
        "learning_rate_too_high",
        ("dead_units",),
        rate=0.02,
    ),
    failing(
        "frozen_body_and_raw_pixels",
        frozen_body_and_raw_pixels,
        "GitHub, keras-team/keras issue 2711: loss does not change with the wrong preprocessing of a pretrained net",
        "unscaled_inputs",
        ("dead_units",),
        scaled=True,
    ),
    failing(
        "everything_frozen",
        everything_frozen,
        "GitHub, keras-team/keras issues 4674 and 4910: which layers are frozen, and when",
        "frozen_weights",
        ("learning_rate_too_low",),
        trainable=True,
    ),
    failing(
        "one_sample_at_a_time",
        one_sample_at_a_time,
        "GitHub, microsoft/CNTK issue 905, ludwig-ai/ludwig pull request 1863: batch normalization with batches of one",
        "batch_too_small",
        ("vanishing_initialization",),
        batch_size=32,
    ),
)
