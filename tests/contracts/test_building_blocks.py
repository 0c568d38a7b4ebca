"""One suite over every initializer, layer, schedule and penalty: it survives a .keras file, and XLA compiles it."""

from __future__ import annotations

import inspect
import json

import keras
import numpy as np
import pytest

import gradrecipes.initializers
import gradrecipes.layers
import gradrecipes.regularizers
import gradrecipes.schedules
from gradrecipes.initializers import (
    ChronoBias,
    DeltaOrthogonal,
    DrawnAnew,
    Fixup,
    ScaledInitializer,
    chrono_lstm,
    identity_rnn,
    preset,
)
from gradrecipes.layers import FixupResidual, PreNormResidual, ReZeroResidual, normalization
from gradrecipes.regularizers import InputGradientPenalty, ParameterGradientPenalty, R1Penalty, WassersteinPenalty
from gradrecipes.schedules import WarmUp

layers = keras.layers
decay = keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.9)


def dense(initializer):
    return layers.Dense(8, activation="gelu", kernel_initializer=initializer)


def rows():
    return layers.Reshape((4, 2))


# What is tried -> the layers of a small model that holds it.
INITIALIZERS = {
    "preset": (ScaledInitializer, lambda: [dense(preset("gelu", distribution="truncated_normal"))]),
    "orthogonal": (ScaledInitializer, lambda: [dense(preset("gelu", kind="orthogonal", seed=1))]),
    "seed_generator": (ScaledInitializer, lambda: [dense(preset("gelu", seed=keras.random.SeedGenerator(3)))]),
    "drawn_anew": (DrawnAnew, lambda: [dense(DrawnAnew("he_normal"))]),
    "fixup": (Fixup, lambda: [dense(Fixup(9, layers_per_block=3))]),
    "delta_orthogonal": (
        DeltaOrthogonal,
        lambda: [rows(), layers.Conv1D(4, 3, kernel_initializer=DeltaOrthogonal(1.2)), layers.Flatten()],
    ),
    "chrono": (ChronoBias, lambda: [rows(), layers.LSTM(**chrono_lstm(4, max_length=9))]),
    "identity_rnn": (DrawnAnew, lambda: [rows(), layers.SimpleRNN(4, **identity_rnn(scale=0.9))]),
}
BRANCH = lambda: [layers.Dense(6, activation="relu"), layers.Dense(8)]  # noqa: E731
OF_KERAS = getattr(layers, "RMSNormalization", layers.UnitNormalization)  # Keras 3.7 has no RMSNormalization
BLOCKS = {
    "pre_norm": (PreNormResidual, lambda: [PreNormResidual(BRANCH(), normalization=OF_KERAS())]),
    "pre_norm_plain": (PreNormResidual, lambda: [PreNormResidual(BRANCH())]),
    "pre_norm_batch": (
        PreNormResidual,
        lambda: [PreNormResidual(BRANCH(), normalization=normalization(residual=True, batch_size=32))],
    ),
    "rezero": (ReZeroResidual, lambda: [ReZeroResidual(layers.Dense(8, activation="tanh")), ReZeroResidual(BRANCH())]),
    "fixup_block": (
        FixupResidual,
        lambda: [
            FixupResidual(
                [layers.Dense(6, use_bias=False), layers.Dense(5, use_bias=False)],
                blocks=4,
                activation="swish",
                shortcut=layers.Dense(5),
            )
        ],
    ),
}
SCHEDULES = {
    "warm_up": (WarmUp, lambda: WarmUp(0.01, steps=3)),
    "warm_up_around": (WarmUp, lambda: WarmUp(decay, steps=3, start=1e-4)),
}
# Penalties live in a model's config; their train steps are tried with them, compiled, in tests/regularizers.
PENALTIES = (
    InputGradientPenalty(0.2),
    WassersteinPenalty(3.0, 2.0),
    R1Penalty(4.0),
    ParameterGradientPenalty(0.1, 0.9),
)


