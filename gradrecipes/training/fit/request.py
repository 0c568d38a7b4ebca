"""What a callback asks of the pipeline of a fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradrecipes.gradients.step_gradients import Clipping


SAMPLE_EVERY, SAMPLE_EVERY_OF_LARGE = 100, 200  # steps, so that samples cost about 1% of the training
LARGE_MODEL = 1_000_000  # trainable parameters


@dataclass(frozen=True)
class Request:
    """What one callback asks of the fit session.

    Args:
        clipping: How to clip, or None.
        skip: Whether non-finite steps are to be left out.
        sigmas: Standard deviations from which on a finite step is an outlier and left out; None for never.
        samples: Whether samples are to be taken.
        sample_every: Steps from sample to sample; None for what suits the size of the model.
        log: Whether readings join the logs. True: on, unless another callback says False. None: no preference.
        keep_batches: Whether the batch of the last step is to be held; steps of one execution are then run one by one.
        keep_reference: Whether a batch is to be kept, on which a step can be tried again.
        fused: Whether the update is to go through TensorFlow's fused kernels.
        check: Called on the host between executions.
        before_look: Called before the weights are saved, evaluated or read while the fit runs.
        check_every: Steps from one check to the next: the host waits for the device there.
        optional: Whether the fit goes on without the callback where its train step cannot be instrumented.
        renewed: Called when the step was prepared anew in the middle of the fit: what a callback keeps of pipeline and
            weights is of the past then.
    """

    clipping: Clipping | None = None
    skip: bool = False
    sigmas: float | None = None
    samples: bool = False
    sample_every: int | None = None
    log: bool | None = True
    keep_batches: bool = False
    keep_reference: bool = False
    fused: bool = False
    check: Callable[[], None] | None = None
    before_look: Callable[[], None] | None = None
    check_every: int = 8
    optional: bool = False
    renewed: Callable[[], None] | None = None

    def sample_interval(self, model: Any) -> int:
        """Return the steps from one sample to the next: a sample costs as much as one to two steps."""
        if self.sample_every is not None:
            return self.sample_every
        large = sum(math.prod(variable.shape) for variable in model.trainable_variables) > LARGE_MODEL
        return SAMPLE_EVERY_OF_LARGE if large else SAMPLE_EVERY
