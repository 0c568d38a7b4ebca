"""How an activation answers to larger inputs: whether it holds a signal, passes it on, or blows it up."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import keras
import numpy as np

ACTIVATION_LAYERS = (
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.PReLU,
)
SAMPLES = 512  # quantiles of a standard normal, so that nothing is drawn
TENFOLD = 10.0


def activation_response(layer: keras.layers.Layer) -> tuple[float | None, float | None]:
    """Return (exponent, gain) of a layer's own activation, or (None, None) where it has none.

    With z ~ N(0, 1) and r(s) = sqrt(E[phi(s z)^2]): the gain is r(1); the exponent is log10(r(10) / r(1)), which is
    1 for what grows in proportion (ReLU, linear), 0 for what is bounded (tanh), and above 1 for what blows up
    (a square has 2, an exponential far more). Infinite where r(10) overflows float32.
    """
    function = _function_of(layer)
    if function is None:
        return None, None
    try:
        one, ten = (_rms(function, scale) for scale in (1.0, TENFOLD))
    except Exception:  # an activation that wants a certain shape, or a layer that is not built
        return None, None
    if not one > 0:
        return None, None
    return (math.log10(ten / one) if math.isfinite(ten) else math.inf), one


def _function_of(layer: keras.layers.Layer) -> Callable[[Any], Any] | None:
    if isinstance(layer, ACTIVATION_LAYERS):
        return layer.__call__ if not isinstance(layer, keras.layers.PReLU) else None
    function = getattr(layer, "activation", None)
    named = getattr(function, "__name__", "")
    return function if callable(function) and named not in ("linear", "softmax", "log_softmax", "sparsemax") else None


def _rms(function: Callable[[Any], Any], scale: float) -> float:
    values = np.asarray(function(keras.ops.convert_to_tensor(scale * _quantiles()))).astype(np.float64)
    return float(np.sqrt(np.mean(np.square(values))))


@functools.cache
def _quantiles() -> np.ndarray:
    normal = NormalDist()
    return np.array([[normal.inv_cdf((place + 0.5) / SAMPLES) for place in range(SAMPLES)]], np.float32)
