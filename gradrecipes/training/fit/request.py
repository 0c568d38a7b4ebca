"""What a callback asks of the pipeline of a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gradrecipes.gradients.clipping import Clipping


@dataclass(frozen=True)
class Request:
    """What one callback asks of the attachment.

    Args:
        clipping: How to clip, or None.
        skip: Whether non-finite steps are to be left out.
        sigmas: From how many standard deviations on a finite step is to be left out; None for never.
        sample_every: Steps from sample to sample; 0 for none.
        logs: Whether readings join the logs: True for yes if nobody says False, None for what the others say.
        keep_batches: Whether the batch of the last step is to be held; steps of one execution are then run one by one.
        check: Called on the host between executions.
        check_every: Steps from one check to the next: the host waits for the device there.
    """

    clipping: Clipping | None = None
    skip: bool = False
    sigmas: float | None = None
    sample_every: int = 0
    logs: bool | None = True
    keep_batches: bool = False
    check: Callable[[], None] | None = None
    check_every: int = 8
