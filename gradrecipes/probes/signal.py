"""See what a net does to a signal: every layer's outputs and output gradients on one real batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.trace.probes import LayerSignal, SignalReading
from gradrecipes.probes.attention import AttentionProbe
from gradrecipes.training.description.describe_layer import describe_layer, weight_scales
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.step.activation_capture import ActivationCapture

ACTIVATION_LAYERS = (
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.PReLU,
)
QUANTILES = 512  # quantiles of a standard normal, so that nothing is drawn
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
        one, ten = (_output_rms(function, scale) for scale in (1.0, TENFOLD))
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


def _output_rms(function: Callable[[Any], Any], scale: float) -> float:
    values = np.asarray(function(keras.ops.convert_to_tensor(scale * _quantiles()))).astype(np.float64)
    return float(np.sqrt(np.mean(np.square(values))))


@functools.cache
def _quantiles() -> np.ndarray:
    normal = NormalDist()
    return np.array([[normal.inv_cdf((place + 0.5) / QUANTILES) for place in range(QUANTILES)]], np.float32)


SAMPLES = 256  # of a batch; shares of units are known to a percent by then
CELLS_AT_MOST = 4_000_000  # entries of an output that are looked at; a larger one is thinned out
BOUNDS = {  # activation: (lowest, highest output, distance from a bound within which the slope is below a tenth)
    "tanh": (-1.0, 1.0, 0.05),
    "sigmoid": (0.0, 1.0, 0.025),
    "hard_sigmoid": (0.0, 1.0, 0.0),
    "hard_tanh": (-1.0, 1.0, 0.0),
    "softsign": (-1.0, 1.0, 0.3),
    "relu6": (-np.inf, 6.0, 0.0),
}
DEAD_KINDS = {"relu", "relu6"}


def signal(model: keras.Model, batch: Any, *, attention: AttentionProbe | None = None) -> SignalReading:
    """Return what every layer puts out on a batch, and the gradient that comes back to it; no training.

    Args:
        model: A compiled, built model. It is left as it was.
        batch: What `train_step` gets.
        attention: Reads the attention of the model; None for one of its own. One that is given is traced once.
    """
    attention = attention or AttentionProbe(model)
    capture = ActivationCapture(model)
    x, y, sample_weight = (_some(part) for part in keras.utils.unpack_x_y_sample_weight(batch))
    value, error = None, None
    with preserve_state(model), capture.installed(), capture.capturing():
        try:
            with tf.GradientTape() as tape:
                outputs = model(x, training=True)
                loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight)
            tape.gradient(loss, model.trainable_weights)
            value = float(loss)
        except Exception as raised:  # a subclassed model may do in its train step what its call alone cannot
            error = f"{type(raised).__name__}: {raised}"[:500]
    captured = zip(capture.layers(), capture.inputs(), capture.tensors(), strict=True)
    read = tuple(_reading(layer, entered, output, gradient) for layer, entered, (output, gradient) in captured)
    return SignalReading(read, attention.read(x), weight_scales(model), value, error)


def _some(part: Any) -> Any:
    return keras.tree.map_structure(lambda array: None if array is None else array[:SAMPLES], part)


def _reading(layer: keras.layers.Layer, entered: Any, output: tf.Tensor, gradient: Any) -> LayerSignal:
    described = describe_layer(layer)
    values = _array(output)
    finite = values[np.isfinite(values)]
    incoming = None if entered is None else _array(entered)
    exponent, gain = activation_response(layer)
    return LayerSignal(
        name=layer.name,
        kind=described.kind,
        activation=described.activation,
        dtype=output.dtype.name,
        input_rms=None if incoming is None else _rms(incoming[np.isfinite(incoming)]),
        output_rms=_rms(finite),
        output_mean=float(finite.mean()) if finite.size else None,
        output_max=float(np.abs(finite).max()) if finite.size else None,
        nonfinite_share=1.0 - finite.size / max(values.size, 1),
        zero_share=float((values == 0).mean()) if values.size else None,
        dead_share=_dead_share(values, described.activation),
        saturated_share=_saturated_share(values, described.activation),
        output_gradient_norm=None if gradient is None else _norm(_array(gradient, whole=True)),
        activation_exponent=exponent,
        activation_gain=gain,
    )


def _array(tensor: Any, *, whole: bool = False) -> np.ndarray:
    if isinstance(tensor, tf.IndexedSlices):
        tensor = tensor.values
    size = int(tf.size(tensor))
    if size > CELLS_AT_MOST and not whole:
        tensor = tensor[: max(1, int(tensor.shape[0] * CELLS_AT_MOST / size))]
    return np.asarray(tensor).astype(np.float64)


def _rms(values: np.ndarray) -> float | None:
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(np.square(values)))) if values.size else None


def _norm(values: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.sum(np.square(values))))


def _dead_share(values: np.ndarray, activation: str | None) -> float | None:
    if activation not in DEAD_KINDS or values.ndim < 2:
        return None
    return float((values == 0).all(axis=tuple(range(values.ndim - 1))).mean())


def _saturated_share(values: np.ndarray, activation: str | None) -> float | None:
    if activation not in BOUNDS or not values.size:
        return None
    low, high, near = BOUNDS[activation]
    return float(((values <= low + near) | (values >= high - near)).mean())
