"""How a signal and its gradient pass through random layers, in theory, and the activations that theory knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Activation:
    """Describe an activation to the theory: the function, its derivative, and where that jumps.

    Args:
        name: Name for messages.
        function: phi, float64 array to float64 array of the same shape.
        derivative: phi', likewise.
        kinks: Points other than 0 at which phi or phi' jumps.
        closed_forms: q to (E[phi], E[phi^2], E[phi'^2]), for an activation that grows too fast to be integrated.
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray], np.ndarray]
    kinks: tuple[float, ...] = ()
    closed_forms: Callable[[float], tuple[float, float, float]] | None = None


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(value) for value in np.ravel(x)]).reshape(np.shape(x))


def _cdf(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))


def _pdf(x: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * np.square(x)) / math.sqrt(2.0 * math.pi)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


def _silu_derivative(x: np.ndarray) -> np.ndarray:
    return _sigmoid(x) * (1.0 + x * _sigmoid(-x))


def _tanh_gelu_argument(x: np.ndarray) -> np.ndarray:
    return math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)


def _tanh_gelu_derivative(x: np.ndarray) -> np.ndarray:
    inner = np.tanh(_tanh_gelu_argument(x))
    slope = math.sqrt(2.0 / math.pi) * (1.0 + 3 * 0.044715 * x**2)
    return 0.5 * (1.0 + inner) + 0.5 * x * (1.0 - inner**2) * slope


def _exponential_moments(q: float) -> tuple[float, float, float]:
    mean, square = (math.exp(power) if power < 709 else math.inf for power in (0.5 * q, 2.0 * q))
    return mean, square, square


def _mish_derivative(x: np.ndarray) -> np.ndarray:
    inner = np.tanh(_softplus(x))
    return inner + x * (1.0 - inner**2) * _sigmoid(x)


def leaky_relu(negative_slope: float) -> Activation:
    """Return a leaky ReLU of another slope than the 0.2 of `keras.activations.leaky_relu`."""
    return Activation(
        f"leaky_relu({negative_slope:g})",
        lambda x: np.where(x > 0, x, negative_slope * x),
        lambda x: np.where(x > 0, 1.0, negative_slope),
    )


def elu(alpha: float = 1.0, *, scale: float = 1.0) -> Activation:
    """Return `scale * (x if x > 0 else alpha * (exp(x) - 1))`."""
    return Activation(
        f"elu({alpha:g})",
        lambda x: scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0))),
        lambda x: scale * np.where(x > 0, 1.0, alpha * np.exp(np.minimum(x, 0.0))),
    )


def _clipped(name: str, slope: float, low: float, high: float, offset: float = 0.0) -> Activation:
    kinks = ((low - offset) / slope, (high - offset) / slope)
    return Activation(
        name,
        lambda x: np.clip(slope * x + offset, low, high),
        lambda x: np.where((x > kinks[0]) & (x < kinks[1]), slope, 0.0),
        kinks,
    )


_SILU = Activation("silu", lambda x: x * _sigmoid(x), _silu_derivative)
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # arXiv 1706.02515
ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation("linear", lambda x: x, np.ones_like),
    "relu": Activation("relu", lambda x: np.maximum(x, 0.0), lambda x: np.where(x > 0, 1.0, 0.0)),
    "relu6": _clipped("relu6", 1.0, 0.0, 6.0),
    "leaky_relu": leaky_relu(0.2),
    "elu": elu(),
    "celu": elu(),
    "selu": elu(_SELU_ALPHA, scale=_SELU_SCALE),
    "gelu": Activation("gelu", lambda x: x * _cdf(x), lambda x: _cdf(x) + x * _pdf(x)),
    "gelu_approximate": Activation(
        "gelu_approximate", lambda x: 0.5 * x * (1.0 + np.tanh(_tanh_gelu_argument(x))), _tanh_gelu_derivative
    ),
    "silu": _SILU,
    "swish": _SILU,
    "mish": Activation("mish", lambda x: x * np.tanh(_softplus(x)), _mish_derivative),
    "tanh": Activation("tanh", np.tanh, lambda x: 1.0 - np.square(np.tanh(x))),
    "sigmoid": Activation("sigmoid", _sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x)),
    "hard_sigmoid": _clipped("hard_sigmoid", 1.0 / 6.0, 0.0, 1.0, offset=0.5),
    "hard_tanh": _clipped("hard_tanh", 1.0, -1.0, 1.0),
    "softplus": Activation("softplus", _softplus, _sigmoid),
    "softsign": Activation("softsign", lambda x: x / (1.0 + np.abs(x)), lambda x: 1.0 / np.square(1.0 + np.abs(x))),
    "exponential": Activation("exponential", np.exp, np.exp, closed_forms=_exponential_moments),
}


