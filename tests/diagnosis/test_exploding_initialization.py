"""The initialization: silent on every sound one, loud on large ones, and right about the numbers."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from gradrecipes.core.findings import Severity
from gradrecipes.diagnosis.rules.exploding_initialization import exploding_initialization

GAINS = {"relu": math.sqrt(2), "tanh": 1.0}


@pytest.mark.parametrize(
    "depth, width, seeds",
    [(2, 16, 2), (3, 1024, 1), (10, 16, 2), (20, 256, 1), (50, 64, 1), (100, 16, 2), (100, 128, 1)],
)  # narrow nets differ most from one seed to another
@pytest.mark.parametrize(
    "activation, name", [("relu", "he"), ("relu", "glorot"), ("tanh", "glorot"), ("selu", "lecun")]
)
def test_sound_initializers_of_any_depth_and_width(activation, name, depth, width, seeds, simulate, initializers):
    for seed in range(seeds):
        trace = simulate(widths=(width,) * depth, weights=initializers[name], activation=activation, seed=seed)
        assert exploding_initialization(trace) is None


@pytest.mark.parametrize("activation", ["elu", "gelu", "silu", "leaky_relu", "sigmoid", "softplus"])
@pytest.mark.parametrize("name", ["he", "glorot"])
def test_other_activations_with_the_usual_initializers(activation, name, simulate, initializers):
    trace = simulate(widths=(64,) * 20, weights=initializers[name], activation=activation)
    assert exploding_initialization(trace) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("depth, width, variance", [(10, 64, 4.5), (30, 64, 4.0), (20, 256, 4.0), (30, 32, 3.5)])
def test_large_variance_fires_and_theory_names_the_factor(depth, width, variance, seed, simulate, initializers):
    trace = simulate(widths=(width,) * depth, weights=initializers["scaled"](variance), seed=seed)
    finding = exploding_initialization(trace)
    factor = math.sqrt(variance / 2)
    measured, predicted = finding.evidence[0].measured, finding.evidence[0].expected
    assert predicted == pytest.approx(factor, rel=0.04)
    # Four standard deviations of ln||g|| over the stretch, spread over its layers.
    assert abs(math.log(measured / predicted)) < 4 * math.sqrt(5 / width / depth) / 2 + 5 / width
    assert "predict" in finding.evidence[0].statement and "between" in finding.evidence[0].statement
    assert any("overflows float32" in item.statement for item in finding.evidence)


def test_the_weight_gradients_are_flat_and_yet_it_fires(trace_of):
    """The trap that a ratio of first to last layer falls into."""
    trace = trace_of("variance_4_at_30_layers")
    norms = trace.layer_gradient_norm[0, :-1]
    assert 0.1 < norms[0] / norms[-1] < 10
    assert exploding_initialization(trace) is not None


def test_severity_follows_growth(simulate, initializers):
    mild = exploding_initialization(simulate(widths=(64,) * 12, weights=initializers["scaled"](4.0)))
    grave = exploding_initialization(simulate(widths=(64,) * 30, weights=initializers["scaled"](4.0)))
    assert (mild.severity, grave.severity) == (Severity.WARNING, Severity.CRITICAL)


def test_the_chain_of_twenty_neurons(trace_of):
    finding = exploding_initialization(trace_of("chain_of_20_neurons"))
    assert finding.evidence[0].measured == pytest.approx(2.34, rel=1e-5)
    assert finding.evidence[0].expected == pytest.approx(2.34, rel=1e-5)
    # A squared loss: ln(1.8e19) / ln(2.34 * 2.34)
    overflow = next(item for item in finding.evidence if "overflows float32" in item.statement)
    assert overflow.expected == pytest.approx(math.log(1.84e19) / math.log(2.34**2), rel=0.01)
    assert all("LayerNormalization" not in p.code for p in finding.prescriptions)  # one unit normalized is 0


def test_the_worst_layer_is_named(simulate):
    def draw(random, fan_in, fan_out):
        draw.calls += 1
        std = 6.0 if draw.calls == 4 else math.sqrt(2 / fan_in)
        return random.normal(0, std, (fan_in, fan_out))

    draw.calls = 0
    trace = simulate(widths=(64, 64, 64, 64, 64), weights=draw)
    finding = exploding_initialization(trace)
    assert finding.layer == "dense_3"
    assert "'dense_3'" in finding.title and finding.evidence[0].expected == pytest.approx(6 * math.sqrt(32), rel=0.05)


@pytest.mark.parametrize("name, activation", [("HeNormal", "relu"), ("LecunNormal", "selu"), ("GlorotNormal", "tanh")])
def test_prescriptions_are_written_for_the_users_layers(name, activation, simulate, initializers):
    shallow = simulate(widths=(48,) * 6, weights=initializers["normal"](1.5), activation=activation)
    first, *_, last = exploding_initialization(shallow).prescriptions
    line = f'keras.layers.Dense(48, activation="{activation}", kernel_initializer=keras.initializers.{name}())'
    assert line in first.code
    assert "clipnorm" in last.code and "protection" in last.title
    deep = simulate(widths=(48,) * 12, weights=initializers["normal"](1.5), activation=activation)
    first = exploding_initialization(deep).prescriptions[0]
    assert "LayerNormalization" in first.code and name in first.code and "range(6)" in first.code
    uneven = simulate(widths=(48, 64) * 6, weights=initializers["normal"](1.5), activation=activation)
    first = exploding_initialization(uneven).prescriptions[0]
    assert "LayerNormalization" in first.code and name in first.code and "[48, 64, 48" in first.code
    assert "BatchNormalization" in first.reason or activation in ("selu", "tanh")


def test_following_the_prescription_silences_the_rule(simulate, initializers):
    sick = simulate(widths=(64,) * 30, weights=initializers["scaled"](4.0))
    assert exploding_initialization(sick) is not None
    healed = simulate(widths=(64,) * 30, weights=initializers["he"], normalization="Layer")
    assert exploding_initialization(healed) is None


def test_infinite_outputs_are_judged_by_those_before_them(simulate, initializers):
    trace = simulate(widths=(64,) * 60, weights=initializers["normal"](1.0))
    assert np.isinf(trace.samples["output_rms"]).any() or np.isnan(trace.samples["output_rms"]).any()
    finding = exploding_initialization(trace)
    assert finding is not None and finding.severity is Severity.CRITICAL
    assert not re.search(r"\bnan\b|\binf\b", finding.explanation)


def test_one_matrix_in_every_layer_is_named(simulate):
    matrix = np.random.default_rng(0).normal(0, 0.3, (64, 64))
    finding = exploding_initialization(simulate(widths=(64,) * 12, weights=lambda *_: matrix))
    assert any("share one initializer object" in item.statement for item in finding.evidence)
    random = exploding_initialization(simulate(widths=(64,) * 12, weights=lambda r, m, n: r.normal(0, 0.3, (m, n))))
    assert not any("share one" in item.statement for item in random.evidence)


def test_a_sound_linear_head_does_not_dilute_the_average(simulate, initializers):
    trace = simulate(widths=(64,) * 5, weights=initializers["normal"](1.0), loss="mean_squared_error")
    finding = exploding_initialization(trace)
    assert finding.evidence[0].expected == pytest.approx(math.sqrt(32), rel=0.05)


def test_a_sigmoid_behind_a_small_signal_is_no_growth(simulate, initializers):
    """It gives one half however small its input is, as behind embeddings of Keras' own size."""
    trace = simulate(widths=(32, 32), weights=initializers["glorot"], input_scale=0.01)
    described = trace.description.layers
    places = [place for place, layer in enumerate(described) if layer.kind == "Dense"]
    trace.description = replace(
        trace.description,
        layers=tuple(
            replace(layer, activation="sigmoid") if place == places[1] else layer
            for place, layer in enumerate(described)
        ),
    )
    trace.samples["output_rms"][0, places[1]] = 0.5
    assert trace.samples["output_rms"][0, places[1]] > 20 * trace.samples["output_rms"][0, places[0]]
    assert exploding_initialization(trace) is None
