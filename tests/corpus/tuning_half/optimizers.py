"""Programs that fail by their optimizer, its rate, its state or the size of the batch, and what mends them."""

from __future__ import annotations

from functools import partial

import keras
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


def _digits() -> tuple:
    x, y = data.digits()
    return x[:1400] / 16, y[:1400], (x[1400:] / 16, y[1400:])


def _classifier(optimizer: optimizers.Optimizer) -> keras.Model:
    model = keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(128, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def one_ten_millionth(rate: float = 1e-7) -> Program:
    """A rate of 1e-7, left over from the fight against a NaN."""
    keras.utils.set_random_seed(71)
    x, y = data.breast_cancer()
    inputs = keras.Input((30,))
    hidden = layers.Dense(64, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(hidden))
    model.compile(optimizers.Adam(rate), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=32, epochs=10)


def decay_per_step(steps: int = 1) -> Program:
    """A rate that falls to nine tenths at every step; its owner meant every epoch."""
    keras.utils.set_random_seed(72)
    x, y, validation = _digits()
    schedule = optimizers.schedules.ExponentialDecay(0.02, decay_steps=steps, decay_rate=0.9)
    return Program(_classifier(optimizers.SGD(schedule)), x, y, epochs=12, validation_data=validation)


def momentum_on_top(rate: float = 1.0) -> Program:
    """SGD at rate 1, to which momentum of 0.9 adds the tenfold."""
    keras.utils.set_random_seed(73)
    x, y, validation = _digits()
    model = _classifier(optimizers.SGD(rate, momentum=0.9))
    return Program(model, x, y, epochs=6, validation_data=validation)


def swapped_betas(first: float = 0.999, second: float = 0.5) -> Program:
    """Adam with the betas of DCGAN, 0.5 and 0.999, in the wrong order: the step no longer has a bound."""
    keras.utils.set_random_seed(74)
    x, y, validation = _digits()
    model = _classifier(optimizers.Adam(0.003, beta_1=first, beta_2=second))
    return Program(model, x, y, epochs=6, validation_data=validation)


def epsilon_of_inception(epsilon: float = 1.0) -> Program:
    """Adam with the epsilon of 1.0 that the documentation mentions for Inception on ImageNet."""
    keras.utils.set_random_seed(75)
    x, y, validation = _digits()
    model = _classifier(optimizers.Adam(0.001, epsilon=epsilon))
    return Program(model, x, y, epochs=8, validation_data=validation)


def no_epsilon(epsilon: float = 0.0) -> Program:
    """RMSprop without its epsilon: a pixel that never lights has no gradient, and 0 divided by 0 is NaN."""
    keras.utils.set_random_seed(76)
    x, y, validation = _digits()
    model = _classifier(optimizers.RMSprop(0.001, epsilon=epsilon))
    return Program(model, x, y, epochs=8, validation_data=validation)


def pairs_in_batch_norm(batch_size: int = 2) -> Program:
    """Four layers of BatchNorm on batches of two: all that is left of a unit is which of both samples was greater."""
    keras.utils.set_random_seed(77)
    x, y, validation = _digits()
    hidden = inputs = keras.Input((64,))
    for _ in range(6):
        hidden = layers.BatchNormalization()(layers.Dense(64, use_bias=False)(hidden))
        hidden = layers.Activation("relu")(hidden)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(hidden))
    model.compile(optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1000], y[:1000], batch_size, epochs=3, validation_data=validation)


CASES = (
    Case(
        "adam_at_one_ten_millionth",
        one_ten_millionth,
        "keras issue 2711, 'Loss not changing when training', comments: the rate was too small",
        "learning_rate_too_low",
        repaired=partial(one_ten_millionth, rate=1e-3),
    ),
    Case(
        "exponential_decay_at_every_step",
        decay_per_step,
        "Keras' page of ExponentialDecay: decay_steps counts optimizer steps, not epochs",
        "learning_rate_too_low",
        repaired=partial(decay_per_step, steps=440),
    ),
    Case(
        "momentum_at_rate_one",
        momentum_on_top,
        "Bengio, 1206.5533, section 3.1.1; keras issue 2711, comments: a rate at which nothing changes any more",
        "learning_rate_too_high",
        accepted=("dead_units",),
        repaired=partial(momentum_on_top, rate=0.01),
    ),
    Case(
        "adam_with_swapped_betas",
        swapped_betas,
        "Kingma, Ba, 1412.6980, section 2.1, and Reddi et al., 1904.09237: beta_1 must stay below the root of beta_2",
        "optimizer_state",
        accepted=("learning_rate_too_high",),
        repaired=partial(swapped_betas, first=0.5, second=0.999),
    ),
    Case(
        "adam_with_an_epsilon_of_one",
        epsilon_of_inception,
        "Keras' page of Adam on epsilon; ibab/tensorflow-wavenet issue 149",
        "optimizer_state",
        accepted=("learning_rate_too_low",),
        repaired=partial(epsilon_of_inception, epsilon=1e-7),
    ),
    Case(
        "rmsprop_without_epsilon",
        no_epsilon,
        "keras issue 4356 on RMSprop's epsilon; tensorflow issue 323, comments",
        "optimizer_state",
        repaired=partial(no_epsilon, epsilon=1e-7),
    ),
    Case(
        "batch_norm_of_pairs",
        pairs_in_batch_norm,
        "Wu, He, 1803.08494: BatchNorm's error grows as batches shrink; xuebinqin/BASNet issue 42",
        "batch_too_small",
        repaired=partial(pairs_in_batch_norm, batch_size=32),
    ),
)
