"""See the gradients of the real training step, every step and every layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.core.arguments import require_directory, require_flag, require_whole, shown_names
from gradrecipes.core.trace import APPLIED, HISTOGRAM_BINS, HISTOGRAM_LOWEST, Trace
from gradrecipes.training.fit.prepared_step import Request

if TYPE_CHECKING:
    from gradrecipes.training.fit.trace_writer import LayerMap


SAMPLED = ("weight_norm", "update_ratio")  # of the readings by layer that join the logs


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
        log_layers: Pattern of the names of layers, or several, as in `"dense_*"`: their readings join the logs as
            `layer_gradient_norm/<layer>`, the mean over the updates of the epoch so far, and, of the last sample,
            `weight_norm/<layer>` and `update_ratio/<layer>`, ‖Δw‖ / ‖w‖. `"*"` stands for all layers that have
            gradients. List the monitor before the callbacks that read the logs.
        log_layers_every: Batches from one renewal of these readings to the next in the logs of batches, for trackers
            that log within an epoch; between two of them the last ones stay there. The host reads them in one copy,
            after the logs of the batch. None: in the logs of epochs only.

    Attributes:
        trace: The record, a `gradrecipes.Trace`, up to date whenever it is read. A second fit of an
            unchanged model goes on in it; a fit of another model, or of one whose layers with gradients are others
            since, begins a new record. Keep the earlier one before it, or use a monitor for each model.

    Raises:
        TypeError: `logs` is no boolean, `histogram_dir` no path, or `log_layers` no pattern.
        ValueError: `sample_every` or `log_layers_every` is no positive whole number; in `fit`: the model is not
            compiled, no layer matches `log_layers`, or two monitors were passed.

    Example:
        >>> monitor = GradientMonitor()
        >>> model.fit(x, y, callbacks=[monitor])  # doctest: +SKIP
        >>> monitor.trace.gradient_norm  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        sample_every: int | None = None,
        logs: bool = True,
        histogram_dir: str | os.PathLike[str] | None = None,
        log_layers: str | Sequence[str] | None = None,
        log_layers_every: int | None = None,
    ):
        if sample_every is not None:
            remedy = "None suits the size of the model; 1 measures everything at every step."
            require_whole("sample_every", sample_every, least=1, remedy=remedy)
        require_flag("logs", logs, remedy="True shows `gradient_norm` in the logs of the fit.")
        require_directory("histogram_dir", histogram_dir)
        patterns = _require_patterns(log_layers)
        if log_layers_every is not None:
            remedy = "None shows the readings of layers in the logs of epochs only."
            require_whole("log_layers_every", log_layers_every, least=1, remedy=remedy)
            if not patterns:
                raise ValueError(
                    f"`log_layers_every` belongs to `log_layers`. Received: log_layers_every={log_layers_every} and "
                    f"log_layers={log_layers!r}. Name the layers too: log_layers='*' stands for all."
                )
        super().__init__(Request(samples=True, sample_every=sample_every, log=logs))
        self.sample_every = sample_every
        self.logs = logs
        self.histogram_dir = histogram_dir
        self.log_layers = log_layers
        self.log_layers_every = log_layers_every
        self._layer_logs = _LayerLogs(patterns) if patterns else None
        self._next_renewal = 0
        if log_layers_every is not None:  # a method of the class would keep Keras from running others in threads
            self.on_train_batch_end = self._add_to_batch

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the pipeline in place, and note where the histograms begin."""
        super().on_train_begin(logs)
        self._first_sample = len(self._session.trace.samples)
        if self._layer_logs is not None:
            self._layer_logs.require_a_match(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Assign the steps from here on to an epoch."""
        super().on_epoch_begin(epoch, logs)
        if self._layer_logs is not None:
            self._layer_logs.begin_epoch(self._session.trace)
        self._next_renewal = 0

    def _add_to_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the readings of layers to the logs of a batch."""
        if batch >= self._next_renewal:
            self._next_renewal = batch + self.log_layers_every
            self._layer_logs.renew(self.trace, self._session.layer_map)
        if logs is not None:
            logs.update(self._layer_logs.readings)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Bring the record up to date."""
        super().on_epoch_end(epoch, logs)
        self._write_histograms()
        if self._layer_logs is not None and logs is not None:
            self._layer_logs.renew(self.trace, self._session.layer_map)
            logs.update(self._layer_logs.readings)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the model its own train function back."""
        super().on_train_end(logs)
        self._write_histograms()

    def __getstate__(self) -> dict[str, Any]:
        logs = None if self._layer_logs is None else _LayerLogs(self._layer_logs.patterns)
        return {**super().__getstate__(), "_layer_logs": logs}

    def _write_histograms(self) -> None:
        if self.histogram_dir is None:
            return
        trace = self.trace
        write_histograms(trace, self.histogram_dir, first_sample=self._first_sample)
        self._first_sample = len(trace.samples)


class _LayerLogs:
    """Keep what the logs say of each layer.

    Args:
        patterns: A layer is logged if its name matches one of them.

    Attributes:
        patterns: As given.
        readings: float by key, `<reading>/<layer>`.
    """

    def __init__(self, patterns: Sequence[str]):
        self.readings: dict[str, float] = {}
        self.patterns = tuple(patterns)
        self.begin_epoch(Trace())

    def require_a_match(self, model: Any) -> None:
        """Refuse patterns that no layer with gradients matches, where the layers are known.

        Raises:
            ValueError: With the names there are.
        """
        from gradrecipes.training.fit.trace_writer import LayerMap

        names = LayerMap(model, model.trainable_variables, []).names
        if names and not self._matching(names):
            raise ValueError(
                "`log_layers` must match the name of a layer with trainable weights. Received: log_layers="
                f"{', '.join(map(repr, self.patterns))}; the layers of {model.name!r} are "
                f"{shown_names(names)}. '*' stands for all."
            )

    def begin_epoch(self, trace: Trace) -> None:
        """Begin the means of an epoch anew."""
        self._trace, self._rows = trace, len(trace)
        self._sums = self._counts = np.zeros(len(trace.layers))

    def renew(self, trace: Trace, layer_map: LayerMap | None) -> None:
        """Take what has been recorded since the last time.

        Args:
            trace: The record, up to date.
            layer_map: Which of its layers have variables; None before the first rows.
        """
        if layer_map is None:
            return
        if trace is not self._trace:  # the first rows begin a record
            self.begin_epoch(trace)
            self._rows = 0
        norms = trace.steps.since("layer_gradient_norm", self._rows)
        total, outcomes = (trace.steps.since(name, self._rows) for name in ("gradient_norm", "outcome"))
        self._rows = len(trace)
        # A layer without a gradient in a step is NaN beside a norm of all that is a number.
        counted = (outcomes == APPLIED)[:, None] & (~np.isnan(norms) | np.isnan(total)[:, None])
        self._sums = self._sums + np.where(counted, norms, 0.0).sum(axis=0)
        self._counts = self._counts + counted.sum(axis=0)
        # Not `gradient_norm/...`: where a tracker keeps a key as a file, as MLflow's file store, that is one already.
        columns = self._matching(trace.layers, layer_map.with_variables)
        with np.errstate(invalid="ignore"):
            means = np.where(self._counts > 0, self._sums / np.maximum(self._counts, 1), np.nan)
        self.readings = {f"layer_gradient_norm/{trace.layers[column]}": float(means[column]) for column in columns}
        row = _last_applied_sample(trace)
        for name in SAMPLED if row is not None else ():
            values = trace.samples[name][row]
            self.readings |= {f"{name}/{trace.layers[column]}": float(values[column]) for column in columns}

    def _matching(self, names: Sequence[str], columns: Sequence[int] | None = None) -> list[int]:
        columns = range(len(names)) if columns is None else columns
        return [column for column in columns if any(fnmatchcase(names[column], pattern) for pattern in self.patterns)]


def _last_applied_sample(trace: Trace) -> int | None:
    """Return the row of the last sample whose step was applied: of one left out, no update was measured."""
    steps = trace.samples["step"]
    left_out = {event.step for event in trace.events if event.kind == "skip"} if len(steps) else ()
    return next((row for row in reversed(range(len(steps))) if int(steps[row]) not in left_out), None)


def _require_patterns(patterns: Any) -> tuple[str, ...]:
    if patterns is None:
        return ()
    several = (patterns,) if isinstance(patterns, str) else patterns
    if not isinstance(several, Sequence) or not several or not all(isinstance(one, str) and one for one in several):
        raise TypeError(
            f"`log_layers` must be a pattern of layer names, a list of patterns, or None. Received: {patterns!r}. "
            "'dense_*' stands for dense_1, dense_2 and so on, '*' for all layers."
        )
    return tuple(several)


def write_histograms(trace: Trace, directory: str, *, first_sample: int = 0) -> None:
    """Write the histograms of log2|g| of a Trace's samples as TensorBoard histograms.

    Args:
        trace: The record.
        directory: A TensorBoard log directory; tags are `gradients_log2/<layer>`.
        first_sample: Samples before this one are left out, as they were written before.
    """
    from tensorboard.plugins.histogram import metadata

    steps, counts = trace.samples["step"][first_sample:], trace.samples["histogram"][first_sample:]
    if not len(steps):
        return
    left = HISTOGRAM_LOWEST + np.arange(HISTOGRAM_BINS, dtype=np.float64)
    writer = tf.summary.create_file_writer(directory)
    with writer.as_default():
        for step, of_layers in zip(steps, counts, strict=True):
            for layer, of_layer in zip(trace.layers, of_layers, strict=True):
                if of_layer.sum() > 0:
                    tag = f"gradients_log2/{layer}"
                    summary = metadata.create_summary_metadata(display_name=tag, description="log2 of |gradient|")
                    tf.summary.write(tag, np.stack([left, left + 1, of_layer], axis=1), int(step), summary)
    writer.close()
