"""The gradient norm before and after clipping over the steps, and how often each norm came up."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradrecipes.core.analysis.clipping_report import clipping_report
from gradrecipes.core.trace import Trace
from gradrecipes.plots.canvas import (
    BLUE,
    GREY,
    ORANGE,
    VERMILLION,
    Picture,
    annotate_empty,
    envelope,
    mark_steps,
    step_axis,
    two_axes,
)

BINS = 48  # of the histogram, equal steps of the logarithm
DECADES_AT_MOST = 8.0  # shown above and below the median, so that one norm of 1e30 does not flatten the rest


class ClippedNorms(Picture):
    """Show what clipping did to the gradient: its norm before and after, step by step, and as a distribution.

    The axis of the norm is logarithmic. Steps that were clipped carry a tick at the bottom, and an orange point
    where their norm ended; a red cross at the top is a norm that is not finite, a triangle a skipped step. At
    the side stands how often each norm came up, before and after. Norms more than eight decades above the
    median are drawn at the upper edge.

    Args:
        steps: int64 `[n]`, training steps.
        gradient_norm: float `[n]`, global L2 norm of the unscaled gradient, before clipping.
        clip_factor: float `[n]`, what the gradient was multiplied by, at most 1; None when nothing clips.
        skipped: bool `[n]`, steps that the guard left out; None for none.
        bounds: Name to bound: lines across the picture, such as {"bound": 1.0}.

    Attributes:
        axes_, figure_: The two matplotlib axes (steps, distribution) and the figure, after `plot`.

    Example:
        >>> from gradrecipes.core.trace import Trace
        >>> trace = Trace()
        >>> trace.extend(step=[0, 1], gradient_norm=[4.0, 0.5], clip_factor=[0.25, 1.0])
        >>> ClippedNorms.from_trace(trace).norm_after
        array([1. , 0.5])
    """

    def __init__(
        self, steps: Any, *, gradient_norm: Any, clip_factor: Any = None, skipped: Any = None, bounds: Any = None
    ):
        self.steps = np.asarray(steps, np.int64)
        count = len(self.steps)
        self.gradient_norm = np.asarray(gradient_norm, np.float64)
        self.clip_factor = np.ones(count) if clip_factor is None else np.asarray(clip_factor, np.float64)
        self.skipped = np.zeros(count, bool) if skipped is None else np.asarray(skipped, bool)
        self.bounds = {str(name): float(bound) for name, bound in dict(bounds or {}).items()}
        for name in ("gradient_norm", "clip_factor", "skipped"):
            if getattr(self, name).shape != (count,):
                raise ValueError(
                    f"`{name}` must have one value for each of the {count} steps. "
                    f"Received the shape {getattr(self, name).shape}."
                )
        wrong = {name: bound for name, bound in self.bounds.items() if not (np.isfinite(bound) and bound > 0)}
        if wrong:
            raise ValueError(f"`bounds` must be positive numbers. Received: {wrong}. Leave out what is no bound.")

    @classmethod
    def from_trace(cls, trace: Trace, *, bound: float | None = None) -> ClippedNorms:
        """Take the norms out of a trace, and draw the bound that `clipping_report` recommends.

        Args:
            trace: A recorded run.
            bound: The bound that was in force, where it is one number.
        """
        recommended = clipping_report(trace).recommended_bound
        bounds = {"bound": bound, "recommended bound": recommended}
        return cls(
            trace.steps["step"],
            gradient_norm=trace.gradient_norm,
            clip_factor=trace.steps["clip_factor"],
            skipped=trace.skipped,
            bounds={name: value for name, value in bounds.items() if value is not None},
        )

    @property
    def clipped(self) -> np.ndarray:
        """bool `[n]`, whether the gradient was made smaller before it was applied."""
        return (self.clip_factor < 1) & ~self.skipped & np.isfinite(self.gradient_norm)

    @property
    def norm_after(self) -> np.ndarray:
        """float64 `[n]`, the norm that was applied; NaN where the step was skipped or the norm was not finite."""
        applied = ~self.skipped & np.isfinite(self.gradient_norm)
        factor = np.where(self.clip_factor < 1, self.clip_factor, 1.0)
        with np.errstate(invalid="ignore"):
            return np.where(applied, self.gradient_norm, np.nan) * factor

    def plot(self, ax: Any = None) -> ClippedNorms:
        """Draw and return self.

        Args:
            ax: A pair of matplotlib axes (steps, distribution); or one, which is then split in two;
                or None for a new figure.
        """
        self.axes_ = over_steps, beside = two_axes(
            ax, (10.0, 4.4), [(0, 0, 0.78, 1), (0.81, 0, 0.19, 1)], ncols=2, sharey=True, width_ratios=(4, 1)
        )
        self.figure_ = over_steps.figure
        share = f": {self.clipped.sum()} of {(~self.skipped).sum()} applied steps clipped" if len(self.steps) else ""
        over_steps.set_title(f"Gradient norm before and after clipping{share}", loc="left", fontweight="bold", pad=30)
        over_steps.set_xlabel("training step")
        over_steps.set_ylabel("global gradient norm (L2)")
        drawable = self.gradient_norm[np.isfinite(self.gradient_norm) & (self.gradient_norm > 0)]
        if not len(drawable):
            annotate_empty(over_steps, "no finite norm above zero was recorded")
            annotate_empty(beside, "")
            return self
        lowest, highest = self._limits(drawable)
        self._draw_steps(over_steps, lowest, highest)
        self._draw_distribution(beside, lowest, highest)
        return self

    def _limits(self, drawable: np.ndarray) -> tuple[float, float]:
        after = self.norm_after[self.norm_after > 0]
        shown = np.log10(np.concatenate([drawable, after, list(self.bounds.values())]))
        median = np.log10(np.median(drawable))
        highest = min(shown.max(), median + DECADES_AT_MOST)
        lowest = max(shown.min(), median - DECADES_AT_MOST)
        margin = 0.06 * max(highest - lowest, 0.5)
        return 10 ** (lowest - margin), 10 ** (highest + margin)

    def _draw_steps(self, axes: Any, lowest: float, highest: float) -> None:
        axes.set_yscale("log")
        axes.set_ylim(lowest, highest)
        step_axis(axes, self.steps)
        chosen = envelope(self.gradient_norm)
        norms = self.gradient_norm[chosen]
        norms = np.where(np.isfinite(norms) & (norms > 0), np.minimum(norms, highest), np.nan)
        marker = "o" if len(chosen) <= 60 else ""
        axes.plot(
            self.steps[chosen], norms, color=BLUE, linewidth=1.1, marker=marker, markersize=3, label="before clipping"
        )
        if self.clipped.any():
            after = np.where(self.clipped, self.norm_after, np.nan)
            chosen = envelope(after)
            axes.plot(
                self.steps[chosen], after[chosen], ".", color=ORANGE, markersize=3.5, zorder=3, label="after clipping"
            )
        for name, bound, style in self._lines():
            axes.axhline(bound, label=f"{name} {bound:.3g}", linewidth=1.2, **style)
        mark_steps(axes, self.steps, "clipped step", self.clipped)
        mark_steps(axes, self.steps, "not finite", ~np.isfinite(self.gradient_norm))
        mark_steps(axes, self.steps, "skipped step", self.skipped)
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.055), "borderaxespad": 0}
        legend = axes.legend(ncols=7, frameon=False, fontsize=8, columnspacing=1.2, handlelength=1.6, **place)
        legend.set_in_layout(False)  # it reaches over the distribution, which may not make room for it

    def _draw_distribution(self, axes: Any, lowest: float, highest: float) -> None:
        edges = np.geomspace(lowest, highest, BINS + 1)
        axes.set_yscale("log")
        axes.set_ylim(lowest, highest)
        for norms, colour, filled in ((self.gradient_norm, BLUE, True), (self.norm_after, ORANGE, False)):
            norms = norms[np.isfinite(norms) & (norms > 0)]
            counts, _ = np.histogram(np.clip(norms, lowest, highest), edges)
            axes.stairs(
                counts, edges, orientation="horizontal", color=colour, fill=filled, alpha=0.35 if filled else 1.0
            )
        for _, bound, style in self._lines():
            axes.axhline(bound, linewidth=0.8, **style)
        axes.set_xlabel("steps", color=GREY)
        axes.tick_params(labelleft=False)
        axes.grid(alpha=0.25)

    def _lines(self) -> list[tuple[str, float, dict[str, Any]]]:
        styles = [{"color": VERMILLION, "linestyle": "-"}, {"color": "black", "linestyle": (0, (4, 4))}]
        return [(name, bound, styles[number % 2]) for number, (name, bound) in enumerate(self.bounds.items())]
