"""Keep a training alive: leave out the steps that would ruin the weights, and stop when nothing else is left."""

from __future__ import annotations

import logging
from typing import Any

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.core.event import Event
from gradrecipes.gradients.clipping import Clipping, require_clipping
from gradrecipes.training.attachment import Request

_LOG = logging.getLogger(__name__)


class GradientGuard(AttachedCallback):
    """Skip every step whose loss or gradient is not finite, and stop, with the reason, when all of them are.

    A skipped step leaves every weight, optimizer slot, moving average, seed, metric and counter as it was: as
    if the batch had never come. Zeroing the gradient, as is often done, is no skip, since moments still decay
    and weight decay still acts. A finite gradient above 1.8e19, whose square no optimizer can hold, is skipped
    as well unless it is clipped first (and above 1e30 even then). `skipped_steps` (and `clipped_steps`) reach the logs.

    Args:
        clipping: A method of `gradrecipes.clipping` that bounds every gradient before it is applied, or None.
            It acts before what the optimizer's own `clipnorm`, `global_clipnorm` or `clipvalue` do.
        max_consecutive_skips: Skips in a row after which the training is stopped, at least 1: skipping for
            ever would hide a bug.

    Attributes:
        events: What the guard did: a list of `gradrecipes.Event`, of the kinds `"skip"` and `"stop"`.
        stop_reason: None, or the code for which the training was stopped: `"too_many_skips"`.
        trace: The record of the fit.

    Raises:
        TypeError: `clipping` is no clipping method.
        ValueError: `max_consecutive_skips` is no positive whole number; in `fit`: the model is not compiled,
            or two guards were passed.

    Example:
        >>> import gradrecipes as gr
        >>> guard = gr.GradientGuard(clipping=gr.clipping.by_global_norm(1.0))
        >>> model.fit(x, y, callbacks=[guard])  # doctest: +SKIP

    References:
        The rule that a skip must leave the optimizer untouched: `keras.optimizers.LossScaleOptimizer`, which
        does it for float16 only.
    """

    def __init__(self, *, clipping: Clipping | None = None, max_consecutive_skips: int = 10):
        require_clipping(clipping, "GradientGuard")
        whole = isinstance(max_consecutive_skips, int) and not isinstance(max_consecutive_skips, bool)
        if not whole or max_consecutive_skips < 1:
            raise ValueError(
                "`max_consecutive_skips` must be a whole number of steps, at least 1. "
                f"Received: max_consecutive_skips={max_consecutive_skips!r}. 10 suits most trainings."
            )
        super().__init__(Request(skip=True, clipping=clipping))
        self.clipping = clipping
        self.max_consecutive_skips = max_consecutive_skips
        self.stop_reason: str | None = None
        self._skips_seen = 0.0

    @property
    def events(self) -> list[Event]:
        """What the guard did, in order: skips and the stop, each with step, epoch, batch and reason."""
        return [event for event in self.trace.events if event.kind in ("skip", "stop")]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the pipeline in place."""
        super().on_train_begin(logs)
        self.stop_reason = None
        pipeline = self._attachment.pipeline
        pipeline.consecutive_skips.assign(0)
        self._skips_seen = float(pipeline.skipped_steps.numpy())

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Tell the record which epoch begins."""
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop if too many steps in a row were skipped; the device is asked only when there was a new skip."""
        super().on_train_batch_end(batch, logs)
        skipped = float((logs or {}).get("skipped_steps", 0.0))
        if skipped <= self._skips_seen:
            return
        self._skips_seen = skipped
        consecutive = int(self._attachment.pipeline.consecutive_skips.numpy())
        if consecutive >= self.max_consecutive_skips:
            self._stop(consecutive)

    def _stop(self, consecutive: int) -> None:
        self.stop_reason = "too_many_skips"
        event = self._attachment.add_stop(self._epoch, self.stop_reason, {"consecutive_skips": consecutive})
        reasons = sorted({skip.reason for skip in self.events if skip.kind == "skip"})
        _LOG.warning(
            "GradientGuard stopped the training at epoch %d, batch %d: the last %d steps were all skipped (%s). "
            "The weights are those before the first of them. gradrecipes.diagnose(guard.trace) says why.",
            event.epoch + 1,
            event.batch + 1,
            consecutive,
            ", ".join(reasons),
        )
        self.model.stop_training = True
