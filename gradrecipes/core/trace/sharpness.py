r"""The curvature of the loss, and up to which one an optimizer is stable at its learning rate.

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


@dataclass(frozen=True)
class Sharpness:
    """Hold the curvature of the loss, and whether the learning rate fits it.

    Args:
        lambda_max: Largest eigenvalue of the loss's Hessian (of the preconditioned one, where `preconditioned`);
            None where it could not be had.
        lambda_min: Smallest one found, less exactly.
        limit: Largest eigenvalue at which the optimizer is stable at its rate; None where no such limit is known.
        learning_rate: The rate that was judged, or None where there is no single one.
        iterations: Hessian-vector products that were taken.
        converged: Whether `lambda_max` converged to a hundredth; it is a lower bound otherwise.
        preconditioned: Whether the optimizer divides by the size of past gradients, so that this was done here too.
        preconditioner: "state" of the optimizer, or "gradients" of some batches where it had none yet.
        method: "double_backprop", or "finite_difference" where a layer has no second derivative.
        formula: The limit in words.
        reason: Why something is missing, in a sentence.

    Example:
        >>> print(Sharpness(lambda_max=28.0, limit=2.0, learning_rate=1.0, converged=True, formula="2 / rate"))
        The curvature of the loss is 14 times the stability limit of the optimizer at a learning rate of 1: lambda_max \
is 28, the limit 2 (2 / rate). Below a rate of 0.071 its steps do not grow.
    """

    lambda_max: float | None = None
    lambda_min: float | None = None
    limit: float | None = None
    learning_rate: float | None = None
    iterations: int = 0
    converged: bool = False
    preconditioned: bool = False
    preconditioner: str | None = None
    method: str | None = None
    formula: str = ""
    reason: str | None = None

    @property
    def ratio(self) -> float | None:
        """lambda_max over the limit: above 1 the steps along that direction grow; None where either is missing."""
        if self.lambda_max is None or self.limit is None:
            return None
        return self.lambda_max / self.limit if math.isfinite(self.limit) else 0.0

    @property
    def highest_learning_rate(self) -> float | None:
        """The rate at which the steps would just not grow; None where the curvature sets none."""
        if not self.ratio or self.ratio <= 0 or not self.learning_rate:
            return None
        return self.learning_rate / self.ratio

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not finite is None."""
        found = {name: _plain(value) for name, value in vars(self).items()}
        return {**found, "ratio": _plain(self.ratio), "highest_learning_rate": _plain(self.highest_learning_rate)}

    def __str__(self) -> str:
        if self.lambda_max is None:
            return f"The curvature of the loss could not be had. {self.reason or ''}".strip()
        size = f"lambda_max is {self.lambda_max:.3g}" + ("" if self.converged else " or more")
        if self.preconditioned:
            size += " after the optimizer's scaling"
            size += ", guessed from first gradients" if self.preconditioner == "gradients" else ""
        if self.ratio is None:
            return f"{size[0].upper()}{size[1:]}. {self.reason or ''}".strip()
        limit = f"{size}, the limit {self.limit:.3g} ({self.formula})"
        if self.ratio > 1:
            return (
                f"The curvature of the loss is {self.ratio:.3g} times the stability limit of the optimizer at a "
                f"learning rate of {self.learning_rate:.3g}: {limit}. Below a rate of "
                f"{self.highest_learning_rate:.2g} its steps do not grow."
            )
        return f"The learning rate of {self.learning_rate:.3g} fits the curvature of the loss: {limit}."


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
