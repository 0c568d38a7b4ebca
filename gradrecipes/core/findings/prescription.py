"""What to do about a finding: the change, what it risks, and the Keras lines that do it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Prescription:
    """Advise one change, in the imperative, with the lines that make it.

    Args:
        title: Imperative: "use He initialization".
        code: The Keras lines that do it, ready to paste.
        reason: Why it helps here.
        risk: What it may cost or break.
        reference: Paper, section or documentation.
    """

    title: str
    code: str
    reason: str = ""
    risk: str = ""
    reference: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the prescription as plain JSON values."""
        return asdict(self)
