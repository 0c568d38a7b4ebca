r"""Up to which curvature of the loss an optimizer is stable at its learning rate.

On a slope of curvature lambda, an update that is linear in the gradient is a linear recurrence. It oscillates with
growing amplitude once `eta * lambda` passes the value at which a root of its characteristic polynomial leaves the unit
circle through -1:

    gradient descent                        2
    heavy ball, momentum beta               2 (1 + beta)
    Nesterov's momentum                     2 (1 + beta) / (1 + 2 beta)
    mean of gradients, beta_1 (Adam)        2 (1 + beta_1) / (1 - beta_1)          38 at beta_1 = 0.9
    the same, looking ahead (Nadam)         2 (1 + beta_1) / (1 + beta_1 - 2 beta_1^2)

Optimizers that divide by the size of past gradients meet the curvature of the preconditioned Hessian P^-1 H.

References:
    Cohen et al., arXiv 2103.00065 (gradient descent, momentum); arXiv 2207.14484 (Adam and its kin).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MEMORY_OF_SQUARES = {"Adam": "velocity", "AdamW": "velocity", "Nadam": "velocity", "RMSprop": "velocity"}
MEMORY_OF_SQUARES |= {"Adagrad": "accumulator"}  # what the optimizer calls its memory of squared gradients
MEMORY_OF_SIZES = {"Adamax": "norm"}  # likewise of magnitudes
PLAIN = ("SGD",)
KNOWN = (*PLAIN, *MEMORY_OF_SQUARES, *MEMORY_OF_SIZES)


@dataclass(frozen=True)
class StabilityLimit:
    """Hold the largest curvature at which an optimizer is stable.

    Args:
        limit: Largest eigenvalue of the (preconditioned) Hessian at which steps do not yet grow; infinite at rate 0.
        product: The same times the learning rate: 2 for gradient descent.
        preconditioned: Whether the eigenvalue is that of the preconditioned Hessian.
        formula: The limit in words.
    """

    limit: float
    product: float
    preconditioned: bool
    formula: str


def stability_limit(optimizer: Mapping[str, Any], learning_rate: float) -> StabilityLimit | None:
    """Return the curvature up to which an optimizer is stable at a learning rate, or None where no limit is known.

    Args:
        optimizer: `name`, the class, and the arguments of `optimizer.get_config()`; what is missing has Keras' default.
        learning_rate: The rate now, at least 0.

    Raises:
        ValueError: A rate that is negative or not finite.

    Example:
        >>> round(stability_limit({"name": "SGD", "momentum": 0.9}, 0.1).limit, 6)
        38.0
    """
    if not (math.isfinite(learning_rate) and learning_rate >= 0):
        raise ValueError(f"`learning_rate` must be finite and not negative. Received: learning_rate={learning_rate}.")
    name = str(optimizer.get("name", ""))
    if name not in KNOWN:
        return None
    product, words = _product(name, optimizer)
    limit = product / learning_rate if learning_rate > 0 else math.inf
    return StabilityLimit(limit, product, name not in PLAIN, f"{words} / learning rate")


def _product(name: str, optimizer: Mapping[str, Any]) -> tuple[float, str]:
    if name in ("SGD", "RMSprop"):
        momentum = float(optimizer.get("momentum") or 0.0)
        if momentum and optimizer.get("nesterov"):
            return 2 * (1 + momentum) / (1 + 2 * momentum), "2 (1 + momentum) / (1 + 2 momentum)"
        return 2 * (1 + momentum), "2 (1 + momentum)" if momentum else "2"
    if name == "Adagrad":
        return 2.0, "2"
    beta = float(optimizer.get("beta_1", 0.9))
    if name == "Nadam":
        return 2 * (1 + beta) / (1 + beta - 2 * beta**2), "2 (1 + beta_1) / (1 + beta_1 - 2 beta_1^2)"
    return 2 * (1 + beta) / (1 - beta), "2 (1 + beta_1) / (1 - beta_1)"
