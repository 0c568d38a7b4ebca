"""See the gradients of the real training step, every step and every layer."""

from __future__ import annotations

import os
from typing import Any

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.core.arguments import require_directory, require_flag, require_whole
from gradrecipes.training.fit.request import Request


class GradientMonitor(AttachedCallback):
    """Record gradient norms of every step and layer inside `model.fit`, without computing a gradient twice.

    The norms are those of the step that really runs, taken in its graph before any clipping, and copied to
    the host every 128 steps. When a sample is due (the first three steps, then every `sample_every`, and the
    first steps whose gradient is not finite) expensive statistics follow: largest entries, shares of zero and
    non-finite entries, weights, updates, layer outputs and their gradients, histograms of log2|g|.

    Training is not changed: with the monitor on, the weights after `fit` equal those of a plain `fit`, and
    when `fit` ends nothing of the monitor remains on the model. `gradient_norm` and `gradient_norm_max` reach the logs,
    the mean and the largest norm of the updates of the epoch so far, so that CSVLogger, TensorBoard and every tracker
    that reads logs show them. Where the forward pass draws with seeded
    operations of TensorFlow itself (`tf.random.normal`, `tf.nn.dropout`), the same numbers are drawn; sums with
    them may differ in the last bit, where TensorFlow would have merged them.

    A step with several updates is one row: its norm is that of all of them together. Where the optimizer accumulates
    gradients, a row is an update: its norm is that of the mean that is applied, its loss the mean over the batches.
    A batch that a guard or a loss scaler leaves out has a row of its own.

    Args:
        sample_every: Steps from one sample of the expensive statistics to the next, at least 1. None: 100, and 200 for
            models of more than a million trainable parameters.
        logs: Whether `gradient_norm`, `gradient_norm_max`, and what a guard counts, reach the logs; the trace has them
            anyway.
        histogram_dir: Directory in which TensorBoard finds histograms of log2|g| by layer, or None.

    Attributes:
        trace: The record, a `gradrecipes.Trace`, up to date whenever it is read. A second fit of an
            unchanged model goes on in it; a fit of another model, or of one whose layers with gradients are others
            since, begins a new record. Keep the earlier one before it, or use a monitor for each model.

    Raises:
        TypeError: `logs` is no boolean, or `histogram_dir` no path.
        ValueError: `sample_every` is no positive whole number; in `fit`: the model is not compiled, or two
            monitors were passed.

    Example:
        >>> monitor = GradientMonitor()
        >>> model.fit(x, y, callbacks=[monitor])  # doctest: +SKIP
        >>> monitor.trace.gradient_norm  # doctest: +SKIP
    """

    def __init__(
        self, *, sample_every: int | None = None, logs: bool = True, histogram_dir: str | os.PathLike[str] | None = None
    ):
        if sample_every is not None:
            remedy = "None suits the size of the model; 1 measures everything at every step."
            require_whole("sample_every", sample_every, least=1, remedy=remedy)
        require_flag("logs", logs, remedy="True shows `gradient_norm` in the logs of the fit.")
        require_directory("histogram_dir", histogram_dir)
        super().__init__(Request(samples=True, sample_every=sample_every, log=logs))
        self.sample_every = sample_every
        self.logs = logs
        self.histogram_dir = histogram_dir

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the pipeline in place, and note where the histograms begin."""
        super().on_train_begin(logs)
        self._first_sample = len(self._session.trace.samples)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Bring the record up to date."""
        super().on_epoch_end(epoch, logs)
        self._write_histograms()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the model its own train function back."""
        super().on_train_end(logs)
        self._write_histograms()

    def _write_histograms(self) -> None:
        if self.histogram_dir is None:
            return
        from gradrecipes.callbacks.tensorboard_histograms import write_histograms

        trace = self.trace
        write_histograms(trace, self.histogram_dir, first_sample=self._first_sample)
        self._first_sample = len(trace.samples)