def resolve_activation(activation: str | Activation | None) -> Activation:
    """Return the `Activation` that a Keras name stands for; None is Keras' own way to say linear.

    Raises:
        ValueError: The theory does not know the name.
    """
    if isinstance(activation, Activation):
        return activation
    name = "linear" if activation is None else activation
    if name not in ACTIVATIONS:
        raise ValueError(
            f"The theory knows no activation {name!r}. Known: {', '.join(ACTIVATIONS)}. "
            "For another one, pass Activation(name, function, derivative)."
        )
    return ACTIVATIONS[name]


FLOAT32_MAX = float(np.finfo(np.float32).max)  # 3.4e38: a larger entry is infinite
SQUARE_OVERFLOW = math.sqrt(FLOAT32_MAX)  # 1.84e19: a larger norm overflows when its squares are summed in float32
FINITE_WIDTH_VARIANCE = 5.0  # variance of ln||g||^2 is 5 * sum(1 / width) in a ReLU net; arXiv 1812.05994

_LARGEST_VARIANCE = 1e300  # what float64 can still square the root of
_REACH = 12.0  # standard deviations integrated on either side; the tail beyond is below 1e-30
_PANELS = 36  # each half line is cut at 12, 6, 3, ... so that every scale of sqrt(q) is resolved
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def second_moment(activation: str | Activation | None, q: float = 1.0) -> float:
    """Return E[phi(sqrt(q) z)^2], the mean square of the outputs, to better than 1e-8 of its value.

    Args:
        activation: Keras name, or an `Activation`.
        q: Variance of the pre-activations, at least 0.

    Raises:
        ValueError: An unknown activation, or a q that is negative or not finite.

    Example:
        >>> round(second_moment("relu"), 6)
        0.5
    """
    activation = resolve_activation(activation)
    return _moment(activation, _checked_variance(q), False)


def derivative_moment(activation: str | Activation | None, q: float = 1.0) -> float:
    """Return E[phi'(sqrt(q) z)^2]; arguments and errors as in `second_moment`."""
    activation = resolve_activation(activation)
    return _moment(activation, _checked_variance(q), True)


def mean_output(activation: str | Activation | None, q: float = 1.0) -> float:
    """Return E[phi(sqrt(q) z)]; arguments and errors as in `second_moment`."""
    activation, q = resolve_activation(activation), _checked_variance(q)
    if activation.closed_forms is not None:
        return activation.closed_forms(q)[0]
    return _integral(activation.function, activation.kinks, math.sqrt(q))


def gaussian_mean(function: Callable[[np.ndarray], np.ndarray], activation: Activation, q: float) -> float:
    """Return E[f(sqrt(q) z)] of a function that jumps or bends only where an activation does.

    Args:
        function: float64 array to float64 array of the same shape.
        activation: Whose kinks divide the integral.
        q: Variance, at least 0.
    """
    return _integral(function, activation.kinks, math.sqrt(_checked_variance(q)))


def forward_gain(activation: str | Activation | None) -> float:
    """Return the sigma_w that keeps the outputs' size at q = 1: 1.414 for ReLU, 1 for SELU."""
    return 1.0 / math.sqrt(second_moment(activation))


def backward_gain(activation: str | Activation | None) -> float:
    """Return the sigma_w that keeps the gradients' size at q = 1."""
    return 1.0 / math.sqrt(derivative_moment(activation))


def forward_factor(
    activation: str | Activation | None,
    weight_variance_times_fan_in: float,
    q: float = 1.0,
    *,
    bias_variance: float = 0.0,
) -> float:
    """Return the factor by which one layer multiplies the RMS of the pre-activations, sqrt(q'/q).

    Args:
        activation: Keras name, or an `Activation`.
        weight_variance_times_fan_in: sigma_w^2 = fan_in * Var(W): 2 for He, 1 for LeCun.
        q: Variance of the pre-activations that come in, above 0.
        bias_variance: sigma_b^2.

    Example:
        >>> round(forward_factor("relu", 4.0, 1.0), 4)
        1.4142
    """
    moment = second_moment(activation, q)
    if q == 0:
        raise ValueError("`q` must be positive: a signal of size 0 has no factor. Received: q=0.")
    return math.sqrt((weight_variance_times_fan_in * moment + bias_variance) / q)


def backward_factor(activation: str | Activation | None, weight_variance_times_fan_in: float, q: float = 1.0) -> float:
    """Return the factor by which one layer multiplies the gradient norm on its way back, sqrt(chi)."""
    return math.sqrt(weight_variance_times_fan_in * derivative_moment(activation, q))


def layer_normalized_factor(activation: str | Activation | None) -> float:
    """Return the gradient factor per layer with LayerNorm or RMSNorm before the activation, whatever the weights."""
    return math.sqrt(derivative_moment(activation) / second_moment(activation))


def batch_normalized_factor(activation: str | Activation | None) -> float:
    """Return the gradient factor per layer with BatchNorm before the activation and no skip: 1.211 for ReLU."""
    variance = second_moment(activation) - mean_output(activation) ** 2
    return math.sqrt(derivative_moment(activation) / variance)


