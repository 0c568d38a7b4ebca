"""What a guard's arguments must be."""

from __future__ import annotations

import math
from typing import Any

from gradrecipes.gradients.clipping import require_clipping


def check_guard_arguments(
    clipping: Any, sigmas: Any, max_consecutive_skips: Any, snapshot_every: Any, max_rollbacks: Any
) -> None:
    """Refuse arguments of `GradientGuard` that make no sense.

    Raises:
        TypeError: `clipping` is no clipping method.
        ValueError: A number is not positive or not whole.
    """
    require_clipping(clipping, "GradientGuard")
    if sigmas is not None and not (_is_number(sigmas) and sigmas > 0):
        raise ValueError(
            f"`sigmas` must be a positive number of standard deviations, or None. Received: sigmas={sigmas!r}. "
            "6 suits most trainings; None skips only what is not finite."
        )
    _require_whole("max_consecutive_skips", max_consecutive_skips, 1, "10 suits most trainings.")
    _require_whole("max_rollbacks", max_rollbacks, 0, "5 suits most trainings; 0 stops at once.")
    if snapshot_every is not None:
        _require_whole("snapshot_every", snapshot_every, 1, "100 suits most trainings; None keeps no snapshots.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require_whole(name: str, value: Any, least: int, remedy: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be a whole number, at least {least}. Received: {name}={value!r}. {remedy}")
