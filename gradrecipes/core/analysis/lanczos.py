"""The largest and the smallest eigenvalue of a symmetric matrix that is known only by its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EXHAUSTED = 1e-6  # size of the next direction over that of the product: what is left of it is float32 rounding


@dataclass(frozen=True)
class Extremes:
    """Hold the ends of a spectrum.

    Args:
        largest: Largest eigenvalue (algebraically); never above the true one, but for rounding.
        smallest: Smallest one.
        error: Norm of the residual of the largest: an eigenvalue lies within this distance.
        iterations: Products that were taken.
        converged: Whether the error is within the tolerance.
    """

    largest: float
    smallest: float
    error: float
    iterations: int
    converged: bool


def extreme_eigenvalues(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, *, iterations: int = 20, tolerance: float = 0.01
) -> Extremes | None:
    """Return the ends of the spectrum by the Lanczos recurrence, in about 20 products and with three vectors in memory.

    `scipy.sparse.linalg.eigsh` counts restarts rather than products, and raises on a product that is not finite.

    Nothing is made orthogonal anew: that would need every vector, and lets only copies of eigenvalues appear that
    were found already, which the ends do not mind.

    Args:
        product: v to A v, float `[n]` both, A symmetric.
        start: Random vector, float `[n]`, not 0.
        iterations: Products at most, at least 1.
        tolerance: Error of the largest eigenvalue, over its size, at which to stop.

    Returns:
        `Extremes`, or None where a product is not finite.

    Raises:
        ValueError: A start of size 0 or not finite, or fewer than 1 iteration.

    Example:
        >>> spectrum = np.array([5.0, 1.0, -2.0])
        >>> round(extreme_eigenvalues(lambda v: spectrum * v, np.ones(3)).largest, 6)
        5.0
    """
    size = _norm(start)
    if not (math.isfinite(size) and size > 0):
        raise ValueError(f"`start` must be a finite vector that is not 0. Received a norm of {size}.")
    if iterations < 1:
        raise ValueError(f"`iterations` must be at least 1. Received: iterations={iterations}.")
    vector, before = start / size, np.zeros_like(start)
    diagonal: list[float] = []
    beside: list[float] = [0.0]
    while True:
        image = product(vector)
        scale = _norm(image)
        if not math.isfinite(scale):
            return None
        diagonal.append(float(np.dot(image, vector)))
        image = image - diagonal[-1] * vector - beside[-1] * before
        rest = _norm(image)
        values, vectors = _eigen(diagonal, beside[1:])
        error = rest * abs(float(vectors[-1, -1]))
        exhausted = rest <= EXHAUSTED * max(scale, abs(float(values[-1])))
        enough = len(diagonal) > 1 and error <= tolerance * abs(float(values[-1]))
        if exhausted or enough or len(diagonal) == iterations:
            break
        before, vector = vector, image / rest
        beside.append(rest)
    return Extremes(float(values[-1]), float(values[0]), error, len(diagonal), bool(exhausted or enough))


def _eigen(diagonal: list[float], beside: list[float]) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    return np.linalg.eigh(matrix)


def _norm(vector: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(float(np.sum(np.square(vector, dtype=np.float64))))
