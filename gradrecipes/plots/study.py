"""The runs of a comparative study, paired by seed, with the intervals of the means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradrecipes.core.analysis.intervals import Interval
from gradrecipes.plots.canvas import BLUE, GREY, NONFINITE_COLOUR, Picture, new_figure, short_name

ROW = 0.7  # inches of height for an arm
SPREAD = 0.24  # rows between the first and the last seed of an arm, either way from its middle
WIDE = 30.0  # largest value over smallest, from which on the axis is logarithmic


class StudyPlot(Picture):
    """Show every run of a study as a dot, runs of one seed joined by a line, and what is known of each mean.

    The arms stand one below the other. A thick bar is the 95% interval of an arm's mean, the stroke across it the
    mean. Lines that are parallel say that the arms differ in the same way with every seed. A run that diverged has no
    value: a cross at the worse edge stands for it, and breaks the line of its seed.

    Args:
        values: For each arm its runs: the objective by seed, NaN where the run diverged.
        intervals: For each arm the interval of the mean, or None.
        name: Of the objective.
        direction: `"min"` or `"max"`: where better is.

    Attributes:
        axes_, figure_: The matplotlib axes and its figure, after `plot`.

    Raises:
        ValueError: No arms, or an unknown direction.

    Example:
        >>> StudyPlot({"a": {0: 0.9, 1: 0.8}}, intervals={"a": None}, name="val_accuracy", direction="max").arms
        ['a']
    """

    def __init__(
        self,
        values: Mapping[str, Mapping[int, float]],
        *,
        intervals: Mapping[str, Interval | None],
        name: str,
        direction: str,
    ):
        if not values:
            raise ValueError("A study without arms cannot be drawn. Received: values={}.")
        if direction not in ("min", "max"):
            raise ValueError(f"`direction` must be 'min' or 'max'. Received: direction={direction!r}.")
        self.values = values
        self.intervals = intervals
        self.name = name
        self.direction = direction

    @property
    def arms(self) -> list[str]:
        """The names, in their order."""
        return list(self.values)

    def plot(self, ax: Any = None) -> StudyPlot:
        """Draw and return self.

        Args:
            ax: A matplotlib axes, or None for a new figure.
        """
        axes = new_figure(8.0, 1.4 + ROW * len(self.values)).subplots() if ax is None else ax
        self.axes_, self.figure_ = axes, axes.figure
        seeds = sorted({seed for runs in self.values.values() for seed in runs})
        middle = (len(seeds) - 1) / 2
        shift = {seed: (place - middle) / max(middle, 1) * SPREAD for place, seed in enumerate(seeds)}
        self._scale(axes)
        self._draw_seeds(axes, seeds, shift)
        self._draw_means(axes)
        self._draw_lost(axes, shift)
        axes.set_yticks(range(len(self.values)), [short_name(arm) for arm in self.arms], parse_math=False)
        axes.set_ylim(len(self.values) - 0.5, -0.5)
        better = "larger" if self.direction == "max" else "smaller"
        axes.set_xlabel(f"{self.name} ({better} is better)")
        axes.set_title(f"Every run by arm, {len(seeds)} seeds", loc="left", fontweight="bold")
        axes.grid(axis="x", alpha=0.25)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            axes.legend(
                handles,
                labels,
                loc="upper right",
                bbox_to_anchor=(1.0, -0.14 - 0.2 / len(self.values)),
                ncols=4,
                frameon=False,
                borderaxespad=0.0,
            )
        return self

    def _finite(self) -> np.ndarray:
        values = [value for runs in self.values.values() for value in runs.values()]
        return np.array([value for value in values if math.isfinite(value)])

    def _scale(self, axes: Any) -> None:
        finite = self._finite()
        if len(finite) and finite.min() > 0 and finite.max() / finite.min() > WIDE:
            axes.set_xscale("log")

    def _draw_seeds(self, axes: Any, seeds: list[int], shift: Mapping[int, float]) -> None:
        rows = np.arange(len(self.values))
        for number, seed in enumerate(seeds):
            line = np.array([runs.get(seed, math.nan) for runs in self.values.values()], float)
            line[~np.isfinite(line)] = np.nan
            label = {"label": "runs of one seed"} if number == 0 else {}
            axes.plot(line, rows + shift[seed], "-", color=GREY, linewidth=0.8, alpha=0.45, zorder=1)
            axes.plot(line, rows + shift[seed], "o", color=BLUE, markersize=5, alpha=0.75, zorder=3, mew=0, **label)

    def _draw_means(self, axes: Any) -> None:
        named = False
        for row, (arm, runs) in enumerate(self.values.items()):
            finite = [value for value in runs.values() if math.isfinite(value)]
            if not finite:
                continue
            mean, interval = float(np.mean(finite)), self.intervals.get(arm)
            axes.plot(
                [mean, mean],
                [row - 0.3, row + 0.3],
                color="black",
                linewidth=2,
                zorder=4,
                label=None if named else "mean",
            )
            if interval is not None and math.isfinite(interval.width):
                axes.plot(
                    [interval.low, interval.high],
                    [row, row],
                    color="black",
                    linewidth=7,
                    alpha=0.22,
                    zorder=2,
                    solid_capstyle="butt",
                    label=None if named else "95% interval of the mean",
                )
            named = True

    def _draw_lost(self, axes: Any, shift: Mapping[int, float]) -> None:
        lost = [
            row + shift[seed]
            for row, runs in enumerate(self.values.values())
            for seed, value in runs.items()
            if not math.isfinite(value)
        ]
        if not lost:
            return
        if not len(self._finite()):
            axes.set_xticks([])
        edge = 0.015 if self.direction == "max" else 0.985
        axes.plot(
            np.full(len(lost), edge),
            lost,
            "x",
            color=NONFINITE_COLOUR,
            markersize=7,
            mew=1.8,
            zorder=5,
            transform=axes.get_yaxis_transform(),
            clip_on=False,
            label="diverged",
        )
