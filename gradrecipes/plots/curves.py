"""Batch loss and gradient norm over the steps, and where the guard or the clipping stepped in."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.plots.canvas import (
    BLUE,
    NONFINITE_COLOUR,
    ORANGE,
    Picture,
    annotate_empty,
    envelope,
    groups,
    two_axes,
)

POINTS_AT_MOST = 1200  # groups of steps in a line; each keeps its lowest and highest value
MARKS_AT_MOST = 240  # marks side by side along an axis before they merge


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
        from matplotlib.ticker import MaxNLocator

        self.figure_ = self.axes_[0].figure
        above, below = self.axes_
        above.set_title("Loss and gradient norm by step", loc="left", fontweight="bold", pad=16)
        self._draw_line(above, self.loss, BLUE, "batch loss")
        self._draw_line(below, self.gradient_norm, BLUE, "before clipping")
        above.set_ylabel("loss of the batch")
        below.set_ylabel("global gradient norm (L2)")
        below.set_xlabel("training step")
        for axes in self.axes_:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
        above.tick_params(labelbottom=False)
        if self.clipped.any():
            with np.errstate(invalid="ignore"):  # an infinite norm times 0 is drawn as no number
                left = np.where(self.clipped, self.gradient_norm * self.clip_factor, np.nan)
            chosen = envelope(left, POINTS_AT_MOST)
            below.plot(self.steps[chosen], left[chosen], ".", color=ORANGE, markersize=2.5, label="after clipping")
            self._mark(below, self.clipped, "|", ORANGE, 0.02, "clipped step")
        for axes, values in ((above, self.loss), (below, self.gradient_norm)):
            axes.set_xlim(*self._limits())
            axes.grid(alpha=0.25)
            self._mark(axes, ~np.isfinite(values), "x", NONFINITE_COLOUR, 0.96, "not finite")
            self._mark(axes, self.skipped, "v", above.xaxis.label.get_color(), 1.03, "skipped step")
            labels = axes.get_legend_handles_labels()[1]
            if set(labels) - {"batch loss", "before clipping"}:
                axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.04), ncols=5, frameon=False, borderaxespad=0.1)
        return self

    def _limits(self) -> tuple[float, float]:
        if not len(self.steps):
            return 0.0, 1.0
        margin = max(0.5, 0.01 * float(self.steps[-1] - self.steps[0]))
        return float(self.steps[0]) - margin, float(self.steps[-1]) + margin

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
        chosen = envelope(values, POINTS_AT_MOST)
        y = np.where(np.isfinite(values[chosen]), values[chosen], np.nan)
        alone = len(finite) <= 60
        axes.plot(
            self.steps[chosen], y, color=colour, linewidth=1.3, marker="o" if alone else "", markersize=3, label=label
        )

    def _mark(self, axes: Any, where: np.ndarray, marker: str, colour: str, height: float, label: str) -> None:
        if not where.any():
            return
        starts = groups(len(where), MARKS_AT_MOST)
        marked = [
            start + int(np.argmax(where[start:stop]))
            for start, stop in zip(starts, [*starts[1:], len(where)], strict=True)
            if where[start:stop].any()
        ]
        axes.plot(
            self.steps[marked],
            np.full(len(marked), height),
            marker,
            color=colour,
            markersize=6 if marker != "v" else 4.5,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label=label,
        )
