"""What the bounds of a space must be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def require_range(lowest: Any, highest: Any) -> None:
    """Refuse bounds that are not positive, finite and in order."""
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (lowest, highest))
    if not numbers or not 0 < lowest < highest < math.inf:
        raise ValueError(
            "The space must run from a positive `lowest` to a larger, finite `highest`. "
            f"Received: lowest={lowest!r}, highest={highest!r}."
        )


def require_whole_range(lowest: Any, highest: Any) -> None:
    """Refuse bounds that are not whole, positive and in order."""
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in (lowest, highest))
    if not whole or not 1 <= lowest <= highest:
        raise ValueError(
            "The space must run from a whole `lowest`, at least 1, to a `highest` that is no smaller. "
            f"Received: lowest={lowest!r}, highest={highest!r}."
        )


def require_choices(name: str, given: Sequence[Any], known: Sequence[Any]) -> None:
    """Refuse an empty choice, and what is not known."""
    unknown = [one for one in given if one not in known]
    if isinstance(given, str) or not len(given) or unknown:
        raise ValueError(f"`{name}` must be some of: {', '.join(map(str, known))}. Received: {name}={given!r}.")
