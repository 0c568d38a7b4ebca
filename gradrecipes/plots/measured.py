"""Pictures of what probes measured: the gradient noise scale and the learning-rate range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradrecipes.core.analysis.learning_rates import Suggestions, has_diverged, read_range, suggest_rates
from gradrecipes.core.analysis.noise_scale import NoiseScaleEstimate, advise_batch_size, estimate_noise_scale
from gradrecipes.plots.canvas import BLUE, GREY, ORANGE, VERMILLION, Picture, annotate_empty, new_figure

REACH = 64.0  # factors on either side of the noise scale and the batch that are drawn


class NoiseScale(Picture):
    """Show what progress a step and a sample make at each batch size, for a measured noise scale B.

    At batch size b a step makes 1/(1 + B/b) of the progress that the true gradient would make, and a sample
    1/(1 + b/B) of what it would in a batch of its own. They cross at B.

    Args:
        signals: float `[batches]`, estimates of the squared norm of the true gradient.
        noises: float `[batches]`, estimates of the trace of the covariance of a sample's gradient.
        batch_size: The batch size that is judged.

    Attributes:
        estimate: Noise scale, interval, and what they are made of.
        axes_, figure_: The matplotlib axes and figure, after `plot`.

    Example:
        >>> found = NoiseScale([1.0, 1.2, 0.8], [300.0, 320.0, 310.0], batch_size=16)
        >>> round(found.noise_scale)
        310
    """

    def __init__(self, signals: Any, noises: Any, *, batch_size: int):
        self.signals = np.asarray(signals, np.float64)
        self.noises = np.asarray(noises, np.float64)
        self.batch_size = batch_size
        self.estimate: NoiseScaleEstimate = estimate_noise_scale(self.signals, self.noises)

    @property
    def noise_scale(self) -> float:
        """Samples: the batch size at which signal and noise are equal."""
        return self.estimate.noise_scale

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of its 95% interval, samples."""
        return self.estimate.low, self.estimate.high

    @property
    def advice(self) -> str:
        """What it says of the batch size, in words."""
        return advise_batch_size(self.estimate, self.batch_size)

    def __str__(self) -> str:
        return self.advice

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "noise_scale": self.noise_scale,
            "interval": list(self.interval),
            "signal": self.estimate.signal,
            "noise": self.estimate.noise,
            "batch_size": self.batch_size,
            "advice": self.advice,
        }

    def plot(self, ax: Any = None) -> NoiseScale:
        """Draw and return self.

        Args:
            ax: Matplotlib axes, or None for a new figure.
        """
        self.axes_ = new_figure(8.0, 4.6).subplots() if ax is None else ax
        self.figure_ = self.axes_.figure
        axes, scale = self.axes_, self.noise_scale
        axes.set_title("Batch size and the noise of the gradient", loc="left", fontweight="bold")
        axes.set_xlabel("batch size (samples)")
        axes.set_ylabel("progress, share of the most possible")
        if not 0 < scale < math.inf:
            annotate_empty(axes, "no noise was found" if scale == 0 else "the signal drowns in the noise")
            return self
        sizes = np.geomspace(max(1.0, min(scale, self.batch_size) / REACH), max(scale, self.batch_size) * REACH, 300)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(alpha=0.25)
        axes.set_xlim(sizes[0], sizes[-1])
        axes.set_ylim(0, 1.05)
        axes.plot(sizes, 1 / (1 + scale / sizes), color=BLUE, linewidth=2, label="of a step")
        axes.plot(sizes, 1 / (1 + sizes / scale), color=ORANGE, linewidth=2, linestyle="--", label="of a sample")
        low, high = np.clip(self.interval, sizes[0], sizes[-1])
        axes.axvspan(low, high, color=GREY, alpha=0.2, label="95% interval")
        axes.axvline(scale, color=GREY, label=f"noise scale: {scale:,.3g}")
        axes.axvline(self.batch_size, color=VERMILLION, linestyle=":", linewidth=2, label=f"batch: {self.batch_size}")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return self


HIGHEST_SHOWN = 1.5  # of the span from the lowest smoothed loss to the first: above it the curve only diverges
MARKERS = {"valley": ("o", VERMILLION), "steepest": ("D", ORANGE), "minimum / 10": ("s", "#009e73")}  # Okabe and Ito


class LearningRateRange(Picture):
    """Show how the loss of single batches went while the learning rate rose, and which rates suit the training.

    Args:
        rates: float `[batches]`, learning rate of each batch.
        losses: float `[batches]`, its loss, that of the batch alone.

    Attributes:
        valley, steepest, minimum_tenth: The suggestions, or None; see `core.analysis.learning_rates.Suggestions`.
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
