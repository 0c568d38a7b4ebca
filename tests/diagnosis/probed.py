"""Traces for the rules that read probes: of real small nets, with a run that is made up or recorded in a trial."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_diabetes, load_digits, load_wine

from gradrecipes.core.findings import Finding
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import Probes
from gradrecipes.core.trace.trial_reading import TrialReading, VariationResult
from gradrecipes.probes.data import data_probe
from gradrecipes.probes.loss import loss_probe
from gradrecipes.training.description.describe import describe_model

layers = keras.layers
BATCHES = 10  # of a pass of a run that is made up

FALLS = tuple(2.3 * math.exp(-step / 25.0) for step in range(40))
STANDS_STILL = (2.302,) * 40
BREAKS = (2.3, 2.2, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
RUNS_AWAY = tuple(2.3 * 1.5**step for step in range(40))


def standardized(values: np.ndarray) -> np.ndarray:
    return ((values - values.mean(axis=0)) / (values.std(axis=0) + 1e-7)).astype(np.float32)


def digits(samples: int = 400) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x[:samples] / 16).astype(np.float32), y[:samples]


def wine() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order].astype(np.float32), y[order]


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_diabetes(return_X_y=True)
    return standardized(x), y.astype(np.float32)


def net(inputs: int, units: int, activation: str | None = None, *behind: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(32, activation="relu", kernel_initializer="he_normal") for _ in range(2)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(units, activation=activation), *behind])


def probed(
    model: keras.Model,
    x: Any,
    y: Any,
    loss: Any,
    *,
    run: Any = (),
    chance: float | None = 2.3,
    varied: dict[str, tuple[float, float]] | None = None,
    **more: Any,
) -> Trace:
    """Return a Trace with the three probes, and a run of these losses; `varied` gives (start, end) by name."""
    trace = Trace(["dense"])
    trace.extend(step=range(len(run)), loss=list(run), gradient_norm=[1.0] * len(run), epoch=[0] * len(run))
    description, known = _probes(model, x, y, loss)
    trace.description = description
    variations = {
        name: VariationResult(start, end, (start - end) / start, over_baseline=None if chance is None else end / chance)
        for name, (start, end) in (varied or {}).items()
    }
    trial = TrialReading(batches=BATCHES, constant_baseline_loss=chance, variations=variations)
    trace.probes = replace(known, trial=trial, **more)
    return trace


_known: dict[Any, tuple[Description, Probes]] = {}


def _probes(model: keras.Model, x: np.ndarray, y: np.ndarray, loss: Any) -> tuple[Description, Probes]:
    """Return what the probes read; of the same net and data it is read once."""
    weights = b"".join(np.asarray(weight).tobytes() for weight in model.weights)
    names = tuple((type(layer).__name__, str(getattr(layer, "activation", ""))) for layer in model.layers)
    key = (type(model), names, hash(weights), hash(x.tobytes()), hash(y.tobytes()), x.shape, y.shape, repr(loss))
    if key not in _known:
        model.compile(optimizer="adam", loss=loss)
        description = describe_model(model)
        data, read = data_probe(x, y, inputs=description.inputs), loss_probe(model, (x[:64], y[:64]), description)
        _known[key] = description, Probes(data=data, loss=read)
    return _known[key]


def assert_sound(finding: Finding | None, code: str) -> Finding:
    """Check what every finding must have, and that its lines of code are code."""
    assert finding is not None and finding.code == code
    assert finding.evidence and len(finding.explanation) > 100 and "\n" not in finding.title
    for text in (finding.explanation, finding.title, *(item.statement for item in finding.evidence)):
        assert " None" not in text and " inf " not in text, text
    assert finding.prescriptions
    for prescription in finding.prescriptions:
        compile(prescription.code, prescription.title, "exec")
        assert prescription.title and prescription.reason and prescription.risk
    return finding
