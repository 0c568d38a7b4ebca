"""What one arm made of one seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Run:
    """Hold the result of one training.

    Args:
        arm: Name of the arm.
        seed: The seed.
        history: What `fit` returned: a list of numbers, one an epoch, by name. Logs that are arrays are left out.
        test: What the trained model scored on the test data, by name; empty without test data.
        diverged: Why the run counts as diverged, or None.
        seconds: Wall time, that of building and tracing included.
        reused: Whether a compiled step of an earlier run was used.
        note: Why none was, where one was expected; or an empty text.
    """

    arm: str
    seed: int
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    diverged: str | None = None
    seconds: float = 0.0
    reused: bool = False
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as strict JSON can hold it: numbers that are not finite as their names."""
        return {**asdict(self), "history": _texts(self.history), "test": _texts(self.test)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Run:
        """Return the run that `to_dict` wrote.

        Raises:
            TypeError: It is another thing.
        """
        numbers = {name: _numbers(content[name]) for name in ("history", "test")}
        return cls(**{**content, **numbers})


def _texts(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _texts(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_texts(value) for value in values]
    return float(values) if math.isfinite(values) else str(float(values))


def _numbers(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _numbers(value) for name, value in values.items()}
    return [float(value) for value in values] if isinstance(values, list) else float(values)
