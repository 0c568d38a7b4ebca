"""Record a fit of a program that knows nothing of it: the program's own run comes first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import keras

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.training.fit.request import Request

_LOG = logging.getLogger(__name__)


class FitRecorder(AttachedCallback):
    """Record what `GradientMonitor` records, add nothing to the logs, and leave a fit alone that cannot be recorded.

    Where a train step applies its updates in a function or condition of its own, or where anything that the record
    needs raises an error, the fit goes on as a plain one, with the same result.

    Args:
        sample_every: Steps from one sample to the next, or None for what suits the size of the model.

    Attributes:
        trace: The record, as far as it came.
        not_recorded: Why the fit is not recorded, or None.

    Example:
        >>> recorder = FitRecorder(sample_every=50)
        >>> _ = model.fit(x, y, verbose=0, callbacks=[recorder])
        >>> recorder.not_recorded is None
        True
    """

    def __init__(self, *, sample_every: int | None = None):
        super().__init__(Request(samples=True, sample_every=sample_every, log=None, optional=True))
        self._refused: str | None = None

    @property
    def not_recorded(self) -> str | None:
        """Why the fit is not recorded, or None."""
        return self._refused if self._session is None else self._refused or self._session.not_instrumented

    def set_model(self, model: keras.Model) -> None:
        """Join the fit that begins on this model, if that is possible."""
        self._refused = None
        self._try(lambda: super(FitRecorder, self).set_model(model))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the pipeline in place, if that is possible."""
        self._try(lambda: super(FitRecorder, self).on_train_begin(logs))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the model its own train function back."""
        self._try(lambda: super(FitRecorder, self).on_train_end(logs))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Assign the steps from here on to an epoch."""
        self._try(lambda: super(FitRecorder, self).on_epoch_begin(epoch, logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Bring the record up to date."""
        self._try(lambda: super(FitRecorder, self).on_epoch_end(epoch, logs))

    def _try(self, act: Callable[[], None]) -> None:
        if self._refused is not None:
            return
        try:
            act()
        except Exception as error:  # the program of somebody else runs here
            self._refused = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            _LOG.debug("A fit of %r is not recorded.", self.model, exc_info=True)
