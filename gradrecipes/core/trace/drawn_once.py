"""What a step computes with again and again, though it draws it."""

from __future__ import annotations

from dataclasses import dataclass

from gradrecipes.core.trace.record import Record


@dataclass(frozen=True)
class DrawnOnce(Record):
    """Random numbers that a step is traced with, and computes with again and again.

    Args:
        source: Whose they are, in words.
        fixed: Loss of a batch at the end of the trial with these numbers; None where it is not known.
        redrawn: The same with others, each with numbers of its own; empty where they are not known.
    """

    source: str
    fixed: float | None = None
    redrawn: tuple[float, ...] = ()
