"""Something that happened at one step of a training: a skip, a stop, the end of an epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


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

    Raises:
        TypeError: The step, the epoch or the batch is no whole number.
    """

    kind: str
    step: int
    epoch: int
    batch: int
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("step", "epoch", "batch"):
            if not isinstance(getattr(self, name), int | np.integer):
                raise TypeError(
                    f"`{name}` of an event must be a whole number, counted from 0. "
                    f"Received: {name}={getattr(self, name)!r} in the event {self.kind!r}."
                )

    @property
    def logs(self) -> dict[str, Any]:
        """The logs of the epoch that ended, by name; empty for other events."""
        return self.details.get("logs") or {}

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain JSON values."""
        return asdict(self) | {"step": int(self.step), "epoch": int(self.epoch), "batch": int(self.batch)}

    def __repr__(self) -> str:
        return f"<Event: {self}>"

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.kind} at epoch {self.epoch + 1}, batch {self.batch + 1}{reason}"
