"""The rule of recurrent growth on runs that show it, on sound ones, and on nets that the probe really measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.rules.recurrent_gain import recurrent_gain
from gradrecipes.probes.recurrent import recurrent
from tests.records import with_records

STEPS = 60
LEARNS = np.linspace(2.3, 0.5, STEPS)
STALLS = np.full(STEPS, 2.3) + 0.01 * np.random.default_rng(0).normal(size=STEPS)
DIVERGES = np.concatenate([np.full(20, 2.3), np.geomspace(2.3, 1e6, STEPS - 20)])
BREAKS = np.concatenate([np.full(40, 2.3), np.full(STEPS - 40, np.nan)])


def run(probed: dict[str, Any], loss: np.ndarray, *, norm: Any = 1.0, weight_norm: float = 10.0) -> Trace:
    """Return a run of an RNN and a head: the norm of its gradients, and what the recurrent probe saw."""
    layer = {
        "layer": "rnn", "kind": "SimpleRNN", "activation": "tanh", "units": 32, "steps": 100, "spectral_radius": 1.0,
        "growth_per_step": 0.8, "log10_growth": -9.7, "state_growth_per_step": 1.0, "nonfinite_step": None,
    }  # fmt: skip
    trace = Trace(["rnn", "head"])
    description = {"batch_size": 32, "optimizer": {"name": "SGD", "learning_rate": 0.1}}
    norms = np.broadcast_to(norm, STEPS)
    trace.extend(
        step=range(STEPS), loss=loss, gradient_norm=norms, layer_gradient_norm=np.stack([norms, norms], axis=1)
    )
    trace.extend_samples(step=[0], weight_norm=[[weight_norm, weight_norm]])
    probes = {"recurrent": [{**layer, **probed}], "trial": {"batches": 10, "chance": 2.3}}
    return with_records(trace, description, probes)


EXPLODING = {"growth_per_step": 1.4, "log10_growth": 14.6, "activation": "relu"}
JUMPS = np.where(np.arange(STEPS) == 30, 500.0, 1.0)


@pytest.mark.parametrize(
    "probed, loss, readings, words",
    [
        (EXPLODING, BREAKS, {}, "grows 1.4-fold at every time step"),
        (EXPLODING, STALLS, {}, "grows 1.4-fold"),
        (EXPLODING, LEARNS, {"norm": 200.0}, "grows 1.4-fold"),  # 20 times the weights: it learns in spite of that
        ({"activation": "linear", "state_growth_per_step": 1.2, "growth_per_step": 0.99}, DIVERGES, {}, "The state of"),
        ({"kind": "LSTM", "activation": "relu"}, DIVERGES, {"norm": JUMPS}, "without limit"),
        ({"kind": "GRU", "activation": "relu"}, BREAKS, {}, "without limit"),
        ({"growth_per_step": 0.05, "log10_growth": -130.0}, STALLS, {}, "shrinks to 0.05"),
        ({}, DIVERGES, {"norm": JUMPS}, "jumps 500-fold"),
        ({}, STALLS, {"norm": 1 + 11 * (JUMPS > 1)}, "jumps 12-fold"),
        ({"activation": "relu", "spectral_radius": 1.4}, STALLS, {"norm": 1 + 6 * (JUMPS > 1)}, "jumps 7-fold"),
    ],
)
def test_fires(probed, loss, readings, words):
    finding = recurrent_gain(run(probed, loss, **readings))
    assert finding.code == "recurrent_gain" and finding.layer == "rnn"
    assert words in finding.title
    assert len(finding.explanation) > 100 and finding.evidence and "nan" not in finding.explanation
    assert all("nan" not in item.statement for item in finding.evidence)
    for prescription in finding.prescriptions:
        compile(prescription.code, prescription.title, "exec")
    finding.to_dict()


@pytest.mark.parametrize(
    "probed, loss, readings",
    [
        (EXPLODING, LEARNS, {}),  # it grows and learns all the same
        ({}, LEARNS, {}),
        ({}, LEARNS, {"norm": JUMPS}),  # what learns may jump
        ({"activation": "relu", "spectral_radius": 1.01}, STALLS, {"norm": 1 + 6 * (JUMPS > 1)}),
        ({}, STALLS, {}),  # gradients that fade to 1e-10 over 100 steps are what a default layer has
        ({}, BREAKS, {}),  # something else broke it
        ({"kind": "LSTM"}, DIVERGES, {"norm": JUMPS}),  # a gated cell: the learning rate, more likely
        ({"kind": "LSTM", "activation": "relu"}, LEARNS, {}),
        ({"kind": "LSTM", "activation": "relu"}, STALLS, {}),
        ({"growth_per_step": 0.05, "log10_growth": -130.0}, LEARNS, {}),
        ({"growth_per_step": 0.05, "log10_growth": -6.5, "steps": 5}, STALLS, {}),
        ({"growth_per_step": 1.1, "log10_growth": 0.4, "steps": 10}, BREAKS, {}),  # transient, over ten steps only
        ({"state_growth_per_step": 1.2}, DIVERGES, {}),  # of a bounded state: it ends at 1
        (dict.fromkeys(("growth_per_step", "log10_growth", "state_growth_per_step", "steps")), BREAKS, {}),
    ],
)
def test_is_silent(probed, loss, readings):
    assert recurrent_gain(run(probed, loss, **readings)) is None


@pytest.mark.parametrize(
    ("loss", "spread", "told"), [(STALLS, 1e-8, True), (STALLS, 0.1, False), (LEARNS, 1e-8, False)]
)
def test_a_state_that_forgets_all_samples_is_told(loss, spread, told):
    """As behind a long padding: what a default layer loses over 100 steps is no fault by itself."""
    trace = run({"kind": "LSTM", "growth_per_step": 0.6, "log10_growth": -22.0}, loss)
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, sample_spread=spread))
    assert (recurrent_gain(trace) is not None) == told


@pytest.mark.parametrize("kind", ["RNN", "OwnCells", "ConvLSTM2D"])
@pytest.mark.parametrize(
    "probed, loss, readings",
    [
        (EXPLODING, BREAKS, {}),
        ({"growth_per_step": 0.05, "log10_growth": -130.0}, STALLS, {}),
        ({"activation": "relu"}, DIVERGES, {"norm": JUMPS}),
    ],
)
def test_a_cell_that_is_none_of_keras_gets_no_line_for_one(kind, probed, loss, readings):
    finding = recurrent_gain(run({**probed, "kind": kind}, loss, **readings))
    lines = "" if finding is None else "".join(one.code for one in finding.prescriptions)
    assert "SimpleRNN(" not in lines and "LSTM" not in lines
    assert finding is None or finding.prescriptions


def test_silent_without_the_probe():
    trace = run(EXPLODING, BREAKS)
    for held in (None, ()):
        trace.probes = replace(trace.probes, recurrent=held)
        assert recurrent_gain(trace) is None


def build(layer, steps: int = 80) -> keras.Model:
    return keras.Sequential([keras.Input((steps, 4)), layer, keras.layers.Dense(3)])


@pytest.mark.parametrize(
    "layer, explodes",
    [
        (lambda: keras.layers.SimpleRNN(32), False),
        (lambda: keras.layers.LSTM(32), False),
        (lambda: keras.layers.GRU(32), False),
        (lambda: keras.layers.SimpleRNN(64, activation="relu", recurrent_initializer="identity"), False),
        (lambda: keras.layers.SimpleRNN(32, recurrent_initializer=keras.initializers.RandomNormal(stddev=0.6)), True),
        (
            lambda: keras.layers.SimpleRNN(
                32, activation="relu", recurrent_initializer=keras.initializers.Orthogonal(2.0)
            ),
            True,
        ),
    ],
)
def test_what_the_probe_measures_of_defaults_and_of_exploding_layers(layer, explodes):
    x = np.random.default_rng(0).normal(size=(16, 80, 4)).astype(np.float32)
    (probed,) = recurrent(build(layer()), x)
    probed = {**probed.to_json(), "layer": "rnn"}
    assert (recurrent_gain(run(probed, BREAKS)) is not None) == explodes
    assert recurrent_gain(run(probed, LEARNS)) is None


def test_what_is_prescribed_is_silent():
    """The layer that the first prescription makes, measured in place of the exploding one, sets nothing off."""
    x = np.random.default_rng(0).normal(size=(16, 80, 4)).astype(np.float32)
    finding = recurrent_gain(run({**EXPLODING, "units": 32}, BREAKS))
    line = next(line for line in finding.prescriptions[0].code.splitlines() if line.startswith("keras.layers."))
    import gradrecipes as gr

    (probed,) = recurrent(build(eval(line, {"keras": keras, "gr": gr})), x)
    probed = {**probed.to_json(), "layer": "rnn"}
    assert recurrent_gain(run(probed, BREAKS)) is None
