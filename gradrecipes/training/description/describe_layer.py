"""What one layer is: its class, activation, initializer and kernel."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from gradrecipes.core.trace.description import LayerDescription

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
