"""The curvature of the loss beside the stability limit of the optimizer: what the sharpness probe found."""

from __future__ import annotations

import math
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
