"""What a guard's arguments must be."""

from __future__ import annotations

from typing import Any

from gradrecipes.core.arguments import is_positive, require_whole
from gradrecipes.gradients.clipping import Clipping, as_clipping


def check_guard_arguments(
    clipping: Any, sigmas: Any, max_consecutive_skips: Any, snapshot_every: Any, max_rollbacks: Any
) -> Clipping | None:
    """Return the clipping method of a `GradientGuard`; refuse arguments that make no sense.

    Raises:
        TypeError: `clipping` is no clipping method.
        ValueError: A number is not positive or not whole.
    """
    clipping = as_clipping(clipping, "GradientGuard")
    if sigmas is not None and not is_positive(sigmas):
        raise ValueError(
            f"`sigmas` must be a positive number of standard deviations, or None. Received: sigmas={sigmas!r}. "
            "6 suits most trainings; None skips only what is not finite."
        )
    require_whole("max_consecutive_skips", max_consecutive_skips, least=1, remedy="10 suits most trainings.")
    require_whole("max_rollbacks", max_rollbacks, least=0, remedy="5 suits most trainings; 0 stops at once.")
    if snapshot_every is not None:
        remedy = "100 suits most trainings; None keeps no snapshots."
        require_whole("snapshot_every", snapshot_every, least=1, remedy=remedy)
    return clipping
