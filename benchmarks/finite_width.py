r"""How far a net of finite width may stray from the mean-field prediction, for any activation.

In a plain net `x_l = phi(W_l x_(l-1))` with n_l units, random Gaussian weights and variance q_l of its pre-activations,
each layer's draw adds noise to the logarithm of the squared norms,

    forwards    variance (E[phi^4] / E[phi^2]^2 - 1) / n_l
    backwards   variance 3 (E[phi'^4] / E[phi'^2]^2 - 1) / n_l  +  2 / n_(l-1)

and half of that lies the mean of the logarithm below the logarithm of the mean. For ReLU both are 5/n, and the sum over
the layers is the known result. An activation that is not homogeneous also carries the noise of one layer's size on to
the next: tanh forgets it, because it saturates; GELU and SiLU at their gain amplify it, for there the size stands on a
ridge, from which it either grows or collapses. So the size is followed here as a random walk, draw by draw, through
`q -> sigma_w^2 E[phi(sqrt(q) z)^2]`, and the gradient comes back through the same draws.

References:
    Hanin and Nica, arXiv 1812.05994: ReLU, ln||g||^2 ~ N(-beta/2, beta), beta = 5 sum(1/n).
    Hayou et al., arXiv 1902.06853: the ridge of GELU and SiLU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gradrecipes.core.signal_theory import (
    Activation,
    derivative_moment,
    gaussian_mean,
    resolve_activation,
    second_moment,
)

DRAWS = 4000  # of the random walk: the ends of the interval are then known to a twentieth of its width
TAIL = 0.02275  # probability on either side of the interval: two standard deviations of a normal distribution
FINE, FAR = 8.0, 40.0  # of ln q: where the activations bend, and beyond which each is a power of its argument
FINE_STEP, COARSE_STEP = 0.1, 1.0  # of the tables in ln q


@dataclass(frozen=True)
class LayerNoise:
    """What one layer's draw adds to the noise of the squared norms.

    Args:
        forward: Variance of ln|x|^2, times the width.
        backward: Variance of ln|g|^2, times the width, apart from the 2 of the weights.
        both: Covariance of these two, times the width.
    """

    forward: float
    backward: float
    both: float


@dataclass(frozen=True)
class PredictedGrowth:
    """Hold what the initial weights predict of a plain net, layer by layer, as natural logarithms.

    Each array is float64 `[layers]`. "Low" and "high" are the ends of the interval that holds 95.45% of all draws of
    the weights.

    Args:
        output: Median of ln of the root mean square of the layer's output.
        output_low: Low end of it.
        output_high: High end of it.
        gradient: Median of ln of the gradient's norm at the layer's output over that at the last one's.
        gradient_low: Low end of it.
        gradient_high: High end of it.
    """

    output: np.ndarray
    output_low: np.ndarray
    output_high: np.ndarray
    gradient: np.ndarray
    gradient_low: np.ndarray
    gradient_high: np.ndarray


def layer_noise(activation: str | Activation | None, q: float = 1.0) -> LayerNoise:
    """Return what a layer adds to the noise of a net of finite width.

    Args:
        activation: Keras name, or an `Activation`.
        q: Variance of the pre-activations, above 0.

    Raises:
        ValueError: An unknown activation or the exponential, whose fourth moment nothing bounds; a q out of range.

    Example:
        >>> noise = layer_noise("relu")
        >>> round(noise.forward, 6), round(noise.backward, 6), round(noise.both, 6)
        (5.0, 3.0, 1.0)
    """
    activation = resolve_activation(activation)
    if activation.closed_forms is not None:
        raise ValueError(f"No noise is known of {activation.name!r}: nothing bounds its fourth moment.")
    if not 0 < q < math.inf:
        raise ValueError(f"`q` must be positive and finite. Received: q={q}.")
    phi, derivative = activation.function, activation.derivative
    squares, slopes = second_moment(activation, q), derivative_moment(activation, q)
    return LayerNoise(
        forward=gaussian_mean(lambda x: phi(x) ** 4, activation, q) / squares**2 - 1,
        backward=3 * (gaussian_mean(lambda x: derivative(x) ** 4, activation, q) / slopes**2 - 1),
        both=gaussian_mean(lambda x: (phi(x) * derivative(x)) ** 2, activation, q) / (squares * slopes) - 1,
    )


def predict_growth(
    layers: Sequence[tuple[float, str | Activation | None]],
    widths: Sequence[float],
    *,
    input_rms: float = 1.0,
    seed: int = 0,
) -> PredictedGrowth:
    """Return what the weights of a plain chain predict of outputs and gradients, with the error bar of its widths.

    The bar is that of one sample. Over a batch whose samples stay different (tanh with large weights) noise averages
    out, and the bar is too wide rather than too narrow.

    Args:
        layers: For each layer (sigma_w^2, activation), with sigma_w^2 = fan_in * Var(W); biases are 0.
        widths: Units of each layer.
        input_rms: Root mean square of the inputs, above 0.
        seed: Of the random walk.

    Raises:
        ValueError: Numbers of layers and widths that differ, a width below 1, an activation as in `layer_noise`.

    Example:
        >>> net = predict_growth([(4.0, "relu")] * 50, [128] * 50)  # sqrt(2) per layer, beta = 5 * 49 / 128
        >>> bool(abs(net.gradient[0] - (49 * math.log(2) / 2 - 5 * 49 / 128 / 4)) < 0.1)
        True
        >>> bool(abs((net.gradient_high[0] - net.gradient_low[0]) / 4 - math.sqrt(5 * 49 / 128) / 2) < 0.1)
        True
    """
    if len(layers) != len(widths) or any(not width >= 1 for width in widths):
        raise ValueError(
            "Every layer needs a width of at least 1. "
            f"Received: {len(layers)} layers and widths={list(widths)[:6]} ({len(widths)} of them)."
        )
    if not 0 < input_rms < math.inf:
        raise ValueError(f"`input_rms` must be positive and finite. Received: input_rms={input_rms}.")
    random = np.random.default_rng(seed)
    size = np.full(DRAWS, 2.0 * math.log(input_rms))  # ln of the mean square of the signal
    sizes, steps = [], []
    for (weight_variance, activation), width in zip(layers, widths, strict=True):
        power = size + math.log(weight_variance)
        table = _tables(resolve_activation(activation))
        own, shared = random.standard_normal((2, DRAWS))
        forward, backward = (table.read(name, power) / width for name in ("forward", "backward"))
        both = table.read("both", power) / width * (1 + (forward + backward) / 4)
        size = table.read("size", power) + _mean(forward) + np.sqrt(_variance(forward)) * shared
        sizes.append(size)
        along = both / np.sqrt(np.maximum(_variance(forward), 1e-300))
        beside = np.sqrt(np.maximum(_variance(backward) - np.square(along), 0.0))
        slope = table.read("slope", power) + math.log(weight_variance)
        steps.append(slope + _mean(backward) + along * shared + beside * own)
    gradient, gradients = np.zeros(DRAWS), [np.zeros(DRAWS)]
    for layer in range(len(layers) - 1, 0, -1):
        of_weights = 2.0 / widths[layer - 1]
        noise = math.sqrt(_variance(of_weights)) * random.standard_normal(DRAWS) + _mean(of_weights)
        gradient = gradient + steps[layer] + noise
        gradients.append(gradient)
    ends = [*_interval(sizes), *_interval(gradients[::-1])] if layers else [np.zeros(0)] * 6
    return PredictedGrowth(*ends)


class _Tables:
    """Hold what the walk asks of an activation, by ln q."""

    def __init__(self, activation: Activation):
        far, fine = np.arange(FINE + COARSE_STEP, FAR, COARSE_STEP), np.arange(-FINE, FINE + FINE_STEP / 2, FINE_STEP)
        self._power = np.concatenate([-far[::-1], fine, far])
        q = np.exp(self._power)
        noises = [layer_noise(activation, at) for at in q]
        self._held = {name: np.array([getattr(noise, name) for noise in noises]) for name in vars(noises[0])}
        self._held["size"] = np.log([second_moment(activation, at) for at in q])
        self._held["slope"] = np.log([derivative_moment(activation, at) for at in q])

    def read(self, name: str, power: np.ndarray) -> np.ndarray:
        """Return a reading at each ln q; beyond the table the sizes go on in a straight line, the noise stays."""
        held = self._held[name]
        value = np.interp(power, self._power, held)
        if name in ("size", "slope"):
            for end, beside in ((0, 1), (-1, -2)):
                rise = (held[end] - held[beside]) / (self._power[end] - self._power[beside])
                beyond = power - self._power[end]
                value += rise * np.where(np.sign(beyond) == (1 if end else -1), beyond, 0.0)
        return value


@lru_cache(maxsize=64)
def _tables(activation: Activation) -> _Tables:
    return _Tables(activation)


def _variance(relative: Any) -> Any:
    """Return the variance of the logarithm of a sum whose relative variance is given; for chi squared up to 1/n^2."""
    return relative * (1 + relative / 2)


def _mean(relative: Any) -> Any:
    """Return how far the mean of that logarithm lies from the logarithm of the mean."""
    return -relative / 2 * (1 + relative / 6)


def _interval(draws: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return median and ends of each layer's draws, of norms where the draws are of squared ones."""
    return list(0.5 * np.quantile(np.array(draws), [0.5, TAIL, 1.0 - TAIL], axis=1))
