"""What a failed trial of a search counts: a finite score that is worse than any success and orders the failures.

A search model learns nothing from a trial without a score, and the wrong thing from an infinite one. Here a failure
gets the worst score that any success had, and a step more: the "floor padding" of Bayesian optimization with failing
experiments, with a slope on it, so that the model sees in which direction failures get milder.

References:
    Wakabayashi et al. 2022, "Bayesian optimization with experimental failure for high-throughput materials growth",
    npj Computational Materials 8:180.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

# The place in this tuple is the number by which a worker tells the chief of a cause: add at the end only.
CAUSES = (
    "error",
    "nonfinite_loss",
    "nonfinite_gradient",
    "gradient_overflow",
    "diverging_loss",
    "zero_gradient",
    "nonfinite_weights",
    "nonfinite_objective",
    "guard_gave_up",
    "parent_failed",
    "guard_rolled_back",
    "guard_skipped",
)
MILD_CAUSES = ("diverging_loss", "zero_gradient", "guard_gave_up", "guard_rolled_back")  # the loss may be finite
WEIGHT_OF_PROGRESS = 0.75  # of the severity: how long a training lived tells more than how bad its end was
MARGIN = 0.1  # of the spread of the successes, between the worst of them and the mildest failure
DECADES = 6.0  # of the loss over its first value, at which an end counts as bad as one that is not finite
DIGEST_MODULUS = 2**24  # whole numbers below it survive as float32


@dataclass(frozen=True)
class Failure:
    """Say why a trial failed, how far it got and how bad it was.

    Args:
        cause: One of `CAUSES`.
        step: Training steps that it lived.
        planned_steps: Training steps that it was to have; 0 if that is not known.
        loss_ratio: Its largest finite loss over its first, or NaN.
        message: What else is known, in words.

    Raises:
        ValueError: An unknown cause.
    """

    cause: str
    step: int = 0
    planned_steps: int = 0
    loss_ratio: float = math.nan
    message: str = ""

    def __post_init__(self):
        if self.cause not in CAUSES:
            raise ValueError(f"`cause` must be one of: {', '.join(CAUSES)}. Received: cause={self.cause!r}.")

    @property
    def progress(self) -> float:
        """How far the trial got, 0 to 1, on a logarithmic scale: ten times the rate costs about as many steps."""
        if self.planned_steps < 1 or self.step < 1:
            return 0.0
        return min(1.0, math.log1p(self.step) / math.log1p(self.planned_steps))

    @property
    def mildness(self) -> float:
        """How bad the end was: 1 for a loss no larger than the first, 0 for one that is not finite."""
        if self.cause not in MILD_CAUSES or not self.loss_ratio > 0:
            return 0.0
        return 1.0 - min(1.0, max(0.0, math.log10(self.loss_ratio)) / DECADES)

    @property
    def severity(self) -> float:
        """From 0, a failure at the very end and hardly one, to 1, one that did not even begin."""
        return 1.0 - WEIGHT_OF_PROGRESS * self.progress - (1.0 - WEIGHT_OF_PROGRESS) * self.mildness

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"severity": self.severity}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Failure:
        """Return the failure of which `to_dict` made plain values, JSON's null standing for NaN."""
        values = {one.name: content[one.name] for one in fields(cls)}
        return cls(**{**values, "loss_ratio": math.nan if values["loss_ratio"] is None else values["loss_ratio"]})


def penalized_score(severity: float, successes: Sequence[float], *, maximize: bool) -> float:
    """Return the finite score of a failure: worse than every success, and the worse the more severe it is.

    Args:
        severity: 0 to 1; see `Failure.severity`.
        successes: Scores of the trials that did not fail; may be empty.
        maximize: Whether more is better.

    Example:
        >>> round(penalized_score(0.5, [0.9, 0.5], maximize=True), 2)
        0.26
    """
    sign = -1.0 if maximize else 1.0
    scores = [sign * score for score in successes if math.isfinite(score)]
    if not scores:
        return sign * (1.0 + severity)
    worst, best = max(scores), min(scores)
    spread = worst - best
    if not spread > 1e-6 * abs(worst):
        spread = abs(worst) or 1.0  # all successes alike: their size is the only scale there is
    return sign * (worst + spread * (MARGIN + severity))
