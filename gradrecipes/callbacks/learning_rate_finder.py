"""The learning-rate range test as a callback, for data that only `fit` knows how to feed."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.analysis.learning_rates import range_of_rates
from gradrecipes.plots.measured import LearningRateRange
from gradrecipes.probes.learning_rate_range import RateRamp
from gradrecipes.training.recovery.model_state import preserve_state

_END_OF_DATA = (StopIteration, tf.errors.OutOfRangeError)


class LearningRateFinder(keras.callbacks.Callback):
    """Turn a `fit` into a learning-rate range test: the rate rises from batch to batch until the loss explodes.

    The fit ends itself, and the model is as before it: weights, moving statistics, seeds, metrics, optimizer. Give
    it as many epochs as so many batches need, and no other callbacks. With arrays, `gr.probes.learning_rate_range`
    is the shorter way.

    Args:
        lowest: First learning rate.
        highest: Last one; the test stops earlier when the loss is not finite or four times its best.
        batches: How many, which sets how finely the rates are scanned.

    Attributes:
        result: After the fit, a `gradrecipes.plots.LearningRateRange` with the suggested rates and a plot.

    Raises:
        ValueError: Arguments out of range; in `fit`: steps_per_execution above 1.

    Example:
        >>> finder = LearningRateFinder(batches=40)
        >>> history = model.fit(x, y, batch_size=64, epochs=40, callbacks=[finder], verbose=0)
        >>> finder.result.valley > 1e-7
        True

    References:
        Smith 2015, arXiv 1506.01186.
    """

    def __init__(self, *, lowest: float = 1e-7, highest: float = 10.0, batches: int = 100):
        super().__init__()
        range_of_rates(lowest, highest, batches)
        self.lowest = lowest
        self.highest = highest
        self.batches = batches
        self.result: LearningRateRange | None = None
        self._ramp: RateRamp | None = None
        self._way_back: contextlib.ExitStack | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the ramp in the place of the train function."""
        if self.model.steps_per_execution != 1:
            raise ValueError(
                "LearningRateFinder sets the rate before every batch, and needs the loss of each. Received a model "
                f"compiled with steps_per_execution={self.model.steps_per_execution}. Compile it with 1 for the test, "
                "or use gr.probes.learning_rate_range."
            )
        self.result = None
        self._ramp = RateRamp(self.model, range_of_rates(self.lowest, self.highest, self.batches))
        self._way_back = contextlib.ExitStack()
        self._way_back.enter_context(preserve_state(self.model))
        self._way_back.enter_context(self._ramp.installed())
        run = self.model.train_function

        def run_or_go_back(iterator: Any) -> Any:
            try:
                return run(iterator)
            except _END_OF_DATA:
                raise
            except BaseException:  # Keras tells no callback of it
                self._go_back()
                raise

        self.model.train_function = run_or_go_back

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the model back as it was, and keep the curve."""
        self._go_back()
        losses = np.array(self._ramp.losses)
        rates = range_of_rates(self.lowest, self.highest, self.batches)[: len(losses)]
        self.result, self._ramp = LearningRateRange(rates, losses), None

    def _go_back(self) -> None:
        if self._way_back is not None:
            self._way_back.close()
        self._way_back = None
