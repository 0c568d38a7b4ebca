"""The loss of the best constant prediction, fitted for a loss of which no formula tells it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

from gradrecipes.probes.loss import SAME

STARTS = 4  # columns that the fit starts at the mean of the targets, one after the other
EVALUATIONS = 60  # of the loss, for each start
LEVEL = 0.1  # slope at the end of a fit over the steepest at a start; a loss without a bottom falls on as steeply


def best_constant_loss(
    loss: Callable[[tf.Tensor, slice], tf.Tensor], *, samples: int, columns: int, middle: float
) -> float | None:
    """Return the least loss of a prediction that is the same for all samples.

    Args:
        loss: Called with constants, float32 `[columns]`, and the rows to predict them for; returns the mean loss of
            these rows, a scalar.
        samples: How many rows there are.
        columns: How many constants.
        middle: Mean of the targets, where the fit starts, too.

    Returns:
        None where the loss compares samples with each other, has no lower bound, or is finite nowhere near a start.

    Example:
        >>> targets = tf.constant([1.0, 2.0, 6.0])
        >>> squares = lambda constants, rows: tf.reduce_mean((targets[rows] - constants) ** 2)
        >>> round(best_constant_loss(squares, samples=3, columns=1, middle=3.0), 3)
        4.667
    """
    at, half = np.linspace(0.1, 0.2, columns), samples // 2
    parts = (slice(None), slice(None, half), slice(half, None))
    whole, *halves = (_loss_and_slope(at, loss, rows)[0] for rows in parts)
    together = (half * halves[0] + (samples - half) * halves[1]) / samples
    if not abs(whole - together) <= SAME * max(abs(whole), abs(together)):
        return None
    starts = [
        np.zeros(columns),
        np.ones(columns),
        np.full(columns, middle),
        *(middle * one for one in np.eye(columns)[:STARTS]),
    ]
    slopes = [_loss_and_slope(start, loss, slice(None))[1] for start in (at, *starts)]
    level = LEVEL * max(float(np.abs(slope).max()) for slope in slopes)
    how: dict[str, Any] = {"jac": True, "method": "L-BFGS-B", "options": {"maxfun": EVALUATIONS}}
    ends = [minimize(_loss_and_slope, start, args=(loss, slice(None)), **how) for start in starts]
    bottoms = [float(end.fun) for end in ends if math.isfinite(end.fun) and np.abs(end.jac).max() <= level]
    return min(bottoms, default=None)


def _loss_and_slope(
    constants: np.ndarray, loss: Callable[[tf.Tensor, slice], tf.Tensor], rows: slice
) -> tuple[float, np.ndarray]:
    """Return (loss, its gradient); infinity where one of them is not finite."""
    variables = tf.constant(constants, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(variables)
        value = loss(variables, rows)
    slope = tape.gradient(value, variables)
    slopes = np.zeros(len(constants)) if slope is None else np.asarray(slope, np.float64)
    finite = math.isfinite(float(value)) and bool(np.isfinite(slopes).all())
    return (float(value), slopes) if finite else (math.inf, np.zeros(len(constants)))
