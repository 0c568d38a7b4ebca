"""Edit the config of one layer: seeds, initializers, activation, dtype; whatever wraps it is edited within."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from typing import Any

SEEDS = 2**31 - 1
RECURRENT = ("SimpleRNN", "LSTM", "GRU", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
RECTIFIERS = ("relu", "leaky_relu", "elu", "gelu", "silu", "swish", "mish", "celu", "relu6")
FITTING = {  # by the role of the weight, as Keras initializes it by default; kernels by their activation
    "bias_initializer": "Zeros",
    "recurrent_initializer": "Orthogonal",
    "embeddings_initializer": "RandomUniform",
    "gamma_initializer": "Ones",
    "beta_initializer": "Zeros",
}


def edited(config: dict[str, Any], *edits: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return a copy of a layer's config after the edits, each applied to it and to the configs of layers within."""
    config = copy.deepcopy(config)
    for edit in edits:
        for part in _layers_in(config):
            edit(part)
    return config


def _layers_in(config: Any) -> list[dict[str, Any]]:
    found, pending = [config], list(config.values())
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("config"), dict) and "registered_name" in value and "dtype" in value["config"]:
                found.append(value["config"])
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            pending.extend(value)
    return found


def with_seeds(name: str, seed: int) -> Callable[[dict[str, Any]], None]:
    """Return an edit that gives every seed of a layer a value of its own, fixed by the layer's name and a seed."""

    def edit(config: dict[str, Any]) -> None:
        pending: list[tuple[str, Any]] = [(name, config)]
        while pending:
            path, value = pending.pop()
            for key, part in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
                if key == "seed" and (part is None or isinstance(part, int)):
                    value[key] = zlib.crc32(f"{path}/{seed}".encode()) % SEEDS
                elif isinstance(part, dict | list):
                    pending.append((f"{path}/{key}", part))

    return edit


def with_fitting_initializers(activation: str | None) -> Callable[[dict[str, Any]], None]:
    """Return an edit that gives each weight the initializer that fits its role, and a kernel that of its activation."""

    def edit(config: dict[str, Any]) -> None:
        for key in [key for key in config if key.endswith("_initializer")]:
            if config[key] is None:
                continue
            kind = FITTING.get(key)
            if kind is None and ("kernel" in key or key in ("depthwise_initializer", "pointwise_initializer")):
                own = _activation(config)
                kind = kernel_initializer(activation if own in (None, "linear") else own)
            if kind is not None:
                config[key] = {
                    "module": "keras.initializers",
                    "class_name": kind,
                    "config": {},
                    "registered_name": None,
                }
                if kind not in ("Zeros", "Ones"):
                    config[key]["config"] = {"seed": None}

    return edit


def kernel_initializer(activation: str | None) -> str:
    """Return the class of Keras' initializer that fits an activation.

    Example:
        >>> kernel_initializer("relu"), kernel_initializer("tanh"), kernel_initializer("selu")
        ('HeNormal', 'GlorotUniform', 'LecunNormal')
    """
    if activation == "selu":
        return "LecunNormal"
    return "HeNormal" if activation in RECTIFIERS else "GlorotUniform"


def with_activation(name: str) -> Callable[[dict[str, Any]], None]:
    """Return an edit that exchanges the activation."""

    def edit(config: dict[str, Any]) -> None:
        if "activation" in config:
            config["activation"] = name

    return edit


def with_dtype(policy: str) -> Callable[[dict[str, Any]], None]:
    """Return an edit that sets the dtype policy."""

    def edit(config: dict[str, Any]) -> None:
        if "dtype" in config:
            config["dtype"] = policy

    return edit


def _activation(config: dict[str, Any]) -> str | None:
    value = config.get("activation")
    if isinstance(value, dict):
        value = value.get("config")
        value = value if isinstance(value, str) else None
    return value
