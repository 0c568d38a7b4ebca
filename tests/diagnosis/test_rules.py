"""Every rule on every trace that must set it off, and on every one that must not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gradrecipes.core.findings import Kind
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.engine import find
from gradrecipes.diagnosis.registry import rules
from tests.records import described

RULES = rules()


def test_fires(fires, trace_of):
    code, name = fires
    trace = trace_of(name)
    finding = RULES[code].find(trace)
    assert finding is not None
    assert finding.code == code
    assert finding.kind is RULES[code].kind
    assert finding.layer is None or finding.layer in trace.layers
    assert len(finding.explanation) > 100
    assert finding.evidence
    assert all("nan" not in item.statement.replace("NaN", "") for item in finding.evidence), finding.evidence
    assert " nan" not in finding.explanation
    assert finding.title.strip() == finding.title and "\n" not in finding.title
    assert finding.to_dict()["code"] == code
    assert finding.prescriptions
    for prescription in finding.prescriptions:
        compile(prescription.code, prescription.title, "exec")
        assert prescription.title and prescription.reason and prescription.risk
        assert not re.search(r"Use (\w+) instead of \1\b", prescription.title)
    text = " ".join([finding.title, finding.explanation, *(item.statement for item in finding.evidence)])
    assert not re.search(r"goes from (\S+) to \1[ .;,]", text), text


def test_is_silent(silent, trace_of):
    code, name = silent
    assert RULES[code].find(trace_of(name)) is None


@pytest.mark.parametrize("name", ["sound_run", "sound_run_adam", "he", "residual_10_blocks", "layer_normalized_std_1"])
def test_healthy_runs_have_no_finding(name, trace_of):
    assert find(trace_of(name)) == []


@pytest.mark.parametrize("code", RULES)
def test_silent_without_evidence(code):
    rule = RULES[code].find
    assert rule(Trace()) is None
    only_samples = Trace(["a"])
    only_samples.extend_samples(step=[0], output_rms=[[1.0]])
    assert rule(only_samples) is None
    unmeasured = Trace(["a"], description=described({"layers": [{"name": "a"}]}))
    unmeasured.extend(step=range(20), loss=np.linspace(2.0, 1.0, 20))
    assert rule(unmeasured) is None


@pytest.mark.parametrize("seed", range(30))
def test_no_rule_raises_on_garbage(seed):
    random = np.random.default_rng(seed)

    def garbage(*shape):
        values = np.exp(random.normal(0, 30, shape))
        values[random.random(shape) < 0.2] = np.nan
        values[random.random(shape) < 0.1] = np.inf
        values[random.random(shape) < 0.1] = 0.0
        return values

    depth, steps = int(random.integers(1, 6)), int(random.integers(1, 300))
    kinds = ["Dense", "Activation", "ReLU", "LeakyReLU", "Conv2D", "BatchNormalization", "LSTM", "", "Mine"]

    def one_of(*values):
        return values[random.integers(len(values))]

    def count():
        return one_of(None, 0, 1, 64, 2**40)

    def word():
        return one_of(None, "", "relu", "softmax", "linear", "mine")

    def real():
        return one_of(None, 0.0, -1.0, 1.0, 2.5, 1e30, float("nan"), float("inf"))

    layers = [
        {"name": f"l{i}", "kind": one_of(*kinds), "activation": word(), "fan_in": count()}
        | {"units": count(), "weight_std": real(), "parameters": count()}
        for i in range(depth)
    ]
    optimizer = {"name": one_of("SGD", "Adam", "", "Mine"), "learning_rate": real(), "momentum": real()}
    description = {"layers": layers, "optimizer": optimizer, "loss": word(), "batch_size": count()}
    trace = Trace([layer["name"] for layer in layers], description=described(description))
    trace.extend(
        step=range(steps),
        loss=garbage(steps),
        gradient_norm=garbage(steps),
        outcome=random.integers(0, 4, steps),
        layer_gradient_norm=garbage(steps, depth),
    )
    readings = ("output_rms", "output_gradient_norm", "weight_norm", "update_ratio", "nonfinite_share")
    trace.extend_samples(step=range(0, steps, 7), **{r: garbage(len(range(0, steps, 7)), depth) for r in readings})
    for rule in RULES.values():
        finding = rule.find(trace)
        assert finding is None or finding.kind in Kind


def test_a_saved_trace_is_judged_alike(trace_of, tmp_path):
    trace = trace_of("std_1_at_5_layers_trained")
    trace.save(tmp_path / "trace.npz")
    assert [f.to_dict() for f in find(Trace.load(tmp_path / "trace.npz"))] == [f.to_dict() for f in find(trace)]