def model_of(parts, optimizer=None, *, jit=False):
    model = keras.Sequential([keras.Input((8,)), *parts, layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss="mse", jit_compile=jit)
    return model


@pytest.fixture
def data():
    x = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    return x, x[:, :1]


def layer_configs(model):
    return json.dumps(keras.saving.serialize_keras_object(model)["config"]["layers"], sort_keys=True, default=str)


def all_of(table):
    """Return one net with a branch for each row, so that XLA compiles once for all."""
    inputs, branches = keras.Input((8,)), []
    for _, parts in table.values():
        branch = inputs
        for part in parts():
            branch = part(branch)
        branches.append(branch)
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(branches)))
    model.compile(keras.optimizers.Adam(0.01), loss="mse", jit_compile=True)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("table", [INITIALIZERS, BLOCKS], ids=["initializers", "blocks"])
def test_they_survive_a_file_and_train_under_xla(table, data, tmp_path):
    model = all_of(table)
    history = model.fit(*data, batch_size=32, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(data[0], verbose=0), model.predict(data[0], verbose=0), rtol=1e-5)
    assert [(v.name, v.shape) for v in loaded.weights] == [(v.name, v.shape) for v in model.weights]
    assert layer_configs(loaded) == layer_configs(model)
    again = loaded.fit(*data, batch_size=32, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(again).all()


@pytest.mark.parametrize("name", [*INITIALIZERS, *BLOCKS])
def test_a_model_can_be_cloned_and_starts_anew(name):
    model = model_of({**INITIALIZERS, **BLOCKS}[name][1]())
    clone = keras.models.clone_model(model)
    assert [w.shape for w in clone.weights] == [w.shape for w in model.weights]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
@pytest.mark.parametrize("name", [*INITIALIZERS, *BLOCKS])
def test_it_takes_the_precision_of_the_model(name, policy, data):
    keras.config.set_dtype_policy(policy)
    try:
        model = model_of({**INITIALIZERS, **BLOCKS}[name][1]())
        kind = "float64" if policy == "float64" else "float32"
        assert {v.dtype for v in model.trainable_variables} == {kind}
        assert np.isfinite(model(data[0]).numpy().astype("float64")).all()
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_survives_a_file_and_trains_under_xla(name, data, tmp_path):
    model = model_of([], keras.optimizers.SGD(SCHEDULES[name][1]()), jit=True)
    model.fit(*data, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(loaded.optimizer.learning_rate) == float(model.optimizer.learning_rate) > 0
    for one in (model, loaded):
        one.fit(*data, batch_size=8, shuffle=False, verbose=0)
    np.testing.assert_allclose(loaded.get_weights()[0], model.get_weights()[0], rtol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Holder(keras.layers.Layer):
    """A layer that carries a penalty, as a model with a train step of its own does."""

    def __init__(self, held, **kwargs):
        super().__init__(**kwargs)
        self.held = keras.saving.deserialize_keras_object(held) if isinstance(held, dict) else held

    def call(self, x):
        return x

    def get_config(self):
        return {**super().get_config(), "held": keras.saving.serialize_keras_object(self.held)}


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_a_penalty_survives_a_file(penalty, tmp_path):
    model_of([Holder(penalty)]).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert loaded.layers[0].held == penalty
    assert hash(penalty) == hash(loaded.layers[0].held)


def test_no_block_is_missing_here():
    bases = (keras.layers.Layer, keras.initializers.Initializer, keras.optimizers.schedules.LearningRateSchedule)
    packages = (gradrecipes.initializers, gradrecipes.layers, gradrecipes.regularizers, gradrecipes.schedules)
    exported = [getattr(package, name) for package in packages for name in package.__all__]
    registered = {thing for thing in exported if inspect.isclass(thing) and hasattr(thing, "get_config")}
    tried = {kind for table in (INITIALIZERS, BLOCKS, SCHEDULES) for kind, _ in table.values()}
    assert registered == tried | {type(penalty) for penalty in PENALTIES}
    assert {thing for thing in exported if inspect.isclass(thing) and issubclass(thing, bases)} <= tried
    assert all(keras.saving.get_registered_name(thing).startswith("gradrecipes>") for thing in registered)
