"""Find out whether the learning rate fits the curvature of the loss, without a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import leaves
from gradrecipes.core.theory.stability import KNOWN, StabilityLimit, stability_limit
from gradrecipes.core.trace.sharpness import Sharpness
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial.curvature import Curvature, divisor
from gradrecipes.training.trial.sampling import draw_batches, is_arrays

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


GRADIENTS = 8  # batches whose squared gradients stand for the memory of an optimizer that has none yet


def sharpness(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 32,
    batches: int = 1,
    iterations: int = 20,
    seed: int = 0,
) -> Sharpness:
    r"""Measure the curvature of the loss, and compare it with the stability limit of the optimizer.

    The largest eigenvalue lambda of the Hessian is found by the Lanczos recurrence on Hessian-vector products. A
    gradient step of rate eta along that direction grows from step to step where `eta * lambda > 2`; with momentum
    beta where it is above 2 (1 + beta); under Adam the Hessian is first divided by the size of past gradients, and
    the bound is 38 at beta_1 = 0.9. The model is left as it was.

    Read it before training, or to cap a rate. In the middle of a healthy training lambda sits at the limit by itself,
    and small batches curve more steeply than the whole data do. Before the first step an adaptive optimizer knows no
    sizes of gradients: those of a few batches stand in, and the figure is then a guess that may be far too high.

    Args:
        model: A compiled model.
        x: Arrays as `model.fit` takes them.
        y: Targets.
        batch_size: Samples in a batch; of fewer samples than that, all.
        batches: Batches over whose mean loss the curvature is taken.
        iterations: Hessian-vector products at most, each of the cost of about two gradients.
        seed: Which samples, which direction first, and what dropout leaves out.

    Returns:
        `Sharpness`, with `ratio` and words; what could not be had is None in it, with the reason.

    Raises:
        ValueError: A model that is not compiled or has no trainable weights, or arguments out of range.
        TypeError: Data that are no arrays.

    Example:
        >>> found = gr.probes.sharpness(model, x, y)
        >>> round(found.limit, 3), found.ratio > 0
        (200.0, True)

    References:
        Cohen et al. 2021, arXiv 2103.00065; Cohen et al. 2022, arXiv 2207.14484.
    """
    if not model.compiled:
        raise ValueError(f"The model {model.name!r} has no loss yet. Compile it first: model.compile(loss=...).")
    if not is_arrays(x):
        raise TypeError(f"`x` must be arrays, of which samples can be drawn. Received: {type(x).__name__}.")
    for name, value in (("batch_size", batch_size), ("batches", batches), ("iterations", iterations)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a whole number, at least 1. Received: {name}={value!r}.")
    batch_size = min(batch_size, len(keras.tree.flatten(x)[0]))
    data = draw_batches((x, y), batch_size=batch_size, batches=max(batches, GRADIENTS), seed=seed)
    cut = [_batch(data, start, batch_size) for start in range(0, max(batches, GRADIENTS) * batch_size, batch_size)]
    if not model.built:
        model(_batch(data, 0, 1)[0])
    if not model.trainable_variables:
        raise ValueError(f"The model {model.name!r} has no trainable weights, and so no curvature.")
    limit, rate, reason = _limit(model)
    with preserve_state(model):
        curvature = Curvature(model, cut[:batches], seed=seed)
        try:
            scale = divisor(leaves(model.optimizer)[0], curvature.size, lambda: curvature.gradients(cut[:GRADIENTS]))
            found = _measured(curvature, None if scale is None else 1 / np.sqrt(scale[0]), iterations, seed)
        except Exception as error:  # the user's own layers and loss run here, and may fail in any way
            return Sharpness(reason=f"The loss has no gradient that could be derived again: {error}")
    reason = "A gradient, or its derivative, is not finite." if found is None else reason
    return Sharpness(
        lambda_max=None if found is None else found.largest,
        lambda_min=None if found is None else found.smallest,
        limit=None if limit is None else limit.limit,
        learning_rate=rate,
        iterations=0 if found is None else found.iterations,
        converged=found is not None and found.converged,
        preconditioned=scale is not None,
        preconditioner=None if scale is None else scale[1],
        method=curvature.method,
        formula="" if limit is None else limit.formula,
        reason=reason,
    )


def _measured(curvature: Curvature, scale: np.ndarray | None, iterations: int, seed: int) -> Extremes | None:
    start = np.random.default_rng(seed).standard_normal(curvature.size, dtype=np.float32)
    if scale is None:
        return extreme_eigenvalues(curvature.product, start, iterations=iterations)
    # P^-1/2 H P^-1/2 is symmetric and has the eigenvalues of P^-1 H.
    return extreme_eigenvalues(lambda v: scale * curvature.product(scale * v), start, iterations=iterations)


def _limit(model: keras.Model) -> tuple[StabilityLimit | None, float | None, str | None]:
    updating = leaves(model.optimizer)
    if len(updating) > 1:
        return None, None, "The model has several optimizers, each with a limit of its own."
    optimizer = updating[0]
    rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    if not (math.isfinite(rate) and rate >= 0):
        return None, None, f"The learning rate is {rate}."
    limit = stability_limit({**optimizer.get_config(), "name": type(optimizer).__name__}, rate)
    known = f"No limit is known for {type(optimizer).__name__}, only for {', '.join(KNOWN)}."
    return limit, rate, None if limit else known


def _batch(data: tuple[Any, ...], start: int, size: int) -> tuple[Any, ...]:
    return keras.tree.map_structure(lambda part: None if part is None else part[start : start + size], data)
