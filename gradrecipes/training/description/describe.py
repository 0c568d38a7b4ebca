"""What a Trace says of the run it belongs to: model, layers, optimizer, loss, versions."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import leaves, lower_scale

ACTIVATION_LAYERS = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "ELU": "elu", "PReLU": "prelu", "Softmax": "softmax"}


def describe_run(model: keras.Model, layers: list[keras.layers.Layer], *, names: list[str]) -> dict[str, Any]:
    """Return the description of a run, as `gradrecipes.core.trace.Trace` explains it, in plain JSON values."""
    optimizer = leaves(model.optimizer)[0]
    config = _plain(optimizer.get_config())
    return {
        "model": model.name,
        "optimizer": {**config, "name": type(optimizer).__name__},
        "learning_rate": _learning_rate(optimizer),
        "loss": _name_of(model.loss),
        "precision": model.dtype_policy.name,
        "scaler": None if lower_scale(model.optimizer) is None else type(model.optimizer).__name__,
        "layers": [{**describe_layer(layer), "name": name} for layer, name in zip(layers, names, strict=True)],
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }


def describe_layer(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return what the rules ask of a layer, but for the spread of its weights, which the first sample tells."""
    kernel = kernel_of(layer)
    initializer = getattr(layer, "kernel_initializer", None)
    return {
        "name": layer.name,
        "kind": type(layer).__name__,
        "activation": _activation(layer),
        "initializer": None if initializer is None else type(initializer).__name__,
        "fan_in": None if kernel is None else int(np.prod(kernel.shape[:-1])),
        "units": None if kernel is None else int(kernel.shape[-1]),
        "weight_std": None,
        "weight_mean": None,
        "parameters": int(sum(np.prod(v.shape) for v in layer.trainable_variables)),
        "trainable": bool(layer.trainable),
    }


def kernel_of(layer: keras.layers.Layer) -> Any:
    """Return the weights that a layer's inputs are multiplied by, or None."""
    kernel = getattr(layer, "kernel", None)
    return kernel if kernel is not None and len(kernel.shape) >= 2 else None


def _activation(layer: keras.layers.Layer) -> str | None:
    if type(layer).__name__ in ACTIVATION_LAYERS:
        return ACTIVATION_LAYERS[type(layer).__name__]
    activation = getattr(layer, "activation", None)
    return None if activation is None else getattr(activation, "__name__", type(activation).__name__)


def _learning_rate(optimizer: keras.optimizers.Optimizer) -> float | None:
    try:
        return _finite(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
    except (AttributeError, TypeError, ValueError):  # a composite optimizer has no single rate
        return None


def _name_of(loss: Any) -> str | None:
    if loss is None or isinstance(loss, str):
        return loss
    if isinstance(loss, (list, tuple)):
        return ", ".join(str(_name_of(part)) for part in loss)
    if isinstance(loss, dict):
        return ", ".join(f"{name}: {_name_of(part)}" for name, part in loss.items())
    return getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
