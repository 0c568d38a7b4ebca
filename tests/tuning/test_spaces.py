"""Each space declares its setting once, stays within its bounds, and is narrowed by what was measured."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras_tuner import HyperParameters

from gradrecipes.core.trace import Trace
from gradrecipes.gradients import clipping as methods
from gradrecipes.plots.measured import LearningRateRange
from gradrecipes.schedules import WarmUp
from gradrecipes.tuning import spaces


def ranges(hp):
    return {one.name: (one.min_value, one.max_value) for one in hp.space if hasattr(one, "min_value")}


class Measured:
    valley = 0.02
    diverged_at = 0.15


def test_the_learning_rate_lies_in_what_the_measurements_leave():
    hp = HyperParameters()
    assert spaces.learning_rate(hp) == pytest.approx(3.2e-3)
    assert ranges(hp) == {"learning_rate": (1e-5, 1.0)}
    hp = HyperParameters()
    spaces.learning_rate(hp, measured=Measured())
    assert ranges(hp)["learning_rate"] == pytest.approx((0.002, 0.15))  # divergence comes before a decade is over
    hp = HyperParameters()
    spaces.learning_rate(hp, measured=Measured(), sharpness=0.05)
    assert ranges(hp)["learning_rate"] == pytest.approx((0.002, 0.1))


def test_a_range_test_that_says_nothing_narrows_nothing():
    nothing = LearningRateRange(np.geomspace(1e-5, 1, 40), np.ones(40))
    hp = HyperParameters()
    spaces.learning_rate(hp, measured=nothing)
    assert ranges(hp)["learning_rate"] == (1e-5, 1.0)
    with pytest.raises(ValueError, match="leave nothing"):
        spaces.learning_rate(HyperParameters(), sharpness=1e6)


@pytest.mark.parametrize(
    ("scale", "sizes"),
    [(None, [16, 32, 64, 128, 256]), (100.0, [16, 32, 64]), (1e9, [256]), (1.0, [16]), (float("inf"), [16, 256])],
)
def test_the_batch_is_a_power_of_two_below_the_noise_scale(scale, sizes):
    hp = HyperParameters()
    assert spaces.batch_size(hp, noise_scale=scale) in (16, 32, 64, 128, 256)
    values = hp.space[0].values
    assert (values[0], values[-1]) == (sizes[0], sizes[-1])


def test_the_bound_of_clipping_lies_about_the_observed_norms_and_only_where_it_acts():
    trace = Trace()
    trace.extend(step=range(200), gradient_norm=[2.0] * 200, clip_factor=[1.0] * 200)
    hp = HyperParameters()
    assert spaces.clipping(hp, observed=trace) is None
    assert [one.name for one in hp.space] == ["clipping", "clipping_norm", "clipping_share", "clipping_percentile"]
    assert ranges(hp)["clipping_norm"] == (0.5, 8.0)
    assert list(hp.values) == ["clipping"]  # of the bounds none is active
    hp = HyperParameters()
    hp.values["clipping"] = "global_norm"
    assert spaces.clipping(hp, observed=trace) == methods.by_global_norm(hp.values["clipping_norm"])
    hp = HyperParameters()
    spaces.clipping(hp, among=("none", "adaptive"))
    assert [one.name for one in hp.space] == ["clipping", "clipping_share"]


def test_a_warm_up_is_a_share_of_the_training():
    hp = HyperParameters()
    schedule = spaces.warm_up(hp, 0.1, steps=500)
    assert isinstance(schedule, WarmUp) and schedule.steps == 10
    hp.values["warm_up"] = 0.0
    assert spaces.warm_up(hp, 0.1, steps=500) == 0.1


def test_an_optimizer_of_each_kind():
    kinds = {}
    for kind in ("adam", "adamw", "sgd", "rmsprop"):
        hp = HyperParameters()
        hp.values["optimizer"] = kind
        kinds[kind] = spaces.optimizer(hp, among=("adam", "adamw", "sgd", "rmsprop"), decay=True)
        assert kinds[kind].weight_decay == pytest.approx(10**-3.5)
    assert [type(one).__name__ for one in kinds.values()] == ["Adam", "AdamW", "SGD", "RMSprop"]
    hp = HyperParameters()
    spaces.optimizer(hp, among=("sgd",), rate=0.5)
    assert hp.space == []


def test_batch_normalization_is_offered_to_residual_nets_only():
    for residual in (False, True):
        hp = HyperParameters()
        assert spaces.normalization(hp, residual=residual) is None
        assert ("batch" in hp.space[0].values) == residual
    hp.values["normalization"] = "batch"
    assert spaces.normalization(hp, residual=True) is keras.layers.BatchNormalization


def test_the_initializer_has_the_gain_of_the_activation():
    hp = HyperParameters()
    make = spaces.initializer(hp, "gelu")
    assert make().gain == pytest.approx(1.5335, abs=1e-3) and make() is not make()


@pytest.mark.parametrize("skip", ["none", "pre_norm", "rezero"])
def test_a_dense_net_of_any_kind_is_built(skip):
    hp = HyperParameters()
    hp.values.update(skips=skip, depth=3, width=32, activation="tanh", normalization="layer")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, spaces.dense_layers(hp, inputs))
    assert model.output_shape == (None, 32)
    assert np.isfinite(model(np.ones((4, 8), "float32")).numpy()).all()


def test_penalties():
    hp = HyperParameters()
    assert spaces.dropout(hp) == 0.0
    assert spaces.kernel_penalty(hp).l2 == pytest.approx(1e-4)
    assert spaces.weight_decay(hp) == pytest.approx(10**-3.5)
    assert [one.name for one in hp.space] == ["dropout", "l2", "weight_decay"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda hp: spaces.learning_rate(hp, lowest=1.0, highest=0.1), "positive `lowest` to a larger"),
        (lambda hp: spaces.weight_decay(hp, lowest=0.0), "positive `lowest`"),
        (lambda hp: spaces.batch_size(hp, lowest=64, highest=32), "a `highest` that is no smaller"),
        (lambda hp: spaces.depth(hp, lowest=0), "at least 1"),
        (lambda hp: spaces.clipping(hp, among=("soft",)), "global_norm, adaptive"),
        (lambda hp: spaces.clipping(hp, among="none"), "must be some of"),
        (lambda hp: spaces.activation(hp, among=("softsign",)), "relu, gelu"),
        (lambda hp: spaces.dropout(hp, highest=1.0), "share of units"),
        (lambda hp: spaces.warm_up(hp, 0.1, steps=0), "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call(HyperParameters())
