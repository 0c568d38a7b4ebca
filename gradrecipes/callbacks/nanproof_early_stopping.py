"""Stop when nothing improves any more, without being fooled by NaN."""

from __future__ import annotations

import logging
import math
from typing import Any

import keras
import numpy as np

from gradrecipes.core.arguments import require_flag, require_number, require_whole

_LOG = logging.getLogger(__name__)
MODES = ("auto", "min", "max")


class NanProofEarlyStopping(keras.callbacks.Callback):
    """Stop a training that no longer improves; an epoch whose value or weights are not finite is no improvement.

    `keras.callbacks.EarlyStopping` takes a NaN in the first epoch for the best value ever seen, since nothing
    compares as better than NaN: it stops a training that recovered, and restores the NaN weights. Here such an
    epoch is never the best, its weights are never kept, and it counts towards the patience. Accuracy stays finite
    when the weights are NaN, so the weights are looked at too, once an epoch.

    Everything else is Keras' own callback, which this one holds and asks.

    Args:
        monitor: As in `keras.callbacks.EarlyStopping`, like all that follow.
        min_delta: Smallest change that counts as an improvement.
        patience: Epochs without an improvement after which the training stops.
        verbose: 1 to have Keras tell when it stops.
        mode: `"auto"`, `"min"` or `"max"`.
        baseline: Value to beat.
        restore_best_weights: Whether the model ends with the weights of the best epoch.
        start_from_epoch: Epochs to wait before watching.

    Attributes:
        best, best_epoch, best_weights, wait, stopped_epoch: As in Keras' callback; `best` is None until an epoch
            was finite.
        nonfinite_epochs: The epochs, counted from 0, that were not finite.

    Raises:
        TypeError: `monitor` is no text, or `restore_best_weights` no boolean.
        ValueError: An unknown mode, or a number out of range.

    Example:
        >>> stopping = NanProofEarlyStopping("loss", patience=2, restore_best_weights=True)
        >>> history = model.fit(x, y, epochs=3, callbacks=[stopping], verbose=0)
        >>> stopping.nonfinite_epochs
        []
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ):
        super().__init__()
        if not isinstance(mode, str) or mode not in MODES:
            raise ValueError(f"`mode` must be one of: {', '.join(MODES)}. Received: mode={mode!r}.")
        if not isinstance(monitor, str):
            raise TypeError(f"`monitor` must be a key of the logs, such as 'val_loss'. Received: monitor={monitor!r}.")
        require_whole("patience", patience, least=0, remedy="10 epochs suit most trainings.")
        require_whole("start_from_epoch", start_from_epoch, least=0, remedy="0 watches from the first epoch.")
        require_whole("verbose", int(verbose) if isinstance(verbose, bool) else verbose, least=0, remedy="0 is quiet.")
        require_number("min_delta", min_delta, remedy="0 counts every improvement.")
        require_flag("restore_best_weights", restore_best_weights, remedy="True ends with the best epoch's weights.")
        if baseline is not None:
            require_number("baseline", baseline, remedy="None asks for no more than an improvement.")
        self._stopping = keras.callbacks.EarlyStopping(
            monitor=monitor,
            min_delta=min_delta,
            patience=patience,
            verbose=verbose,
            mode=mode,
            baseline=baseline,
            restore_best_weights=restore_best_weights,
            start_from_epoch=start_from_epoch,
        )
        self.nonfinite_epochs: list[int] = []

    def __getattr__(self, name: str) -> Any:
        # What is not here is Keras': best, best_epoch, best_weights, wait, stopped_epoch, and the arguments.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return getattr(self._stopping, name)

    def set_model(self, model: keras.Model) -> None:
        """Take the model."""
        super().set_model(model)
        self._stopping.set_model(model)

    def set_params(self, params: dict[str, Any]) -> None:
        """Take the parameters of the fit."""
        super().set_params(params)
        self._stopping.set_params(params)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begin anew."""
        self.nonfinite_epochs = []
        self._stopping.on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Judge the epoch, or count it as one without an improvement."""
        value = (logs or {}).get(self._stopping.monitor)
        if value is None or (math.isfinite(float(value)) and self._weights_are_finite()):
            self._stopping.on_epoch_end(epoch, logs)
            return
        self.nonfinite_epochs.append(epoch)
        if epoch < self._stopping.start_from_epoch:
            return
        self._stopping.wait += 1
        if self._stopping.wait >= self._stopping.patience and epoch > 0:  # Keras' own rule
            self._stopping.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the best weights, if that was asked for and there are any."""
        self._stopping.on_train_end(logs)
        if self._stopping.restore_best_weights and self._stopping.best_weights is None and self.nonfinite_epochs:
            _LOG.warning(
                "No epoch had a finite %s and finite weights, so there are no best weights to restore. "
                "A GradientMonitor records such a fit, and gradrecipes.diagnose(monitor.trace) says why.",
                self._stopping.monitor,
            )

    def _weights_are_finite(self) -> bool:
        weights = (weight for weight in self.model.get_weights() if np.issubdtype(weight.dtype, np.floating))
        return all(np.isfinite(weight).all() for weight in weights)
