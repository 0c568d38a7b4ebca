"""The loss of the best constant prediction, which a net must beat to have learned anything."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

_SQUARED = {"mse", "mean_squared_error"}
_ABSOLUTE = {"mae", "mean_absolute_error"}


def constant_baseline_loss(loss: str | None, *targets: Any) -> float | None:
    """Return the loss of the best constant prediction, or None where the loss or the targets do not tell it.

    For a cross-entropy that is the entropy of the labels, in nats; for a squared error their variance; for an
    absolute one their mean distance from the median.

    Args:
        loss: Keras' name of the loss, such as `"mse"` or `"sparse_categorical_crossentropy"`.
        targets: Arrays `[samples, ...]`, one for each batch. None, or arrays that hold no numbers or do not fit each
            other, give None.

    Example:
        >>> round(constant_baseline_loss("sparse_categorical_crossentropy", np.array([0, 1, 0, 1])), 4)
        0.6931
        >>> constant_baseline_loss("mse", np.array([1.0, 3.0]))
        1.0
    """
    if loss is None or any(batch is None for batch in targets):
        return None
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", str(loss)).lower()
    try:
        values = np.concatenate([np.asarray(batch, dtype=np.float64) for batch in targets])
    except (TypeError, ValueError):
        return None
    if not len(values):
        return None
    values = values[np.isfinite(values.reshape(len(values), -1)).all(axis=1)]
    if not len(values):
        return None
    if name == "sparse_categorical_crossentropy":
        _, counts = np.unique(values, return_counts=True)
        return _entropy(counts / counts.sum())
    if name == "categorical_crossentropy" and values.ndim > 1:
        return _entropy(values.reshape(-1, values.shape[-1]).mean(axis=0))
    if name == "binary_crossentropy":
        shares = values.reshape(len(values), -1).mean(axis=0)
        if shares.min() < 0 or shares.max() > 1:
            return None
        return float(np.mean([_entropy(np.array([share, 1.0 - share])) for share in shares]))
    flat = values.reshape(len(values), -1)
    if name in _SQUARED:
        return float(np.mean(np.var(flat, axis=0)))
    if name in _ABSOLUTE:
        return float(np.mean(np.abs(flat - np.median(flat, axis=0))))
    return None


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(max(0.0, -np.sum(shares * np.log(shares)))) if math.isfinite(shares.sum()) else 0.0
