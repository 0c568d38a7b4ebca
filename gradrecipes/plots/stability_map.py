"""Where in a plane of two settings a training works, how well, and where it diverges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradrecipes.core.analysis.search_trial import SearchTrial, SpaceAxis
from gradrecipes.plots.canvas import NONFINITE_COLOUR, Picture, annotate_empty, new_figure

GRID = 80  # points along each side on which the share of failures is estimated
WIDTH = 0.09  # standard deviation of the kernel, as a share of the side: about a tenth of the plane tells of a point
FEWEST = 3  # failures and successes each, from which on a frontier is drawn
EVIDENCE = 0.5  # trials' worth of weight that a point needs to be on one side of a frontier
LEVEL = 0.5  # share of failures that the frontier stands for


class StabilityMap(Picture):
    """Show the trials of a search in the plane of two settings: successes by score, failures as crosses.

    The line is the divergence frontier: beyond it, more than half of the trials fail, by a Gaussian mean over the
    neighbouring trials. It is drawn only where there are trials to tell.

    Args:
        trials: The trials.
        horizontal: Axis of the one setting.
        vertical: Axis of the other.
        objective: Name of the score.
        maximize: Whether more is better.

    Attributes:
        failure_share: float64 `[80, 80]`, rows from low to high on the vertical axis; NaN where no trial is near.
        axes_, figure_: The matplotlib axes and figure, after `plot`.
    """

    def __init__(
        self,
        trials: Sequence[SearchTrial],
        horizontal: SpaceAxis,
        vertical: SpaceAxis,
        *,
        objective: str = "score",
        maximize: bool = False,
    ):
        self.horizontal, self.vertical = horizontal, vertical
        self.objective, self.maximize = objective, maximize
        ended = [one for one in trials if one.status != "running"]
        x = horizontal.places([one.values.get(horizontal.name) for one in ended])
        y = vertical.places([one.values.get(vertical.name) for one in ended])
        shown = np.isfinite(x) & np.isfinite(y)
        self.x, self.y = x[shown], y[shown]
        kept = [one for one, keep in zip(ended, shown, strict=True) if keep]
        self.failed = np.array([one.failed for one in kept], bool)
        self.scores = np.array([np.nan if one.score is None else one.score for one in kept], np.float64)
        self._extent = (*_span(self.x), *_span(self.y))
        self.failure_share = self._estimate()

    def _estimate(self) -> np.ndarray:
        if min(self.failed.sum(), (~self.failed).sum()) < FEWEST:
            return np.full((GRID, GRID), np.nan)
        left, right, low, high = self._extent
        grid = (np.arange(GRID) + 0.5) / GRID
        across = (self.x - left) / (right - left) - grid[:, None]
        up = (self.y - low) / (high - low) - grid[:, None]
        near_x, near_y = (np.exp(-0.5 * np.square(distance / WIDTH)) for distance in (across, up))
        weight = near_y @ near_x.T
        with np.errstate(invalid="ignore"):
            share = ((near_y * self.failed) @ near_x.T) / weight
        return np.where(weight >= EVIDENCE, share, np.nan)

    def plot(self, ax: Any = None) -> StabilityMap:
        """Draw and return self.

        Args:
            ax: Matplotlib axes, or None for a new figure.
        """
        self.axes_ = new_figure(7.6, 5.2).subplots() if ax is None else ax
        self.figure_ = self.axes_.figure
        axes = self.axes_
        share = f"{self.failed.mean():.0%} of {len(self.failed)} trials failed" if len(self.failed) else "no trials"
        axes.set_title(f"Stability map: {share}", loc="left", fontweight="bold")
        if not len(self.failed):
            annotate_empty(axes, "no trial has ended")
            return self
        self._draw_frontier(axes)
        alive = ~self.failed
        if alive.any():
            points = axes.scatter(
                self.x[alive],
                self.y[alive],
                c=self.scores[alive],
                cmap="cividis" if self.maximize else "cividis_r",
                s=52,
                edgecolors="black",
                linewidths=0.5,
                zorder=3,
            )
            self.figure_.colorbar(points, ax=axes, label=f"{self.objective} (bright is better)")
        axes.plot(
            self.x[self.failed],
            self.y[self.failed],
            "x",
            color=NONFINITE_COLOUR,
            label="failed",
            markersize=7,
            zorder=3,
        )
        left, right, low, high = self._extent
        axes.set_xlim(left, right)
        axes.set_ylim(low, high)
        label_axis(axes.xaxis, self.horizontal)
        label_axis(axes.yaxis, self.vertical)
        axes.set_xlabel(self.horizontal.name)
        axes.set_ylabel(self.vertical.name)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
        return self

    def _draw_frontier(self, axes: Any) -> None:
        known = np.isfinite(self.failure_share)
        if not known.any() or not (np.nanmin(self.failure_share) < LEVEL < np.nanmax(self.failure_share)):
            return
        left, right, low, high = self._extent
        grid = (np.arange(GRID) + 0.5) / GRID
        across, up = left + grid * (right - left), low + grid * (high - low)
        axes.contourf(
            across, up, self.failure_share, levels=[LEVEL, 1.01], colors=[NONFINITE_COLOUR], alpha=0.12, zorder=1
        )
        axes.contour(across, up, self.failure_share, levels=[LEVEL], colors="black", linestyles="--", zorder=2)
        axes.plot([], [], "--", color="black", label="half of the trials fail")


def label_axis(axis: Any, space: SpaceAxis) -> None:
    """Write the values of a setting along an axis on which their places stand."""
    if space.choices:
        axis.set_ticks(range(len(space.choices)), [str(choice) for choice in space.choices])
    elif space.logarithmic:
        axis.set_major_formatter(lambda place, _: f"{float(f'{10**place:.2g}'):g}")


def _span(places: np.ndarray) -> tuple[float, float]:
    if not len(places):
        return 0.0, 1.0
    low, high = float(places.min()), float(places.max())
    edge = 0.06 * (high - low) or 0.5
    return low - edge, high + edge
