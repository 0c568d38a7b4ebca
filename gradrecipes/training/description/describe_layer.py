"""What one layer is: its class, activation, initializer and kernel, and how large its weights are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import holds_layers, sublayers
from gradrecipes.core.theory.signal_theory import ACTIVATIONS, forward_gain
from gradrecipes.core.trace.description import LayerDescription
from gradrecipes.core.trace.probes import WeightScale

ACTIVATION_LAYERS = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "ELU": "elu", "PReLU": "prelu", "Softmax": "softmax"}


def describe_layer(layer: keras.layers.Layer, *, name: str | None = None) -> LayerDescription:
    """Return what a layer is, without the spread of its weights, which the first sample of a training adds.

    Args:
        layer: The layer.
        name: Its name in the record; that of the layer by default.

    Example:
        >>> describe_layer(keras.layers.Dense(3, activation="relu", name="hidden")).activation
        'relu'
    """
    kernel = kernel_of(layer)
    initializer = getattr(layer, "kernel_initializer", None)
    return LayerDescription(
        name=layer.name if name is None else name,
        kind=type(layer).__name__,
        activation=_activation(layer),
        initializer=None if initializer is None else type(initializer).__name__,
        fan_in=None if kernel is None else int(np.prod(kernel.shape[:-1])),
        units=None if kernel is None else int(kernel.shape[-1]),
        parameters=int(sum(np.prod(variable.shape) for variable in layer.trainable_variables)),
        trainable=bool(layer.trainable),
        custom=is_custom(layer),
    )


def is_custom(layer: Any) -> bool:
    """Return whether the class of a layer is not one of Keras'."""
    return type(layer).__module__.split(".")[0] not in ("keras", "keras_hub", "keras_nlp", "keras_cv")


def kernel_of(layer: keras.layers.Layer) -> Any:
    """Return the weights that a layer's inputs are multiplied by, or None."""
    kernel = getattr(layer, "kernel", None)
    return kernel if kernel is not None and len(kernel.shape) >= 2 else None


def _activation(layer: keras.layers.Layer) -> str | None:
    if type(layer).__name__ in ACTIVATION_LAYERS:
        return ACTIVATION_LAYERS[type(layer).__name__]
    activation = getattr(layer, "activation", None)
    return None if activation is None else getattr(activation, "__name__", type(activation).__name__)


SATURATING = {"tanh", "sigmoid", "hard_sigmoid", "hard_tanh", "softsign"}


def weight_scales(model: keras.Model) -> tuple[WeightScale, ...]:
    """Return the spread of every weight of a model, beside the spreads that the usual initializers give.

    Returns:
        A `WeightScale` for each trainable variable.
    """
    found, seen = [], set()
    for layer in [*sublayers(model), model]:
        if holds_layers(layer) and layer is not model and not hasattr(layer, "kernel"):
            continue  # a container: its layers come themselves
        for variable in layer.trainable_variables:
            if id(variable) not in seen:
                seen.add(id(variable))
                found.append(_scale(layer, variable))
    return tuple(found)


def _scale(layer: keras.layers.Layer, variable: Any) -> WeightScale:
    values = np.asarray(variable).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = WeightScale(
            path=variable.path,
            layer=layer.name,
            kind=type(layer).__name__,
            role=_role(layer, variable),
            shape=tuple(values.shape),
            mean=float(values.mean()) if values.size else 0.0,
            std=float(values.std()) if values.size else 0.0,
            rms=float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0,
            largest=float(np.abs(values).max()) if values.size else 0.0,
        )
    if scale.role in ("kernel", "matrix"):
        fan_in, fan_out = _fans(layer, values.shape)
        gain = _gain(describe_layer(layer).activation)
        spreads = [math.sqrt(2.0 / (fan_in + fan_out)), math.sqrt(1.0 / fan_in), gain / math.sqrt(fan_in)]
        return replace(scale, fan_in=fan_in, fan_out=fan_out, least=min(spreads), most=max(spreads))
    return scale


def _role(layer: keras.layers.Layer, variable: Any) -> str:
    name = variable.path.rsplit("/", 1)[-1]
    if "embedding" in name:
        return "embedding"
    if "recurrent" in name:
        return "recurrent"
    if "bias" in name or name == "beta":
        return "bias"
    if "kernel" in name and len(variable.shape) >= 2:
        return "kernel"
    return "matrix" if len(variable.shape) == 2 and min(variable.shape) > 1 else "other"


def _fans(layer: keras.layers.Layer, shape: tuple[int, ...]) -> tuple[int, int]:
    if "Depthwise" in type(layer).__name__:
        window = int(np.prod(shape[:-2]))
        return window, window * shape[-1]
    if type(layer).__name__ == "EinsumDense":
        return _einsum_fans(layer, shape)
    window = int(np.prod(shape[:-2]))
    return max(1, window * shape[-2]), max(1, window * shape[-1])


def _einsum_fans(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the fans by the equation: what the output keeps of the kernel's axes goes out, the rest comes in."""
    inputs, _, output = layer.equation.replace(" ", "").partition("->")
    kernel = inputs.split(",")[1]
    kept = {axis: size for axis, size in zip(kernel, shape, strict=False) if axis in output}
    fan_out = int(np.prod(list(kept.values()))) if kept else 1
    return max(1, int(np.prod(shape)) // max(1, fan_out)), fan_out


def _gain(activation: str | None) -> float:
    """Return the gain that keeps the signal's size; that of sigmoids is left at 1, as their initializers do."""
    if activation in SATURATING or activation not in ACTIVATIONS or activation == "exponential":
        return 1.0
    return min(2.0, forward_gain(activation))
