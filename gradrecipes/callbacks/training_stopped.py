"""The error with which a guard ends a training that it cannot keep alive."""

from __future__ import annotations


class TrainingStoppedError(RuntimeError):
    """Say that a `GradientGuard(raise_error=True)` stopped the training, and why.

    Args:
        message: What happened, as it is logged.
        reason: Code of the reason, as in `GradientGuard.stop_reason`.
        epoch: Where it happened, counted from 0.
        batch: Where in the epoch, counted from 0.

    Attributes:
        reason, epoch, batch: As above.

    Example:
        >>> error = TrainingStoppedError("It stopped.", "too_many_skips", 2, 17)
        >>> print(error, error.reason)
        It stopped. too_many_skips
    """

    def __init__(self, message: str, reason: str, epoch: int, batch: int):
        super().__init__(message, reason, epoch, batch)  # all of them, so that it is pickled whole
        self.reason = reason
        self.epoch = epoch
        self.batch = batch

    def __str__(self) -> str:
        return str(self.args[0])
