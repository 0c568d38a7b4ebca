"""What the callbacks of a fit, or a model of this package, ask of the pipeline together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradrecipes.gradients.step_gradients import Clipping


NO_LOSS = 3.4028234663852886e38  # the largest float32: finite, and no improvement to what saves or stops by it


@dataclass(frozen=True)
class PipelineSettings:
    """What a pipeline does.

    Args:
        clipping: A method of `gradrecipes.clipping`, or None.
        skip: Whether steps with a non-finite loss or gradient are left out.
        sigmas: Standard deviations above the mean from which on a finite loss or norm is an outlier and the step
            left out as well; None for never.
        record: Whether the readings are kept for the host.
        sample_every: Steps from one sample to the next.
        capacity: Steps that the record holds until the host takes them.
        by_batch: Whether each batch is a step of the record, by its own gradient, where the optimizer accumulates.
        xla: Whether the step is compiled by XLA.
        fused: Whether the update goes through TensorFlow's fused kernels.
    """

    clipping: Clipping | None = None
    skip: bool = False
    sigmas: float | None = None
    record: bool = False
    sample_every: int = 50
    capacity: int = 256
    by_batch: bool = False
    xla: bool = False
    fused: bool = False
