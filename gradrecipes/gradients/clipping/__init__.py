"""The ways to bound a gradient: by a fixed norm or value, by its own past, or by the weights it changes.

Each is one small object that holds its arguments (`by_global_norm(1.0)` and so on), which callbacks and models
take and which serializes with them. Where no memory is needed there is a function of tensors besides
(`clip_by_global_norm` and so on).

| method | bounds | by |
|---|---|---|
| `by_global_norm` | the whole gradient | a number |
| `by_norm` | each tensor | a number |
| `by_value` | each entry | a number |
| `adaptive` | each output unit | a share of the norm of its weights |
| `by_percentile` | the whole gradient | a percentile of its past norms |
| `by_z_score` | the whole gradient, where it stands out | mean and deviation of its past norms |
| `adaptive_by_tensor` | each tensor | the moving average of its own norm |
| `by_layer` | groups of layers, or optimizers | a method for each |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradrecipes.gradients.clipping.by_layer import by_layer
from gradrecipes.gradients.clipping.global_norm import by_global_norm, clip_by_global_norm
from gradrecipes.gradients.clipping.method import Clipped, Clipping, StepGradients
from gradrecipes.gradients.clipping.percentile import by_percentile, percentile_of_past
from gradrecipes.gradients.clipping.tensor_average import adaptive_by_tensor
from gradrecipes.gradients.clipping.tensor_norm import by_norm, clip_by_norm
from gradrecipes.gradients.clipping.unit_wise import adaptive, clip_adaptively, unit_axes_by_rank
from gradrecipes.gradients.clipping.value import by_value, clip_by_value
from gradrecipes.gradients.clipping.z_score import by_z_score, z_score_bound
from gradrecipes.gradients.norms import MAX_SINGLE_FACTOR_NORM

METHODS = (by_global_norm, by_norm, by_value, adaptive, by_percentile, by_z_score, adaptive_by_tensor)

__all__ = [
    "MAX_SINGLE_FACTOR_NORM",
    "METHODS",
    "Clipped",
    "Clipping",
    "StepGradients",
    "adaptive",
    "adaptive_by_tensor",
    "as_clipping",
    "by_global_norm",
    "by_layer",
    "by_norm",
    "by_percentile",
    "by_value",
    "by_z_score",
    "clip_adaptively",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "percentile_of_past",
    "unit_axes_by_rank",
    "z_score_bound",
]


def as_clipping(clipping: Any, caller: str) -> Clipping | None:
    """Return a clipping method, made of a mapping where one came; refuse what is none.

    Raises:
        TypeError: With what came, the choices and the remedy.
    """
    if isinstance(clipping, Mapping):
        return by_layer(dict(clipping))
    is_method = hasattr(clipping, "clip") and hasattr(clipping, "make_state")  # numbers of numpy have a `clip` too
    if clipping is None or (is_method and not isinstance(clipping, type)):
        return clipping
    choices = ", ".join(f"gr.clipping.{method.__name__}(...)" for method in METHODS)
    raise TypeError(
        f"`clipping` of {caller} must be a clipping method or None. Received: {clipping!r}. Choose one of: {choices}; "
        "or give a mapping of layer patterns to methods."
    )
