"""What a Trace says of its run, as far as it is of the kind that the rules expect."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from gradrecipes.core.trace import Trace

LARGEST_COUNT = 2**53  # whole numbers up to it are exact as floats too


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < math.inf and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


KINDS: dict[str, Callable[[Any], bool]] = {
    "model": _is_text,
    "optimizer": lambda value: isinstance(value, dict),
    "learning_rate": _is_number,
    "loss": _is_text,
    "precision": _is_text,
    "scaler": _is_text,
    "batch_size": _is_count,
}
KINDS_OF_LAYERS: dict[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "kind": _is_text,
    "activation": _is_text,
    "initializer": _is_text,
    "fan_in": _is_count,
    "units": _is_count,
    "weight_std": _is_number,
    "weight_mean": _is_number,
    "parameters": _is_count,
    "trainable": lambda value: isinstance(value, bool),
}


def understood(trace: Trace) -> Trace:
    """Return the same record, without the entries of its description that are of another kind than they should be.

    A record may come from anywhere: an older version, another program, a hand that edited it. Every rule may rely on
    what is left, and takes what is missing for not known.

    Example:
        >>> from gradrecipes.core.trace import Trace
        >>> understood(Trace(description={"batch_size": "many", "loss": "mse"})).description
        {'loss': 'mse'}
    """
    view = copy.copy(trace)
    view.description = _fitting(trace.description, KINDS)
    listed = view.description.pop("layers", None)
    if isinstance(listed, list | tuple):
        layers = [_fitting(layer, KINDS_OF_LAYERS) for layer in listed if isinstance(layer, dict)]
        view.description["layers"] = [layer for layer in layers if layer.get("name") is not None]
    return view


def _fitting(entries: Mapping[str, Any], kinds: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if value is None or kinds.get(name, _anything)(value)}


def _anything(value: Any) -> bool:
    return True
