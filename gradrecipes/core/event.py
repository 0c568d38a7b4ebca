"""Something that happened at one step of a training: a skip, a stop, the end of an epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Tell what happened, when, and why.

    Args:
        kind: A short noun: `"skip"`, `"stop"`, `"epoch"`, `"interrupted"`.
        step: Training step since the start of the record, counted from 0.
        epoch: Epoch as Keras counts it, from 0.
        batch: Batch within the epoch, from 0.
        reason: One machine-readable word, such as `"nonfinite_gradient"`; empty when there is none.
        details: What else is known, as plain JSON values.
    """

    kind: str
    step: int
    epoch: int
    batch: int
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.kind} at epoch {self.epoch + 1}, batch {self.batch} (step {self.step}){reason}"
