"""The loss of the best constant prediction, which a net must beat to have learned anything."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_SQUARED = {"mse", "mean_squared_error"}
_ABSOLUTE = {"mae", "mean_absolute_error"}


def constant_baseline_loss(
    loss: str | None, *targets: Any, sample_weights: Sequence[Any] | None = None, summed: bool = False
) -> float | None:
    """Return the loss of the best constant prediction, or None where the loss or the targets do not tell it.

    For a cross-entropy that is the entropy of the labels, in nats; for a squared error their variance; for an
    absolute one their mean distance from the median. Sample weights weigh the samples in all of these.

    Args:
        loss: Keras' name of the loss, such as `"mse"` or `"sparse_categorical_crossentropy"`.
        targets: Arrays `[samples, ...]`, one for each batch. None, or arrays that hold no numbers or do not fit each
            other, give None.
        sample_weights: For each batch `[samples]` or `[samples, places]`; None where samples have none.
        summed: Whether the loss of a batch is the sum over its samples and places, not their mean.

    Example:
        >>> round(constant_baseline_loss("sparse_categorical_crossentropy", np.array([0, 1, 0, 1])), 4)
        0.6931
        >>> constant_baseline_loss("mse", np.array([1.0, 3.0]))
        1.0
        >>> constant_baseline_loss("mse", np.array([1.0, 3.0]), summed=True)
        2.0
    """
    if loss is None or any(batch is None for batch in targets):
        return None
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", str(loss)).lower()
    try:
        values = np.concatenate([np.asarray(batch, dtype=np.float64) for batch in targets])
        weights = np.ones(values.shape) if sample_weights is None else _like(values, sample_weights)
    except (TypeError, ValueError):
        return None
    if not len(values):
        return None
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    values, weights = values[finite], weights[finite]
    if not len(values) or not (weights.min() >= 0 and weights.sum() > 0):
        return None
    found = _least(name, values, weights)
    if found is None or not summed:
        return found
    columns = 1 if name == "sparse_categorical_crossentropy" or values.ndim < 2 else values.shape[-1]
    return found * values.size / columns / len(targets)


def _like(values: np.ndarray, sample_weights: Sequence[Any]) -> np.ndarray:
    """Return the weights of samples, or of places, for each entry of the targets."""
    weights = np.concatenate([np.asarray(batch, dtype=np.float64) for batch in sample_weights])
    if weights.ndim > values.ndim and weights.shape[-1] == 1:
        weights = weights[..., 0]
    return np.broadcast_to(weights.reshape(*weights.shape, *(1,) * (values.ndim - weights.ndim)), values.shape)


def _least(name: str, values: np.ndarray, weights: np.ndarray) -> float | None:
    """Return the mean loss of the best constant prediction to values, each of which has a weight."""
    if name == "sparse_categorical_crossentropy":
        _, places = np.unique(values, return_inverse=True)
        counts = np.bincount(places.ravel(), weights.ravel())
        return _entropy(counts / counts.sum()) * float(weights.mean())
    if name == "categorical_crossentropy" and values.ndim > 1:
        rows = (values * weights).reshape(-1, values.shape[-1])
        return _entropy(rows.sum(axis=0) / weights[..., 0].sum()) * float(weights.mean())
    flat, weights = values.reshape(len(values), -1), weights.reshape(len(values), -1)
    shares = weights / np.maximum(weights.sum(axis=0), np.finfo(float).tiny)
    sizes = weights.mean(axis=0)
    means = (shares * flat).sum(axis=0)
    if name == "binary_crossentropy":
        if means.min() < 0 or means.max() > 1:
            return None
        return float(np.mean(sizes * [_entropy(np.array([share, 1.0 - share])) for share in means]))
    if name in _SQUARED:
        return float(np.mean(sizes * (shares * (flat - means) ** 2).sum(axis=0)))
    if name in _ABSOLUTE:
        medians = np.array([_median(*pair) for pair in zip(flat.T, shares.T, strict=True)])
        return float(np.mean(sizes * (shares * np.abs(flat - medians)).sum(axis=0)))
    return None


def _median(values: np.ndarray, shares: np.ndarray) -> float:
    order = np.argsort(values)
    return float(values[order][min(len(values) - 1, int(np.searchsorted(np.cumsum(shares[order]), 0.5)))])


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(max(0.0, -np.sum(shares * np.log(shares)))) if math.isfinite(shares.sum()) else 0.0
