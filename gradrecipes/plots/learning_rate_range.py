"""The curve of a learning-rate range test, with the rates that it suggests."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradrecipes.core.analysis.range_test import Suggestions, has_diverged, read_range, suggest_rates
from gradrecipes.plots.canvas import BLUE, GREY, ORANGE, VERMILLION, Picture, annotate_empty, new_figure

HIGHEST_SHOWN = 1.5  # of the span from the lowest smoothed loss to the first: above it the curve only diverges
MARKERS = {"valley": ("o", VERMILLION), "steepest": ("D", ORANGE), "minimum / 10": ("s", "#009e73")}  # Okabe and Ito


class LearningRateRange(Picture):
    """Show how the loss of single batches went while the learning rate rose, and which rates suit the training.

    Args:
        rates: float `[batches]`, learning rate of each batch.
        losses: float `[batches]`, its loss, that of the batch alone.

    Attributes:
        valley, steepest, minimum_tenth: The suggestions, or None; see `core.analysis.range_test.Suggestions`.
        diverged_at: The rate at which the test was stopped because the loss exploded, or None.
        axes_, figure_: The matplotlib axes and figure, after `plot`.

    Example:
        >>> rates = np.geomspace(1e-5, 1, 60)
        >>> curve = LearningRateRange(rates, 2 - np.exp(-np.log10(rates / 0.01) ** 2))
        >>> round(curve.minimum_tenth, 3)
        0.001
    """

    def __init__(self, rates: Any, losses: Any):
        self.rates = np.asarray(rates, np.float64)
        self.losses = np.asarray(losses, np.float64)
        if self.rates.shape != self.losses.shape or self.rates.ndim != 1:
            raise ValueError(
                "`rates` and `losses` must have one value for each batch. "
                f"Received the shapes {self.rates.shape} and {self.losses.shape}."
            )
        self.suggestions: Suggestions = suggest_rates(self.rates, self.losses)
        self.diverged_at = float(self.rates[-1]) if has_diverged(self.losses) else None

    @property
    def valley(self) -> float | None:
        """Where a third of the largest fall of the loss is done: the rate to start from."""
        return self.suggestions.valley

    @property
    def steepest(self) -> float | None:
        """Where the loss falls fastest: a bolder rate."""
        return self.suggestions.steepest

    @property
    def minimum_tenth(self) -> float | None:
        """A tenth of the rate with the lowest loss."""
        return self.suggestions.minimum_tenth

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **self.suggestions._asdict(),
            "diverged_at": self.diverged_at,
            "rates": self.rates.tolist(),
            "losses": self.losses.tolist(),
        }

    def __str__(self) -> str:
        if self.valley is None:
            return f"No rate from {self.rates[0]:.3g} to {self.rates[-1]:.3g} lowered the loss clearly."
        text = f"Start with a learning rate near {self.valley:.2g} (valley)"
        text += f"; steepest fall at {self.steepest:.2g}, a tenth of the best {self.minimum_tenth:.2g}."
        return text + (f" Diverged at {self.diverged_at:.2g}." if self.diverged_at else "")

    def plot(self, ax: Any = None) -> LearningRateRange:
        """Draw and return self.

        Args:
            ax: Matplotlib axes, or None for a new figure.
        """
        self.axes_ = new_figure(8.0, 4.6).subplots() if ax is None else ax
        self.figure_ = self.axes_.figure
        axes = self.axes_
        axes.set_title("Loss while the learning rate rises", loc="left", fontweight="bold")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss of the batch")
        finite = np.isfinite(self.losses)
        if not finite.any():
            annotate_empty(axes, "no batch had a finite loss")
            return self
        axes.set_xscale("log")
        axes.grid(alpha=0.25)
        axes.plot(self.rates[finite], self.losses[finite], ".", color=GREY, markersize=4, alpha=0.6, label="one batch")
        rates, smooth = read_range(self.rates, self.losses)
        if len(rates):
            axes.plot(rates, smooth, color=BLUE, linewidth=2, label="smoothed")
            axes.set_ylim(*self._limits(smooth))
        self._mark(axes, rates, smooth)
        if self.diverged_at is not None:
            axes.axvline(self.diverged_at, color="black", linestyle=":", label=f"diverged at {self.diverged_at:.2g}")
        axes.legend(frameon=False, loc="lower left")
        return self

    def _mark(self, axes: Any, rates: np.ndarray, smooth: np.ndarray) -> None:
        for (name, (marker, colour)), rate in zip(MARKERS.items(), self.suggestions, strict=True):
            if rate is not None:
                height = float(np.interp(np.log(rate), np.log(rates), smooth))
                axes.plot(rate, height, marker, color=colour, markersize=10, zorder=3, label=f"{name}: {rate:.2g}")

    def _limits(self, smooth: np.ndarray) -> tuple[float, float]:
        low, start = float(smooth.min()), float(smooth[0])
        span = max(start - low, 0.05 * abs(start), 1e-12)
        return low - 0.35 * span, low + HIGHEST_SHOWN * span
