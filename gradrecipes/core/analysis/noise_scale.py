"""How much of a batch's gradient is noise, and what that says of the batch size.

With norms g_b of the gradient at batch size B_b and g_s at B_s, unbiased estimates are

    |G|^2 = (B_b |g_b|^2 - B_s |g_s|^2) / (B_b - B_s)      the squared norm of the true gradient
    S = (|g_s|^2 - |g_b|^2) / (1/B_s - 1/B_b)              the trace of the covariance of a sample's gradient

and the noise scale is S / |G|^2, the batch size at which noise and signal are equal. Both are means over many
batches before they are divided: the mean of ratios is biased without bound.

References:
    McCandlish et al. 2018, arXiv 1812.06162, section 2.2 and appendix A.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_NOISE_RATIO = 8.0  # batch over noise scale, or the reverse; at it, progress is a ninth short of proportional


def estimate_signal_and_noise(
    large_square: Any, small_square: Any, *, large_batch: int, small_batch: int
) -> tuple[Any, Any]:
    """Return |G|^2 and S, unbiased but noisy, of one batch or elementwise of many.

    Args:
        large_square: Squared norm of the gradient of the whole batch.
        small_square: Mean of the squared norms of the gradients of its parts.
        large_batch: Samples in the whole batch.
        small_batch: Samples in each part, fewer than that.

    Raises:
        ValueError: Batch sizes out of order.

    Example:
        >>> estimate_signal_and_noise(2.0, 5.0, large_batch=4, small_batch=1)
        (1.0, 4.0)
    """
    if not 1 <= small_batch < large_batch:
        raise ValueError(
            "The small batch must be smaller than the large one, and hold a sample. "
            f"Received: large_batch={large_batch}, small_batch={small_batch}."
        )
    signal = (large_batch * large_square - small_batch * small_square) / (large_batch - small_batch)
    noise = (small_square - large_square) / (1.0 / small_batch - 1.0 / large_batch)
    return signal, noise


@dataclass(frozen=True)
class NoiseScaleEstimate:
    """The noise scale of one state of a model, with its interval.

    Attributes:
        noise_scale: Samples; infinite where the signal drowns.
        low, high: Ends of the 95% interval, by Fieller's rule for a ratio of means; `high` is infinite where the
            signal cannot be told from zero.
        signal: |G|^2.
        noise: S.
    """

    noise_scale: float
    low: float
    high: float
    signal: float
    noise: float


def estimate_noise_scale(signals: Any, noises: Any) -> NoiseScaleEstimate:
    """Return the ratio of the means over batches of one and the same model.

    Args:
        signals: float `[batches]`, |G|^2 of each batch.
        noises: float `[batches]`, S of each batch.

    Raises:
        ValueError: Fewer than two batches, or values that are not finite.
    """
    signals, noises = np.asarray(signals, np.float64), np.asarray(noises, np.float64)
    if signals.shape != noises.shape or signals.ndim != 1 or len(signals) < 2:
        raise ValueError(
            "`signals` and `noises` must have one value for each batch, of at least two. "
            f"Received the shapes {signals.shape} and {noises.shape}."
        )
    if not (np.isfinite(signals).all() and np.isfinite(noises).all()):
        raise ValueError(
            "The gradient of a batch is not finite: there is no noise scale. gradrecipes.diagnose says why."
        )
    signal, noise = float(signals.mean()), max(float(noises.mean()), 0.0)
    ratio = noise / signal if signal > 0 else math.inf
    return NoiseScaleEstimate(ratio, *_fieller(noises, signals), signal, noise)


def advise_batch_size(estimate: NoiseScaleEstimate, batch_size: int) -> str:
    """Return in words what the noise scale says of a batch size."""
    scale, low, high = (_samples(value) for value in (estimate.noise_scale, estimate.low, estimate.high))
    text = f"Noise scale {scale} samples (95%: {low} to {high})."
    if estimate.high == math.inf and estimate.low * MAX_NOISE_RATIO <= batch_size:
        return f"{text} The interval is too wide for advice on a batch of {batch_size}: measure more batches."
    if estimate.low > MAX_NOISE_RATIO * batch_size:
        return (
            f"{text} A batch of {batch_size} is far below it: its gradient is nearly all noise, and a batch twice as "
            "large, with a rate up to twice as large, takes about half the steps. "
            f"Room up to about {_samples(estimate.low)}."
        )
    if estimate.high * MAX_NOISE_RATIO < batch_size:
        return (
            f"{text} A batch of {batch_size} is far above it: most of its samples repeat what others say. A batch of "
            f"about {_samples(max(estimate.high, 1.0))} takes a few more steps, each at a fraction of the work."
        )
    efficiency = 1.0 / (1.0 + batch_size / estimate.noise_scale) if estimate.noise_scale > 0 else 0.0
    return (
        f"{text} A batch of {batch_size} suits it: each sample does {efficiency:.0%} of the work it would do in a "
        "batch of its own."
    )


def _fieller(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float]:
    from scipy.stats import t

    covariance = np.cov(numerators, denominators) / len(numerators)
    top, bottom = numerators.mean(), denominators.mean()
    reach = float(t.ppf(0.975, len(numerators) - 1))
    # The ratios r with (top - r * bottom)^2 <= reach^2 * variance of (top - r * bottom).
    a = bottom**2 - reach**2 * covariance[1, 1]
    b = top * bottom - reach**2 * covariance[0, 1]
    c = top**2 - reach**2 * covariance[0, 0]
    if a > 0 and bottom > 0 and b**2 >= a * c:
        root = math.sqrt(b**2 - a * c)
        return max(0.0, float((b - root) / a)), max(0.0, float((b + root) / a))
    # The signal may be zero: no upper end.
    least_noise = top - reach * math.sqrt(covariance[0, 0])
    most_signal = bottom + reach * math.sqrt(covariance[1, 1])
    return float(max(least_noise, 0.0) / most_signal) if most_signal > 0 else 0.0, math.inf


def _samples(value: float) -> str:
    return "∞" if value == math.inf else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
