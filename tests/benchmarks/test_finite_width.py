"""The error bar of every activation against random nets drawn in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import theory
from benchmarks.finite_width import layer_noise, predict_growth
from gradrecipes.core.signal_theory import ACTIVATIONS, finite_width_log_std, forward_gain, predict_output_rms

NETS = 100


def random_net(name: str, variance: float, widths: list[int], random: np.random.Generator):
    """Return ln of the output's root mean square and of the gradient's growth, at every layer, of one sample."""
    activation, signal = ACTIVATIONS[name], random.standard_normal(64)
    signal /= np.sqrt(np.mean(signal**2))
    weights, slopes, output = [], [], []
    for width in widths:
        weights.append(random.standard_normal((len(signal), width)) * math.sqrt(variance / len(signal)))
        before = signal @ weights[-1]
        signal = activation.function(before)
        slopes.append(activation.derivative(before))
        output.append(math.log(np.mean(signal**2)) / 2)
    gradient = random.standard_normal(widths[-1])
    norms = [np.linalg.norm(gradient)]
    for weight, slope in zip(weights[:0:-1], slopes[:0:-1], strict=True):
        gradient = weight @ (gradient * slope)
        norms.append(np.linalg.norm(gradient))
    return np.array(output), np.log(np.array(norms[::-1]) / norms[0])


@pytest.mark.parametrize("name, gain", [("relu", 2.5), ("linear", 1.0), ("elu", 1.0), ("tanh", 2.5), ("sigmoid", 1.0)])
@pytest.mark.parametrize("widths", [[32] * 30, [16, 64] * 12])
def test_95_percent_of_random_nets_lie_within_the_bar(name, gain, widths):
    assert_covered(name, gain * forward_gain(name) ** 2, widths)


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_on_the_ridge_where_a_signal_grows_or_collapses(name):
    output, _ = assert_covered(name, forward_gain(name) ** 2, [48] * 40)
    assert np.ptp(output[:, -1]) > 4  # the spread that a linear theory, with a standard deviation near 1, misses


def assert_covered(name: str, variance: float, widths: list[int]):
    """Assert that the bars hold as many nets as they claim; return the logarithms of outputs and gradients."""
    random = np.random.default_rng(1)
    nets = [random_net(name, variance, widths, random) for _ in range(NETS)]
    output, gradient = (np.array(part) for part in zip(*nets, strict=True))
    expected = predict_growth([(variance, name)] * len(widths), widths)
    for measured, low, high, middle in (
        (output, expected.output_low, expected.output_high, expected.output),
        (gradient, expected.gradient_low, expected.gradient_high, expected.gradient),
    ):
        for layer in (0 if measured is gradient else -1, len(widths) // 2):
            inside = (measured[:, layer] >= low[layer]) & (measured[:, layer] <= high[layer])
            assert inside.mean() >= 0.87  # 95.45% less four standard errors
            half = np.quantile(measured[:, layer], 0.9) - np.quantile(measured[:, layer], 0.1)
            bar = (high[layer] - low[layer]) * 1.2816 / 2
            assert half > 0.6 * bar  # nor is the bar wider than need be
            assert np.mean(measured[:, layer] < middle[layer]) == pytest.approx(0.5, abs=0.22)
    return output, gradient


def test_relu_is_the_published_result():
    widths = [64] * 41
    found = predict_growth([(2.0, "relu")] * 41, widths)
    std = finite_width_log_std(widths[1:]) / 2
    assert (found.gradient_high[0] - found.gradient_low[0]) / 4 == pytest.approx(std, rel=0.06)
    assert found.gradient[0] == pytest.approx(-(std**2), abs=0.1)
    assert (found.gradient[-1], found.gradient_low[-1], found.gradient_high[-1]) == (0, 0, 0)


def test_noise_in_closed_form():
    linear, relu = layer_noise("linear"), layer_noise("relu", 9.0)
    assert (linear.forward, linear.backward, linear.both) == pytest.approx((2, 0, 0), abs=1e-9)  # E z^4 = 3
    assert (relu.forward, relu.backward, relu.both) == pytest.approx((5, 3, 1))
    assert layer_noise("tanh", 100.0).backward > 5 * layer_noise("tanh", 1.0).backward  # few units have a slope left


@pytest.mark.parametrize("name", ["relu", "elu", "tanh", "sigmoid"])
def test_wide_nets_have_the_size_of_the_infinite_one(name):
    layers = [(3.0, name)] * 20
    found = predict_growth(layers, [10**7] * 20, input_rms=2.0)
    assert np.exp(found.output) == pytest.approx(predict_output_rms(layers, 2.0), rel=5e-3)
    assert np.all(found.output_high - found.output_low < 0.02)


@pytest.mark.parametrize("variance", [1e-4, 1e4])
def test_far_sizes_go_on_in_a_straight_line(variance):
    layers = [(variance, "relu")] * 60
    found = predict_growth(layers, [256] * 60)
    infinite = np.log(predict_output_rms(layers))
    assert found.output == pytest.approx(infinite, abs=0.5)


def test_refusals():
    with pytest.raises(ValueError, match="exponential"):
        layer_noise("exponential")
    with pytest.raises(ValueError, match="q=0"):
        layer_noise("relu", 0.0)
    with pytest.raises(ValueError, match="2 layers"):
        predict_growth([(2.0, "relu")] * 2, [8])
    with pytest.raises(ValueError, match="width"):
        predict_growth([(2.0, "relu")], [0])
    with pytest.raises(ValueError, match="input_rms=0"):
        predict_growth([(2.0, "relu")], [8], input_rms=0)
    assert predict_growth([], []).output.shape == (0,)


def test_the_benchmark_measures_what_is_predicted_layer_by_layer():
    net = theory.measure("relu", "He normal", 5, 64, seed=0)
    assert {name: len(values) for name, values in net.items() if "output" in name} == dict.fromkeys(
        ("output", "output_low", "output_high"), 5
    )
    assert np.isfinite(net["output"]).all()
    assert np.isfinite(net["gradient"]).all()
