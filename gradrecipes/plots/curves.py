"""Loss and gradient norm over the steps of a training, and of a trial with one thing changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import TrialReading, VariationResult
from gradrecipes.plots.canvas import (
    BLUE,
    GREY,
    NONFINITE_COLOUR,
    ORANGE,
    Picture,
    annotate_empty,
    envelope,
    mark_steps,
    step_axis,
    two_axes,
)


class TrainingCurves(Picture):
    """Show how the loss and the gradient went, and at which steps something was skipped, clipped or lost.

    Both axes are logarithmic. A step whose value is not finite carries a red cross at the top, a skipped
    step a triangle, a clipped step a tick at the bottom of the gradient panel; the gradient that was left
    after clipping is drawn as a thin line below the measured one. A loss that is zero or negative at
    some step gets a scale that is logarithmic on both sides of zero.

    Args:
        steps: int64 `[n]`, training steps.
        loss: float `[n]`, loss of each batch.
        gradient_norm: float `[n]`, global L2 norm of the unscaled gradient, before clipping.
        clip_factor: float `[n]`, what the gradient was multiplied by, at most 1; None when nothing clips.
        skipped: bool `[n]`, steps that the guard left out; None for none.

    Attributes:
        axes_, figure_: The two matplotlib axes (loss, gradient norm) and the figure, after `plot`.

    Example:
        >>> from gradrecipes.core.trace import Trace
        >>> trace = Trace()
        >>> trace.append(step=0, loss=2.5, gradient_norm=5.0)
        >>> TrainingCurves.from_trace(trace).loss
        array([2.5])
    """

    def __init__(self, steps: Any, *, loss: Any, gradient_norm: Any, clip_factor: Any = None, skipped: Any = None):
        self.steps = np.asarray(steps, np.int64)
        count = len(self.steps)
        self.loss = np.asarray(loss, np.float64)
        self.gradient_norm = np.asarray(gradient_norm, np.float64)
        self.clip_factor = np.full(count, np.nan) if clip_factor is None else np.asarray(clip_factor, np.float64)
        self.skipped = np.zeros(count, bool) if skipped is None else np.asarray(skipped, bool)
        for name in ("loss", "gradient_norm", "clip_factor", "skipped"):
            if getattr(self, name).shape != (count,):
                raise ValueError(
                    f"`{name}` must have one value for each of the {count} steps. "
                    f"Received the shape {getattr(self, name).shape}."
                )

    @classmethod
    def from_trace(cls, trace: Trace) -> TrainingCurves:
        """Take the curves out of a trace."""
        return cls(
            trace.steps["step"],
            loss=trace.loss,
            gradient_norm=trace.gradient_norm,
            clip_factor=trace.steps["clip_factor"],
            skipped=trace.skipped,
        )

    @property
    def clipped(self) -> np.ndarray:
        """bool `[n]`, whether the gradient was made smaller before the update."""
        return self.clip_factor < 1

    def plot(self, ax: Any = None) -> TrainingCurves:
        """Draw and return self.

        Args:
            ax: A pair of matplotlib axes (loss, gradient norm); or one, which is then split in two;
                or None for a new figure.
        """
        self.axes_ = two_axes(ax, (10.0, 5.6), [(0, 0.57, 1, 0.43), (0, 0, 1, 0.43)], nrows=2, sharex=True)
        self.figure_ = self.axes_[0].figure
        above, below = self.axes_
        above.set_title("Loss and gradient norm by step", loc="left", fontweight="bold", pad=16)
        self._draw_line(above, self.loss, BLUE, "batch loss")
        self._draw_line(below, self.gradient_norm, BLUE, "before clipping")
        above.set_ylabel("loss of the batch")
        below.set_ylabel("global gradient norm (L2)")
        below.set_xlabel("training step")
        above.tick_params(labelbottom=False)
        if self.clipped.any():
            with np.errstate(invalid="ignore"):  # an infinite norm times 0 is drawn as no number
                left = np.where(self.clipped, self.gradient_norm * self.clip_factor, np.nan)
            chosen = envelope(left)
            below.plot(self.steps[chosen], left[chosen], ".", color=ORANGE, markersize=2.5, label="after clipping")
            mark_steps(below, self.steps, "clipped step", self.clipped)
        for axes, values in ((above, self.loss), (below, self.gradient_norm)):
            step_axis(axes, self.steps)
            mark_steps(axes, self.steps, "not finite", ~np.isfinite(values))
            mark_steps(axes, self.steps, "skipped step", self.skipped)
            labels = axes.get_legend_handles_labels()[1]
            if set(labels) - {"batch loss", "before clipping"}:
                axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.04), ncols=5, frameon=False, borderaxespad=0.1)
        return self

    def _draw_line(self, axes: Any, values: np.ndarray, colour: str, label: str) -> None:
        finite = values[np.isfinite(values)]
        if not len(finite):
            annotate_empty(axes, f"no finite {'value' if len(values) else 'value was recorded'}")
            return
        if (finite > 0).all():
            axes.set_yscale("log")
        elif (finite == 0).all():
            axes.set_yscale("linear")
        else:
            smallest = np.abs(finite[finite != 0]).min()
            axes.set_yscale("symlog", linthresh=max(smallest, np.abs(finite).max() * 1e-6))
        chosen = envelope(values)
        y = np.where(np.isfinite(values[chosen]), values[chosen], np.nan)
        alone = len(finite) <= 60
        axes.plot(
            self.steps[chosen], y, color=colour, linewidth=1.3, marker="o" if alone else "", markersize=3, label=label
        )


SPAN_OF_A_LINEAR_AXIS = 20.0  # largest over smallest value; above that the axis is logarithmic
BETTER = 0.9  # end over start below which a variation is drawn as one that learns


class TrialCurves(Picture):
    """Show the losses of a trial, pass by pass over the same batches, beside where each variation of it ended.

    On the left the loss of every step and the median of each pass. On the right an arrow for each variation, from
    its first pass to its last; a cross is one that broke. Both panels share their scale, and the dotted line is the
    loss of the best constant prediction.

    Args:
        loss: float `[steps]`, loss of each batch.
        batches: How many batches make a pass; 0 when they never came again.
        baseline: Loss of the best constant prediction, or None.
        varied: (start, end) of each variation by its name, None for one that broke.

    Attributes:
        axes_, figure_: The two matplotlib axes (losses, variations) and the figure, after `plot`.

    Example:
        >>> TrialCurves([2.0, 1.0], batches=1, baseline=2.3, varied={"rate x 0.1": (2.0, 1.9)}).passes
        array([2., 1.])
    """

    def __init__(
        self,
        loss: Any,
        *,
        batches: int = 0,
        baseline: float | None = None,
        varied: Mapping[str, tuple[float, float] | None] | None = None,
    ):
        self.loss = np.asarray(loss, np.float64)
        self.batches = batches
        self.baseline = baseline
        self.varied = dict(varied or {})
        if self.loss.ndim != 1:
            raise ValueError(f"`loss` must have one value for each step. Received the shape {self.loss.shape}.")

    @classmethod
    def from_trace(cls, trace: Trace, *, names: Mapping[str, str] | None = None) -> TrialCurves:
        """Take the trial out of a trace; a trace without one gives an empty picture.

        Args:
            trace: The record of `gradrecipes.diagnose`.
            names: What to call the variations; by default as in the trace.
        """
        trial = trace.probes.trial or TrialReading()
        loss = np.zeros(0) if trace.probes.trial is None else trace.loss.astype(float)
        varied = {(names or {}).get(name, name): _ends(result) for name, result in trial.variations.items()}
        return cls(loss, batches=trial.batches, baseline=trial.constant_baseline_loss, varied=varied)

    @property
    def passes(self) -> np.ndarray:
        """float `[passes]`, median loss of each pass; NaN for one without a finite loss."""
        size = self.batches or len(self.loss) or 1
        parts = [self.loss[start : start + size] for start in range(0, len(self.loss), size)]
        parts = [part[np.isfinite(part)] for part in parts]
        return np.array([np.median(part) if len(part) else math.nan for part in parts])

    def plot(self, ax: Any = None) -> TrialCurves:
        """Draw and return self.

        Args:
            ax: A pair of matplotlib axes; or one, which is then split in two; or None for a new figure.
        """
        size = (10.0, 2.6 + 0.25 * min(len(self.varied), 12))
        widths = {"ncols": 2, "sharey": True, "width_ratios": (1.3, 1.0) if self.varied else (1.0, 0.001)}
        self.axes_ = two_axes(ax, size, [(0, 0, 0.52, 1), (0.58, 0, 0.42, 1)], **widths)
        self.figure_ = self.axes_[0].figure
        losses, ends = self.axes_
        losses.set_title("The trial as it is", loc="left", fontweight="bold")
        losses.set_xlabel("step")
        losses.xaxis.get_major_locator().set_params(integer=True)
        losses.set_ylabel("loss of the batch")
        if not len(self.loss):
            annotate_empty(losses, "no trial was recorded")
            ends.set_axis_off()
            return self
        self._scale(losses)
        self._draw_losses(losses)
        if self.varied:
            ends.set_title("The same steps, one thing changed", loc="left", fontweight="bold")
            self._draw_ends(ends)
        else:
            ends.set_axis_off()
        if losses.get_legend_handles_labels()[0]:
            losses.legend(loc="best", fontsize=8.5)
        return self

    def _scale(self, axes: Any) -> None:
        values = [self.loss, *([] if not self.baseline else [[self.baseline]])]
        values += [pair for pair in self.varied.values() if pair is not None]
        known = np.concatenate([np.asarray(part, float) for part in values])
        known = known[np.isfinite(known)]
        if len(known) and known.min() > 0 and known.min() < known.max() / SPAN_OF_A_LINEAR_AXIS:
            axes.set_yscale("log")

    def _draw_losses(self, axes: Any) -> None:
        steps, known = np.arange(len(self.loss)), np.isfinite(self.loss)
        axes.grid(alpha=0.25)
        axes.plot(steps[known], self.loss[known], ".", color=BLUE, alpha=0.35, markersize=5, label="each batch")
        if self.batches and len(self.loss) > self.batches:
            passes, edges = self.passes, np.arange(0, len(self.loss), self.batches)
            for start, value in zip(edges, passes, strict=True):
                stop = min(start + self.batches, len(self.loss)) - 1
                label = "median of a pass" if start == 0 else None
                axes.plot([start, stop], [value, value], color=BLUE, linewidth=2.2, label=label)
        if (~known).any():
            place = np.full((~known).sum(), 0.96)
            axes.plot(
                steps[~known], place, "x", color=NONFINITE_COLOUR, label="not finite",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        if self.baseline:
            axes.axhline(self.baseline, color=GREY, linestyle=":", linewidth=1.4, label="best constant prediction")

    def _draw_ends(self, axes: Any) -> None:
        axes.grid(alpha=0.25, axis="y")
        if self.baseline:
            axes.axhline(self.baseline, color=GREY, linestyle=":", linewidth=1.4)
        for place, pair in enumerate(self.varied.values()):
            if pair is None:
                axes.plot([place], [0.96], "x", color=NONFINITE_COLOUR, transform=axes.get_xaxis_transform())
                continue
            start, end = pair
            colour = BLUE if end < BETTER * start else ORANGE
            axes.plot([place, place], [start, end], color=colour, linewidth=1.4)
            axes.plot([place], [start], "o", color=colour, markerfacecolor="white", markersize=5)
            axes.plot([place], [end], "o", color=colour, markersize=6)
        axes.set_xlim(-0.6, len(self.varied) - 0.4)
        axes.set_xticks(range(len(self.varied)), list(self.varied), rotation=30, ha="right", fontsize=8.5)
        axes.tick_params(labelleft=False)


def _ends(result: VariationResult) -> tuple[float, float] | None:
    return None if result.start is None or result.end is None else (result.start, result.end)
