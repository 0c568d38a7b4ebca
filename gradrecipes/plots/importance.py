"""Which settings of a search decide whether a trial survives, and how well it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradrecipes.core.analysis.importance import FEWEST, explained_share
from gradrecipes.core.analysis.search_trial import SearchTrial
from gradrecipes.plots.canvas import BLUE, NONFINITE_COLOUR, Picture, annotate_empty, new_figure, short_name


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
            annotate_empty(axes, f"at least {FEWEST} trials that differ are needed")
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
