"""The theory against its printed table, an independent integral, random draws, and simulated nets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradrecipes.core import signal_theory as theory
from gradrecipes.core.signal_theory import ACTIVATIONS, leaky_relu, resolve_activation

trapezoid = getattr(np, "trapezoid", None) or np.trapz  # its name before numpy 2

# E[phi^2], forward gain, backward gain, sqrt(chi) with LayerNorm, with BatchNorm. The second moment of elu is
# 0.644945, often printed as .6450; test_elu_in_closed_form settles the digit.
TABLE = {
    "relu": (".5", "1.4142", "1.4142", "1", "1.2112"),
    "leaky_relu": (".52", "1.3868", "1.3868", "1", "1.115"),
    "elu": (".6449", "1.2452", "1.2234", "1.018", "1.039"),
    "selu": ("1.0000", "1.0000", ".9660", "1.035", "1.035"),
    "tanh": (".3943", "1.5925", "1.4674", "1.085", "1.085"),
    "gelu": (".4252", "1.5335", "1.4811", "1.035", "1.148"),
    "silu": (".3558", "1.6765", "1.6233", "1.033", "1.101"),
    "sigmoid": (".2934", "1.846", "4.723", ".391", "1.017"),
}
NAMES = sorted(ACTIVATIONS)
Z = np.linspace(-14.0, 14.0, 2_000_001)
DENSITY = np.exp(-0.5 * Z**2) / math.sqrt(2 * math.pi)


def reference(name: str, x: np.ndarray) -> np.ndarray:
    """Return the activation, written a second time, as its definition says it."""
    e = np.exp
    from scipy.special import erf

    table = {
        "linear": lambda: x,
        "relu": lambda: x * (x > 0),
        "relu6": lambda: np.minimum(np.maximum(x, 0), 6),
        "leaky_relu": lambda: np.maximum(x, 0.2 * x),
        "elu": lambda: np.where(x >= 0, x, e(x) - 1),
        "celu": lambda: np.where(x >= 0, x, e(x) - 1),
        "selu": lambda: 1.05070098 * np.where(x >= 0, x, 1.67326324 * (e(x) - 1)),
        "gelu": lambda: x * 0.5 * (1 + erf(x / math.sqrt(2))),
        "gelu_approximate": lambda: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "silu": lambda: x / (1 + e(-x)),
        "swish": lambda: x / (1 + e(-x)),
        "mish": lambda: x * np.tanh(np.log(1 + e(x))),
        "tanh": lambda: (e(x) - e(-x)) / (e(x) + e(-x)),
        "sigmoid": lambda: 1 / (1 + e(-x)),
        "hard_sigmoid": lambda: np.clip(x / 6 + 0.5, 0, 1),
        "hard_tanh": lambda: np.clip(x, -1, 1),
        "softplus": lambda: np.log(1 + e(x)),
        "softsign": lambda: x / (1 + np.abs(x)),
        "exponential": lambda: e(x),
    }
    return table[name]()


def printed(value: float, digits: str) -> float:
    """Return `value` rounded to as many decimals as `digits` shows."""
    return round(value, len(digits.partition(".")[2]))


@pytest.mark.parametrize("name", TABLE)
def test_the_table_to_its_last_digit(name):
    computed = (
        theory.second_moment(name),
        theory.forward_gain(name),
        theory.backward_gain(name),
        theory.layer_normalized_factor(name),
        theory.batch_normalized_factor(name),
    )
    for value, digits in zip(computed, TABLE[name], strict=True):
        assert printed(value, digits) == float(digits)


def test_elu_in_closed_form():
    def tail(z: float) -> float:
        return 0.5 * math.erfc(-z / math.sqrt(2))

    closed = 0.5 + math.exp(2) * tail(-2) - 2 * math.exp(0.5) * tail(-1) + 0.5
    assert theory.second_moment("elu") == pytest.approx(closed, abs=1e-12)


@pytest.mark.parametrize("q", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", NAMES)
def test_moments_against_a_fine_trapezoid(name, q):
    pytest.importorskip("scipy", reason="the second writing of gelu needs erf")
    x = math.sqrt(q) * Z
    phi = reference(name, x)
    slope = np.diff(phi) / np.diff(x)  # differences, so that the derivatives are checked too
    middle = 0.5 * (DENSITY[1:] + DENSITY[:-1])
    step = Z[1] - Z[0]
    assert theory.second_moment(name, q) == pytest.approx(trapezoid(phi**2 * DENSITY, Z), abs=1e-6, rel=1e-6)
    assert theory.mean_output(name, q) == pytest.approx(trapezoid(phi * DENSITY, Z), abs=1e-6, rel=1e-6)
    assert theory.derivative_moment(name, q) == pytest.approx(np.sum(slope**2 * middle) * step, abs=3e-6, rel=3e-6)


@pytest.mark.parametrize("name", NAMES)
def test_moments_against_random_draws(name):
    draws = np.random.default_rng(7).standard_normal(400_000)
    activation = resolve_activation(name)
    q = 0.25 if name == "exponential" else 1.0  # its fourth moment, exp(8 q), sets the error of the mean
    for function, moment in (
        (activation.function, theory.second_moment),
        (activation.derivative, theory.derivative_moment),
    ):
        squares = function(math.sqrt(q) * draws) ** 2
        error = squares.std() / math.sqrt(len(draws))
        assert abs(squares.mean() - moment(name, q)) <= 4.5 * error + 1e-12


@pytest.mark.parametrize("q", [1e-8, 1e4, 1e12, 1e40])
def test_every_scale_of_the_signal_is_resolved(q):
    root = math.sqrt(q)
    assert theory.second_moment("relu", q) == pytest.approx(0.5 * q, rel=1e-9)
    assert theory.second_moment(leaky_relu(0.3), q) == pytest.approx(0.545 * q, rel=1e-9)
    if q > 1:  # far out, tanh is a sign and its slope a spike of area E[sech^4] = 4/3
        assert theory.second_moment("tanh", q) == pytest.approx(1 - 2 / (root * math.sqrt(2 * math.pi)), rel=1e-4)
        assert theory.derivative_moment("tanh", q) == pytest.approx(4 / 3 / (root * math.sqrt(2 * math.pi)), rel=1e-3)


def test_no_warning_leaves_the_integrals():
    for name in NAMES:
        for q in (0.0, 1e-30, 1e80):
            assert theory.second_moment(name, q) >= 0
            assert theory.derivative_moment(name, q) >= 0


def test_factors():
    assert theory.forward_factor("relu", 4.0, 9.0) == pytest.approx(math.sqrt(2))
    assert theory.forward_factor("relu", 2.0, 2.0, bias_variance=2.0) == pytest.approx(math.sqrt(2))
    assert theory.backward_factor("relu", 4.0, 9.0) == pytest.approx(math.sqrt(2))
    assert theory.forward_factor("tanh", theory.forward_gain("tanh") ** 2) == pytest.approx(1.0)
    assert theory.backward_factor("tanh", theory.backward_gain("tanh") ** 2) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "largest, growth, layers",
    [
        (theory.SQUARE_OVERFLOW, 2.0, 64),
        (theory.FLOAT32_MAX, 2.0, 128),
        (theory.SQUARE_OVERFLOW, math.sqrt(2), 128),
        (theory.FLOAT32_MAX, math.sqrt(2), 256),
    ],
)
def test_overflow_depth(largest, growth, layers):
    assert theory.overflow_depth(growth, largest=largest) == pytest.approx(layers, abs=0.5)


def test_overflow_depth_where_nothing_grows():
    assert theory.overflow_depth(1.0) == math.inf
    assert theory.overflow_depth(2.0, output_gradient=1e39) == 0.0
    with pytest.raises(ValueError, match="growth_per_layer=-1"):
        theory.overflow_depth(-1)


def test_predict_output_rms_steps_layer_by_layer():
    rms = theory.predict_output_rms([(2.0, "relu"), (1.0, "tanh"), (4.0, None)], 3.0)
    by_hand = [3.0]
    by_hand += [math.sqrt(theory.second_moment("tanh", 9.0))]
    by_hand += [2.0 * by_hand[-1]]
    assert rms == pytest.approx(by_hand)
    assert theory.predict_output_rms([]).shape == (0,)
    assert np.isfinite(theory.predict_output_rms([(1e12, "relu")] * 40)).all()


def test_refusals_name_what_came_and_what_is_known():
    with pytest.raises(ValueError, match=r"'softmax'.*Known: linear, relu"):
        theory.second_moment("softmax", 1.0)
    with pytest.raises(ValueError, match="q=-1"):
        theory.derivative_moment("relu", -1)
    with pytest.raises(ValueError, match="q=nan"):
        theory.second_moment("relu", math.nan)
    with pytest.raises(ValueError, match="q=0"):
        theory.forward_factor("relu", 2.0, 0.0)
    with pytest.raises(ValueError, match="widths"):
        theory.finite_width_log_std([64, 0])


def random_gradient_log_norm(width: int, depth: int, variance: float, seed: int) -> tuple[float, float]:
    """Return (ln growth of the output RMS, ln growth of the gradient) through a random ReLU net, in float64."""
    random = np.random.default_rng(seed)
    signal, weights, masks = random.standard_normal(width), [], []
    start = np.linalg.norm(signal)
    for _ in range(depth):
        weights.append(random.standard_normal((width, width)) * math.sqrt(variance / width))
        signal = np.maximum(signal @ weights[-1], 0.0)
        masks.append(signal > 0)
    gradient = random.standard_normal(width)
    end = np.linalg.norm(gradient)
    for weight, mask in zip(reversed(weights), reversed(masks), strict=True):
        gradient = weight @ (gradient * mask)
    return math.log(np.linalg.norm(signal) / start), math.log(np.linalg.norm(gradient) / end)


@pytest.mark.parametrize("width, depth, variance", [(64, 20, 4.0), (64, 40, 2.0), (128, 30, 3.0), (256, 30, 4.0)])
def test_deep_random_nets_fall_within_the_error_bar(width, depth, variance):
    seeds = 24
    measured = np.array([random_gradient_log_norm(width, depth, variance, seed) for seed in range(seeds)])
    log_std = theory.finite_width_log_std([width] * depth)
    assert log_std == pytest.approx(math.sqrt(5 * depth / width))
    predictions = (theory.forward_factor("relu", variance), theory.backward_factor("relu", variance))
    for column, factor in zip(measured.T, predictions, strict=True):
        squared = 2 * (column - depth * math.log(factor))  # ln of the squared norm, less what the infinite net has
        assert abs(squared.mean() + log_std**2 / 2) < 4 * log_std / math.sqrt(seeds)
        assert 0.6 * log_std < squared.std(ddof=1) < 1.5 * log_std
        assert np.mean(np.abs(squared + log_std**2 / 2) < 2 * log_std) > 0.85
    outputs = theory.predict_output_rms([(variance, "relu")] * depth, 1.0)
    assert abs(measured[:, 0].mean() - math.log(outputs[-1])) < log_std**2 / 4 + 2 * log_std / math.sqrt(seeds)


def test_finite_width_of_one_neuron_a_layer():
    assert theory.finite_width_log_std([1] * 20) == pytest.approx(10.0)
    assert theory.finite_width_log_std([]) == 0.0
