"""What a search found: settings side by side, what they matter, and where in a plane of two a training works."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradrecipes.core.analysis.search_trial import SearchTrial, SpaceAxis
from gradrecipes.plots.canvas import BLUE, GREY, NONFINITE_COLOUR, Picture, annotate_empty, new_figure, short_name

MIN_TRIALS = 8  # trials that say anything
BINS = 4  # groups that the values of a number are cut into; more leave too few trials in each


def explained_share(values: Sequence[Any], outcome: Sequence[float], *, bins: int = BINS) -> float:
    """Return how much of an outcome's spread one setting explains by itself, 0 to 1, or NaN with too few trials.

    The trials are grouped by the setting, numbers into quarters of equal size, and the spread within groups is
    compared with that over all: the correlation ratio, adjusted for the number of groups, so that a setting without
    effect gets about 0 rather than something. Unlike a correlation it sees an optimum in the middle. What only two
    settings together explain it does not see.

    Args:
        values: The setting of each trial; None where it was not active.
        outcome: float `[trials]`.
        bins: Groups of a number.

    Example:
        >>> explained_share([1, 1, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 1, 1, 1, 1])
        1.0

    References:
        Kelley 1935, "An unbiased correlation ratio measure", PNAS 21(9).
    """
    outcomes = np.asarray(outcome, np.float64)
    groups = _groups(values, bins)
    count, kinds = len(outcomes), len(set(groups))
    total = float(np.square(outcomes - outcomes.mean()).sum()) if count else 0.0
    if count < MIN_TRIALS or count <= kinds or not total > 0:
        return math.nan
    if kinds == 1:
        return 0.0
    members = [outcomes[[group == one for group in groups]] for one in dict.fromkeys(groups)]
    within = sum(float(np.square(part - part.mean()).sum()) for part in members)
    return max(0.0, 1.0 - (within / (count - kinds)) / (total / (count - 1)))


def _groups(values: Sequence[Any], bins: int) -> list[Any]:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(set(numbers)) <= bins:
        return list(values)
    edges = np.quantile(numbers, np.linspace(0, 1, bins + 1)[1:-1])
    return [
        int(np.searchsorted(edges, value, side="right"))
        if isinstance(value, int | float) and not isinstance(value, bool)
        else value
        for value in values
    ]


class SettingImportance(Picture):
    """Show what share of failures, and of the ranks of the successes, each setting explains by itself.

    Args:
        trials: The trials of a search.
        names: The settings.

    Attributes:
        failure, score: Name to share, 0 to 1; NaN where fewer than eight trials, or no spread, can tell. The settings
            of a search that learns are not drawn evenly, and what only two settings together decide is not seen:
            take the order, not the digits.
        axes_, figure_: The matplotlib axes and figure, after `plot`.

    Example:
        >>> trials = [SearchTrial(str(n), {"rate": n}, score=float(n)) for n in range(8)]
        >>> round(SettingImportance(trials, ["rate"]).score["rate"], 2)
        0.92
    """

    def __init__(self, trials: Sequence[SearchTrial], names: Sequence[str]):
        ended = [one for one in trials if one.status != "running"]
        alive = [one for one in ended if one.score is not None]
        failed = [float(one.failed) for one in ended]
        from scipy.stats import rankdata

        order = rankdata([one.score for one in alive])
        self.names = tuple(names)
        self.failure = {name: explained_share([one.values.get(name) for one in ended], failed) for name in names}
        self.score = {name: explained_share([one.values.get(name) for one in alive], order) for name in names}

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return plain values."""
        return {"failure": dict(self.failure), "score": dict(self.score)}

    def plot(self, ax: Any = None) -> SettingImportance:
        """Draw and return self.

        Args:
            ax: Matplotlib axes, or None for a new figure.
        """
        self.axes_ = new_figure(7.4, 1.8 + 0.5 * max(2, len(self.names))).subplots() if ax is None else ax
        self.figure_ = self.axes_.figure
        axes = self.axes_
        axes.set_title("What decides: share explained by one setting alone", loc="left", fontweight="bold")
        shares = np.array([[self.failure[name], self.score[name]] for name in self.names]).reshape(-1, 2)
        if not np.isfinite(shares).any():
            annotate_empty(axes, f"at least {MIN_TRIALS} trials that differ are needed")
            return self
        order = np.argsort(np.nansum(shares, axis=1))
        rows = np.arange(len(order))
        axes.barh(rows + 0.2, shares[order, 0], 0.38, color=NONFINITE_COLOUR, label="of failing or not")
        axes.barh(rows - 0.2, shares[order, 1], 0.38, color=BLUE, label="of the rank among successes")
        for row, pair in zip(rows, shares[order], strict=True):
            for offset, share in zip((0.2, -0.2), pair, strict=True):
                text = f"{share:.2f}" if np.isfinite(share) else "too few trials"
                axes.text(share if np.isfinite(share) else 0.0, row + offset, f" {text}", va="center", fontsize=8)
        axes.set_yticks(rows, [short_name(self.names[place]) for place in order])
        axes.set_xlim(0, 1.08)
        axes.set_xlabel("adjusted correlation ratio")
        axes.legend(loc="lower right", frameon=False)
        return self


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


GRID = 80  # points along each side on which the share of failures is estimated
WIDTH = 0.09  # standard deviation of the kernel, as a share of the side: about a tenth of the plane tells of a point
MIN_FATES = 3  # failures and successes each, from which on a frontier is drawn
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
        self._extent = (*_axis_ends(self.x), *_axis_ends(self.y))
        self.failure_share = self._estimate()

    def _estimate(self) -> np.ndarray:
        if min(self.failed.sum(), (~self.failed).sum()) < MIN_FATES:
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


def _axis_ends(places: np.ndarray) -> tuple[float, float]:
    if not len(places):
        return 0.0, 1.0
    low, high = float(places.min()), float(places.max())
    edge = 0.06 * (high - low) or 0.5
    return low - edge, high + edge
