"""What batch size the noise of the gradient asks for, as a picture and in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

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
