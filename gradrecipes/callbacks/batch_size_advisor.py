"""Follow the gradient's noise through a training, and say which batch size it asks for."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np

from gradrecipes.core.arguments import require_whole
from gradrecipes.plots.measured import NoiseScale
from gradrecipes.probes.noise_scale import MicroBatches
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial_data import draw_batches

_LOG = logging.getLogger(__name__)


class BatchSizeAdvisor(keras.callbacks.Callback):
    """Measure the gradient noise scale after every epoch: it grows as the loss falls, and the best batch with it.

    The training itself is not touched. Each measurement costs as much as training on `batches` batches.

    Args:
        x: Training inputs, arrays.
        y: Targets.
        batch_size: The batch size to judge, that of the fit.
        batches: Batches in a measurement, at least 2.
        every: Epochs between measurements, at least 1.
        seed: Which samples.

    Attributes:
        measurements: Epoch, counted from 0, to `gradrecipes.plots.NoiseScale`.

    Raises:
        ValueError: Arguments out of range.

    Example:
        >>> advisor = BatchSizeAdvisor(x, y, batch_size=8, batches=4)
        >>> history = model.fit(x, y, batch_size=8, epochs=2, callbacks=[advisor], verbose=0)
        >>> sorted(advisor.measurements)
        [0, 1]

    References:
        McCandlish et al. 2018, arXiv 1812.06162.
    """

    def __init__(self, x: Any, y: Any = None, *, batch_size: int, batches: int = 20, every: int = 1, seed: int = 0):
        super().__init__()
        for name, value, least in (("batches", batches, 2), ("every", every, 1)):
            require_whole(name, value, least=least, remedy="20 batches after every epoch suit most trainings.")
        self.batch_size = batch_size
        self.every = every
        self.measurements: dict[int, NoiseScale] = {}
        self._data = draw_batches((x, y), batch_size=batch_size, batches=batches, seed=seed)

    @property
    def advice(self) -> str:
        """What the last measurement says, in words."""
        if not self.measurements:
            return "Nothing was measured yet."
        last = max(self.measurements)
        return f"After epoch {last + 1}: {self.measurements[last].advice}"

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begin anew."""
        self.measurements = {}
        self._parts = MicroBatches(self.model, batch_size=self.batch_size)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure, and leave the model as it is."""
        if (epoch + 1) % self.every:
            return
        with preserve_state(self.model):
            signals, noises = self._parts.measure(self._data)
        if not (np.isfinite(signals).all() and np.isfinite(noises).all()):
            _LOG.warning("BatchSizeAdvisor: after epoch %d a gradient is not finite; nothing to measure.", epoch + 1)
            return
        self.measurements[epoch] = NoiseScale(signals, noises, batch_size=self.batch_size)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Let go of the traced functions, which cannot be copied."""
        self._parts = None
