"""Every trial of a search as a line through all its settings, so that what the good ones share is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradrecipes.core.analysis.search_trial import SearchTrial, SpaceAxis
from gradrecipes.plots.canvas import GREY, NONFINITE_COLOUR, Picture, annotate_empty, new_figure, short_name

TICKS = 5  # numbers beside an axis
INACTIVE = -0.13  # height at which a line passes an axis whose setting its trial does not have


class ParallelCoordinates(Picture):
    """Draw a line for each trial: across its settings to its score, bright for good ones, red for failures.

    Args:
        trials: The trials.
        axes: The settings, in the order in which they are drawn.
        objective: Name of the score, which is the last axis.
        maximize: Whether more is better.

    Attributes:
        heights: float64 `[trials, settings]`, 0 to 1 within each axis; NaN where a setting was not active.
        axes_, figure_: The matplotlib axes and figure, after `plot`.
    """

    def __init__(
        self,
        trials: Sequence[SearchTrial],
        axes: Sequence[SpaceAxis],
        *,
        objective: str = "score",
        maximize: bool = False,
    ):
        self.trials = [one for one in trials if one.status != "running"]
        self.space = tuple(axes)
        self.objective, self.maximize = objective, maximize
        places = [axis.places([one.values.get(axis.name) for one in self.trials]) for axis in self.space]
        self._spans = [_span(column) for column in places]
        columns = [(column - low) / (high - low) for column, (low, high) in zip(places, self._spans, strict=True)]
        self.heights = np.stack(columns, axis=1) if columns else np.zeros((len(self.trials), 0))
        self.scores = np.array([np.nan if one.score is None else one.score for one in self.trials], np.float64)

    def plot(self, ax: Any = None) -> ParallelCoordinates:
        """Draw and return self.

        Args:
            ax: Matplotlib axes, or None for a new figure.
        """
        count = len(self.space)
        self.axes_ = new_figure(max(6.0, 1.7 * (count + 2)), 4.8).subplots() if ax is None else ax
        self.figure_ = self.axes_.figure
        axes = self.axes_
        axes.set_title("Settings of all trials", loc="left", fontweight="bold")
        if not self.trials or not count:
            annotate_empty(axes, "no trial has ended" if count else "the space has no settings")
            return self
        alive = np.isfinite(self.scores)
        low, high = _span(self.scores[alive])
        goodness = (self.scores - low) / (high - low) if self.maximize else (high - self.scores) / (high - low)
        from matplotlib import colormaps

        colours = colormaps["cividis"]
        for row in sorted(range(len(self.trials)), key=lambda row: goodness[row] if alive[row] else -1.0):
            across = np.where(np.isfinite(self.heights[row]), self.heights[row], INACTIVE)
            line = [*across, (self.scores[row] - low) / (high - low) if alive[row] else np.nan]
            style = (
                {"color": colours(goodness[row]), "linewidth": 1.8, "alpha": 0.95}
                if alive[row]
                else {"color": NONFINITE_COLOUR, "linewidth": 0.8, "alpha": 0.5}
            )
            axes.plot(range(count + 1), line, **style)
        self._draw_axes(axes, [*self._spans, (low, high)])
        axes.plot([], [], color=NONFINITE_COLOUR, label=f"failed ({int((~alive).sum())})")
        axes.plot([], [], color=colours(1.0), linewidth=2, label="best")
        axes.plot([], [], color=colours(0.0), linewidth=2, label="worst that did not fail")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False)
        return self

    def _draw_axes(self, axes: Any, spans: list[tuple[float, float]]) -> None:
        every = [*self.space, SpaceAxis(self.objective)]
        for place, (axis, (low, high)) in enumerate(zip(every, spans, strict=True)):
            axes.axvline(place, color=GREY, linewidth=0.8, zorder=0)
            ticks = range(len(axis.choices)) if axis.choices else np.linspace(low, high, TICKS)
            for tick in ticks:
                height = (tick - low) / (high - low)
                if -1e-9 <= height <= 1 + 1e-9:
                    text = _text(axis, tick)
                    _annotate(axes, text, place, height)
            if place < len(self.space) and np.isnan(self.heights[:, place]).any():
                _annotate(axes, "not set", place, INACTIVE)
        axes.set_xticks(range(len(every)), [short_name(axis.name) for axis in every], fontsize=9)
        axes.set_yticks([])
        axes.set_xlim(-0.15, len(every) - 0.55)
        axes.set_ylim(INACTIVE - 0.04 if np.isnan(self.heights).any() else -0.05, 1.05)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)


def _annotate(axes: Any, text: str, place: float, height: float) -> None:
    behind = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    axes.annotate(
        text, (place, height), (4, 0), textcoords="offset points", fontsize=8, va="center", bbox=behind, zorder=4
    )


def _text(axis: SpaceAxis, tick: float) -> str:
    if axis.choices:
        return short_name(str(axis.choices[int(tick)]))
    return f"{float(f'{10**tick:.2g}'):g}" if axis.logarithmic else f"{tick:.3g}"


def _span(places: np.ndarray) -> tuple[float, float]:
    finite = places[np.isfinite(places)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)
