"""What the theory knows of an activation: the function, its derivative, and the Keras names of the common ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
