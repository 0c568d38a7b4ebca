"""One trial of a search and the axes of its space, as plain values that tables and plots read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradrecipes.core.analysis.trial_failure import Failure


@dataclass(frozen=True)
class SearchTrial:
    """Hold what one trial tried and what came of it.

    Args:
        trial_id: Its name.
        values: Its settings, by name.
        score: The objective, or None if it failed or has not ended.
        status: `"completed"`, `"failed"`, `"hopeless"` or `"running"`.
        failure: Why it failed, or None.
        steps: Training steps that ran.
        seconds: Wall time.
        curve: The objective after each epoch.
        worker: Who ran it.
    """

    trial_id: str
    values: dict[str, Any]
    score: float | None = None
    status: str = "completed"
    failure: Failure | None = None
    steps: int = 0
    seconds: float = 0.0
    curve: list[float | None] = field(default_factory=list)
    worker: str = ""

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return self.status == "failed"

    @property
    def cause(self) -> str:
        """Why it failed, or an empty word."""
        return self.failure.cause if self.failure else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "failure": None if self.failure is None else self.failure.to_dict()}


@dataclass(frozen=True)
class SpaceAxis:
    """Say how the values of one setting are laid out along an axis.

    Args:
        name: Of the setting.
        logarithmic: Whether equal factors get equal lengths.
        choices: The values in their order, if they are no numbers on a scale.
    """

    name: str
    logarithmic: bool = False
    choices: tuple[Any, ...] = ()

    def places(self, values: Sequence[Any]) -> np.ndarray:
        """Return where values stand, float64 `[n]`: log10 of a number, the number, or the place of a choice; or NaN."""
        return np.array([self._place(value) for value in values], np.float64)

    def _place(self, value: Any) -> float:
        if self.choices:
            return float(self.choices.index(value)) if value in self.choices else math.nan
        if not isinstance(value, int | float):
            return math.nan
        if self.logarithmic:
            return math.log10(value) if value > 0 else math.nan
        return float(value)
