"""Which normalization a net needs: by whether it has skips, by its batch, by what it normalizes."""

from __future__ import annotations

from dataclasses import dataclass

import keras

from gradrecipes.core.signal_theory import batch_normalized_factor

# The error of a ResNet-50 with BatchNorm is 23.7% at 16 images a batch, 24.8% at 8, 27.3% at 4, 34.7% at 2;
# with GroupNorm 24.1% at each: arXiv 1803.08494, table 2.
SMALLEST_BATCH = 16
LARGEST_GROUP_COUNT = 32  # groups of GroupNorm; the same paper's choice


@dataclass(frozen=True)
class NormalizationChoice:
    """The kind of normalization that the rule names, with its reason.

    Attributes:
        name: Name of the class in `keras.layers`.
        reason: Why this one, in a sentence.
        groups: Groups of a GroupNormalization, else None.
    """

    name: str
    reason: str
    groups: int | None = None

    def make_layer(self) -> keras.layers.Layer:
        """Return a new Keras layer."""
        arguments = {} if self.groups is None else {"groups": self.groups}
        return getattr(keras.layers, self.name)(**arguments)


def choose_normalization(*, residual: bool, batch_size: int, channels: int | None = None) -> NormalizationChoice:
    """Say which normalization suits a net, and why.

    BatchNormalization makes a *plain* net explode: at initialization the gradient grows by 1.21 for each ReLU
    layer, whatever the weights' variance. Residual connections tame it, for there it shrinks the branches
    against the identity path. And it needs batches that estimate a mean.

    Args:
        residual: Whether connections skip the normalized layers.
        batch_size: Samples in a training batch on one device, at least 1.
        channels: Channels of a convolutional net; None for any other.

    Raises:
        ValueError: A number below 1.

    Example:
        >>> choose_normalization(residual=False, batch_size=64).name
        'LayerNormalization'
        >>> choose_normalization(residual=True, batch_size=64).name
        'BatchNormalization'

    References:
        Yang et al. 2019, arXiv 1902.08129 (the explosion); De, Smith 2020, arXiv 2002.10444 (residual nets);
        Wu, He 2018, arXiv 1803.08494 (small batches).
    """
    for name, value in (("batch_size", batch_size), ("channels", channels)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"`{name}` must be a whole number, at least 1. Received: {name}={value!r}.")
    if residual and batch_size >= SMALLEST_BATCH:
        return NormalizationChoice(
            "BatchNormalization",
            f"skips keep its gradient in bounds, and {batch_size} samples are enough to estimate a mean",
        )
    if residual:
        why = f"a batch of {batch_size} is too small to estimate a mean (below {SMALLEST_BATCH})"
    else:
        growth = batch_normalized_factor("relu")
        why = f"without skips, BatchNormalization multiplies the gradient by {growth:.2f} in each ReLU layer"
    if channels is None:
        return NormalizationChoice("LayerNormalization", f"{why}; it looks at one sample at a time")
    groups = max(count for count in range(1, LARGEST_GROUP_COUNT + 1) if channels % count == 0)
    return NormalizationChoice("GroupNormalization", f"{why}; it looks at one image at a time", groups)


def normalization(*, residual: bool, batch_size: int, channels: int | None = None) -> keras.layers.Layer:
    """Return a new Keras normalization layer of the kind that `choose_normalization` names.

    Args:
        residual: Whether connections skip the normalized layers.
        batch_size: Samples in a training batch on one device.
        channels: Channels of a convolutional net; None for any other.

    Example:
        >>> type(normalization(residual=True, batch_size=4, channels=48)).__name__
        'GroupNormalization'
    """
    return choose_normalization(residual=residual, batch_size=batch_size, channels=channels).make_layer()
