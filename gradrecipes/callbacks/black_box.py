"""Keep the step that broke a training, and say where in it the trouble began."""

from __future__ import annotations

import logging
import os
from typing import Any

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.core.arguments import require_directory, require_whole
from gradrecipes.training.autopsy.recording import Recording, record_bad_step
from gradrecipes.training.fit.request import Request

_LOG = logging.getLogger(__name__)


class BlackBox(AttachedCallback):
    """Keep the batch, the weights and the readings of the first step that goes wrong, and name the first offender.

    The step itself is left out, so that the weights are still those before it. Then one forward and backward pass,
    layer by layer, finds where the first value went wrong: an input, a weight, a layer's output, the loss, a gradient,
    an optimizer slot, with layer and samples. Until that moment a batch is merely held until the next one comes.
    And the step is run again from the same state. Where the same batch is good this time, the fault is transient: of
    the hardware, or of a loss scale that has come down since. Where another batch is good, the next one or the last
    that was, it is of this batch; else it is of these weights.

    It works where the step is compiled by XLA, in which `tf.debugging.enable_check_numerics` is silent. The steps of
    one execution (`steps_per_execution`) are run one by one while the box is there.

    Alone, it stops the training at the first step whose loss or gradient is not finite; together with a
    `GradientGuard` it records and the guard goes on.

    Args:
        directory: Where recordings are written, a folder for each, or None.
        recordings: How many steps are recorded; then the box is full.

    Attributes:
        recordings: list of `gradrecipes.training.autopsy.recording.Recording`.
        trace: The record of the fit.

    Raises:
        TypeError: `directory` is no path.
        ValueError: `recordings` is no positive whole number; in `fit`: the model is not compiled, or two black
            boxes were passed.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x = np.array([[1.0, 2.0], [3.0, np.nan]], "float32")
        >>> box = BlackBox()
        >>> _ = model.fit(x, np.ones((2, 1)), verbose=0, callbacks=[box])
        >>> box.recordings[0].autopsy.first.samples
        (1,)
        >>> box.recordings[0].origin.value  # the data end here: there is no other batch to try
        'unknown'
    """

    def __init__(self, *, directory: str | os.PathLike[str] | None = None, recordings: int = 1):
        require_directory("directory", directory)
        remedy = "Each keeps a batch and the weights in memory; 1 is most often enough."
        require_whole("recordings", recordings, least=1, remedy=remedy)
        super().__init__(
            Request(
                skip=True, sigmas=6.0, keep_batches=True, check=self._check, check_every=1, renewed=self._count_skips
            )
        )
        self.directory = directory
        self.capacity = recordings
        self.recordings: list[Recording] = []
        self._skips_seen = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the pipeline in place."""
        super().on_train_begin(logs)
        self._count_skips()

    def _count_skips(self) -> None:
        self._skips_seen = int(self._session.pipeline.skipped_steps.numpy())

    def _check(self) -> None:
        if len(self.recordings) >= self.capacity:
            return
        skips = int(self._session.pipeline.skipped_steps.numpy())
        if skips <= self._skips_seen:
            return
        self._skips_seen = skips
        recording = record_bad_step(self._session, self.model)
        if recording is not None:
            self._keep(recording)

    def _keep(self, recording: Recording) -> None:
        self.recordings.append(recording)
        details = {**recording.origin_to_dict(), "autopsy": recording.autopsy.to_dict()}
        self._session.add_event("black_box", recording.reason, details)
        _LOG.warning(
            "BlackBox kept the step at epoch %d, batch %d (%s). %s %s",
            recording.epoch + 1,
            recording.batch + 1,
            recording.reason,
            recording.origin_sentence,
            recording.autopsy.first or "All its numbers are finite: see `recordings[-1].autopsy`.",
        )
        if self.directory is not None:
            _LOG.warning("It is written into %s.", recording.save(self.directory))
        if self._session.is_alone(self) and _is_fatal(recording):
            self.model.stop_training = True


def _is_fatal(recording: Recording) -> bool:
    return recording.reason not in ("loss_outlier", "gradient_outlier")