def predict_output_rms(layers: Iterable[tuple[float, str | Activation | None]], input_rms: float = 1.0) -> np.ndarray:
    """Return the output RMS that the weights of a plain chain predict, layer by layer.

    Args:
        layers: For each layer (sigma_w^2, activation), with sigma_w^2 = fan_in * Var(W); biases are 0.
        input_rms: Root mean square of the inputs.

    Returns:
        float64 `[layers]`, root mean square of each layer's output, after its activation. It stops growing at
        1e150, far beyond what float32 holds.

    Example:
        >>> predict_output_rms([(4.0, "relu")] * 3).round(3).tolist()
        [1.414, 2.0, 2.828]
    """
    mean_square, outputs = float(input_rms) ** 2, []
    for weight_variance_times_fan_in, activation in layers:
        mean_square = second_moment(activation, min(weight_variance_times_fan_in * mean_square, _LARGEST_VARIANCE))
        outputs.append(math.sqrt(mean_square))
    return np.array(outputs, dtype=np.float64)


def finite_width_log_std(widths: Sequence[float]) -> float:
    """Return the standard deviation of ln||g||^2 over random weights, the error bar of every prediction.

    ln||g||^2 ~ N(-beta/2, beta), beta = 5 * sum(1 / width); this is sqrt(beta), and ln||g|| has half of it.

    Raises:
        ValueError: A width below 1.
    """
    if any(not width >= 1 for width in widths):
        raise ValueError(f"Every width must be at least 1. Received: widths={list(widths)}.")
    return math.sqrt(FINITE_WIDTH_VARIANCE * math.fsum(1.0 / width for width in widths))


def overflow_depth(growth_per_layer: float, *, output_gradient: float = 1.0, largest: float = FLOAT32_MAX) -> float:
    """Return the number of layers after which a gradient that grows so fast is larger than `largest`.

    Args:
        growth_per_layer: Factor per layer. With a cross-entropy loss `backward_factor`; with a squared loss
            `forward_factor * backward_factor`, because the error itself grows with the outputs.
        output_gradient: Gradient norm at the output, where the growth starts.
        largest: `FLOAT32_MAX` for single entries; `SQUARE_OVERFLOW` for a norm summed plainly, which fails at half
            the depth.

    Returns:
        Layers, as a real number; infinite where nothing grows.
    """
    if not (growth_per_layer > 0 and output_gradient > 0):
        raise ValueError(
            "`growth_per_layer` and `output_gradient` must be positive. "
            f"Received: growth_per_layer={growth_per_layer}, output_gradient={output_gradient}."
        )
    if growth_per_layer <= 1.0:
        return math.inf
    return max(0.0, math.log(largest / output_gradient) / math.log(growth_per_layer))


def _checked_variance(q: float) -> float:
    if not (math.isfinite(q) and q >= 0):
        raise ValueError(f"`q` is a variance: it must be finite and not negative. Received: q={q}.")
    return float(q)


@lru_cache(maxsize=8192)
def _moment(activation: Activation, q: float, of_derivative: bool) -> float:
    if activation.closed_forms is not None:
        return activation.closed_forms(q)[2 if of_derivative else 1]
    function = activation.derivative if of_derivative else activation.function
    return _integral(lambda x: np.square(function(x)), activation.kinks, math.sqrt(q))


def _integral(function: Callable[[np.ndarray], np.ndarray], kinks: tuple[float, ...], scale: float) -> float:
    half = _REACH * 2.0 ** -np.arange(_PANELS)
    inner = [kink / scale for kink in kinks if 0 < abs(kink) < _REACH * scale]
    edges = np.unique(np.concatenate([-half, [0.0], half, inner]))
    centers, widths = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    z = centers[:, None] + widths[:, None] * _NODES
    density = np.exp(-0.5 * np.square(z)) / math.sqrt(2.0 * math.pi)
    with np.errstate(over="ignore", under="ignore"):
        return float(np.sum(widths[:, None] * _WEIGHTS * density * function(scale * z)))


def fixup_gain(blocks: int, layers_per_block: int) -> float:
    r"""Return σ_w = √(fan_in·Var(W)) of all but the last weight layer of a branch: √2·L^(-1/(2m-2)).

    Args:
        blocks: L, residual blocks in the whole net.
        layers_per_block: m, weight layers in a branch, at least 2.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> round(fixup_gain(100, 2), 4)
        0.1414

    References:
        Zhang, Dauphin, Ma 2019, arXiv 1901.09321, section 3.
    """
    for name, value, least in (("blocks", blocks, 1), ("layers_per_block", layers_per_block, 2)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"`{name}` must be a whole number, at least {least}. Received: {name}={value!r}.")
    return math.sqrt(2.0) * blocks ** (-1.0 / (2 * layers_per_block - 2))
