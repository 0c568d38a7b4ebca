"""What decides a study: which number of a run, whether more of it is better, and of which epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DIRECTIONS = ("min", "max")
EPOCHS = ("last", "best")
SMALLER_IS_BETTER = ("loss", "error", "crossentropy", "mse", "mae", "mape", "msle", "divergence", "poisson", "hinge")
LARGER_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "fbeta", "iou", "r2", "similarity", "positives_rate")


@dataclass(frozen=True)
class Objective:
    """Say by which number the runs of a study are compared.

    Args:
        name: Key of the logs of `fit`, such as `"val_accuracy"`; with test data also `"test_accuracy"`, measured
            after the training.
        direction: `"min"` or `"max"`.
        epoch: `"last"`, or `"best"` for that of the epochs where it was best, which suits a callback that restores
            the best weights. What validation data chose is too good by a little: judge it by test data.

    Raises:
        ValueError: An unknown direction or epoch.

    Example:
        >>> Objective("val_f1", "max", epoch="best").of({"val_f1": [0.2, 0.7, 0.6]}, {})
        0.7
    """

    name: str
    direction: str
    epoch: str = "last"

    def __post_init__(self):
        for name, choices in (("direction", DIRECTIONS), ("epoch", EPOCHS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of: {', '.join(map(repr, choices))}. Received: {name}="
                    f"{getattr(self, name)!r}."
                )

    @classmethod
    def named(cls, name: str) -> Objective:
        """Return the objective of that name, with the direction that the name tells.

        Raises:
            ValueError: It tells none.
        """
        for direction, parts in zip(DIRECTIONS, (SMALLER_IS_BETTER, LARGER_IS_BETTER), strict=True):
            if any(part in name.lower() for part in parts):
                return cls(name, direction)
        raise ValueError(
            f"Whether more or less of {name!r} is better cannot be told from its name. "
            f'Say so: objective=gr.studies.Objective({name!r}, "min"), or "max".'
        )

    def of(self, history: Mapping[str, Sequence[float]], test: Mapping[str, float]) -> float:
        """Return its value in a run; NaN if no epoch ended.

        Raises:
            KeyError: The run has no such number.
        """
        if self.name in test:
            return float(test[self.name])
        if self.name not in history:
            if not history and not test:
                return math.nan
            raise KeyError(
                f"No run has a {self.name!r}. There are: {', '.join(map(repr, [*history, *test]))}. "
                "Choose one of them as `objective`, or name the metric in `model.compile`."
            )
        values = [float(value) for value in history[self.name]]
        finite = [value for value in values if math.isfinite(value)]
        if self.epoch == "last" or not finite:
            return values[-1] if values else math.nan
        return min(finite) if self.direction == "min" else max(finite)

    def gain(self, one: float, other: float) -> float:
        """Return by how much one value is better than another."""
        return one - other if self.direction == "max" else other - one
