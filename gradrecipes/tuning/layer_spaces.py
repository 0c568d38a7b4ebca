"""What to train: activation, initializer, normalization, depth, width, skips, and a dense net of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from gradrecipes.core.arguments import require_choices, require_whole_range
from gradrecipes.initializers import preset
from gradrecipes.layers import PreNormResidual, ReZeroResidual

ACTIVATIONS = ("relu", "gelu", "silu", "elu", "tanh")
KINDS = ("he", "orthogonal", "glorot")
NORMALIZATIONS = ("none", "layer", "rms", "batch")
SKIPS = ("none", "pre_norm", "rezero")


def activation(hp: Any, *, among: Sequence[str] = ACTIVATIONS) -> str:
    """Choose the activation of the hidden layers, among those whose gain theory knows.

    So that `initializer` can scale the weights for it: an activation with the initializer of another explodes or
    vanishes by a constant factor a layer, which a search would blame on the activation.

    Args:
        hp: The `hp` of the build.
        among: Names of Keras activations.
    """
    require_choices("among", among, ACTIVATIONS)
    return hp.Choice("activation", list(among))


def initializer(
    hp: Any, activation: str | None, *, among: Sequence[str] = KINDS
) -> Callable[[], keras.initializers.Initializer]:
    """Choose how kernels are drawn, and return what makes an initializer with the gain of the activation.

    The variance is not searched: signal theory knows it. The kinds that are left differ in what they keep exactly:
    He the signal, orthogonal every length, Glorot a compromise between both directions.

    Args:
        hp: The `hp` of the build.
        activation: Of the hidden layers.
        among: Some of `"he"`, `"orthogonal"`, `"glorot"`.

    Returns:
        A function that makes a new initializer: one for each layer.
    """
    require_choices("among", among, KINDS)
    kind = hp.Choice("initializer", list(among))
    return lambda: preset(activation, kind=kind)


def normalization(
    hp: Any, *, residual: bool, among: Sequence[str] | None = None
) -> Callable[[], keras.layers.Layer] | None:
    """Choose a normalization, and return what makes such a layer, or None for none.

    BatchNormalization is among them only where connections skip it: in a plain net it multiplies the gradient by 1.21
    in every ReLU layer. RMS needs Keras 3.9 or newer and is left out below that.

    Args:
        hp: The `hp` of the build.
        residual: Whether connections skip the normalized layers.
        among: Some of `"none"`, `"layer"`, `"rms"`, `"batch"`, instead of those.

    References:
        Yang et al. 2019, arXiv 1902.08129.
    """
    kinds = {
        "layer": keras.layers.LayerNormalization,
        "rms": getattr(keras.layers, "RMSNormalization", None),
        "batch": keras.layers.BatchNormalization,
    }
    if among is None:
        among = [one for one in NORMALIZATIONS if (one != "batch" or residual) and kinds.get(one, True) is not None]
    require_choices("among", among, NORMALIZATIONS)
    return kinds.get(hp.Choice("normalization", list(among)))


def depth(hp: Any, *, lowest: int = 1, highest: int = 8) -> int:
    """Choose the number of layers or blocks, from few to as many as plain nets of good weights still train.

    Args:
        hp: The `hp` of the build.
        lowest: Fewest.
        highest: Most; with skips more pay.
    """
    require_whole_range(lowest, highest)
    return hp.Int("depth", lowest, highest, default=max(lowest, min(highest, 2)))


def width(hp: Any, *, lowest: int = 32, highest: int = 256) -> int:
    """Choose the units of a layer, each choice twice the one before: what a net can do grows with its order.

    Args:
        hp: The `hp` of the build.
        lowest: Fewest.
        highest: Most.
    """
    require_whole_range(lowest, highest)
    widths = [lowest << shift for shift in range(64) if lowest << shift <= highest]
    return hp.Choice("width", widths, default=widths[len(widths) // 2], ordered=True)


def skips(hp: Any, *, among: Sequence[str] = SKIPS) -> str:
    """Choose whether connections skip the layers, and in which of two blocks that do not explode with depth.

    Plain residual blocks are left out: with He weights each multiplies the signal by √2.

    Args:
        hp: The `hp` of the build.
        among: Some of `"none"`, `"pre_norm"` (`gr.layers.PreNormResidual`), `"rezero"` (`gr.layers.ReZeroResidual`).
    """
    require_choices("among", among, SKIPS)
    return hp.Choice("skips", list(among))


def dense_layers(hp: Any, inputs: Any, *, highest_depth: int = 8, highest_width: int = 256) -> Any:
    """Put hidden dense layers on a tensor, with depth, width, activation, initializer, skips and normalization chosen.

    Args:
        hp: The `hp` of the build.
        inputs: A Keras tensor `[batch, features]`.
        highest_depth: Most layers.
        highest_width: Most units.

    Returns:
        A Keras tensor `[batch, width]`.

    Example:
        >>> from keras_tuner import HyperParameters
        >>> hp, inputs = HyperParameters(), keras.Input((64,))
        >>> outputs = keras.layers.Dense(10)(dense_layers(hp, inputs))
        >>> sorted(hp.values)
        ['activation', 'depth', 'initializer', 'normalization', 'skips', 'width']
    """
    chosen = activation(hp)
    kernel = initializer(hp, chosen)
    units = width(hp, lowest=min(32, highest_width), highest=highest_width)
    skip = skips(hp)
    normalize = normalization(hp, residual=False)

    def dense() -> keras.layers.Layer:
        return keras.layers.Dense(units, kernel_initializer=kernel())

    x = inputs
    for layer in range(depth(hp, highest=highest_depth)):
        if skip == "none" or layer == 0:  # the first brings the inputs to the width of the others
            x = dense()(x)
            x = x if normalize is None else normalize()(x)
            x = keras.layers.Activation(chosen)(x)
        elif skip == "pre_norm":
            layer_normalization = keras.layers.LayerNormalization if normalize is None else normalize
            x = PreNormResidual([dense(), keras.layers.Activation(chosen)], normalization=layer_normalization())(x)
        else:
            x = ReZeroResidual([dense(), keras.layers.Activation(chosen)])(x)
    return x
