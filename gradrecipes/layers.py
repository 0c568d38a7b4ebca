"""Layers that keep deep nets trainable: three residual blocks, and a normalization chosen by rule.

The normalizations themselves are Keras' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from gradrecipes.core.arguments import require_whole
from gradrecipes.core.signal_theory import batch_normalized_factor, fixup_gain

__all__ = [
    "FixupResidual",
    "NormalizationChoice",
    "PreNormResidual",
    "ReZeroResidual",
    "choose_normalization",
    "normalization",
]

# The error of a ResNet-50 with BatchNorm is 23.7% at 16 images a batch, 24.8% at 8, 27.3% at 4, 34.7% at 2;
# with GroupNorm 24.1% at each: arXiv 1803.08494, table 2.
SMALLEST_BATCH = 16
LARGEST_GROUP_COUNT = 32  # groups of GroupNorm; the same paper's choice


def as_branch(branch: Any, owner: str) -> keras.layers.Layer:
    """Return one layer for a layer or a sequence of layers.

    Raises:
        TypeError: Something else came.
    """
    if isinstance(branch, keras.layers.Layer):
        return branch
    if isinstance(branch, Sequence) and branch and all(isinstance(layer, keras.layers.Layer) for layer in branch):
        return keras.Sequential(list(branch))
    raise TypeError(
        f"`branch` of {owner} must be a Keras layer or a list of them. Received: {branch!r}. "
        f'For example: {owner}([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(64)]).'
    )


def require_layer(name: str, layer: Any, owner: str) -> None:
    """Refuse what is neither a Keras layer nor None."""
    if layer is not None and not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"`{name}` of {owner} must be a Keras layer or None. Received: {name}={layer!r}.")


def build_shortcut(
    shortcut: keras.layers.Layer | None, input_shape: Sequence[int | None], branch_shape: Sequence[int | None]
) -> None:
    """Build the shortcut, and see that both ways end in one shape.

    Raises:
        ValueError: They do not, with the remedy.
    """
    shape = tuple(input_shape)
    if shortcut is not None:
        if not shortcut.built:
            shortcut.build(shape)
        shape = tuple(shortcut.compute_output_shape(shape))
    if shape == tuple(branch_shape):
        return
    way = "the input" if shortcut is None else "the shortcut"
    raise ValueError(
        f"A residual block adds its branch to {way}: both need one shape. Received: {way} {shape}, "
        f"the branch {tuple(branch_shape)}. Let the branch end in the shape of its input, or pass `shortcut=`, a layer "
        "that brings the input to the new shape: Dense(units, use_bias=False), or Conv2D(filters, 1, strides=...)."
    )


def serialized(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configs of named layers."""
    return {name: keras.saving.serialize_keras_object(part) for name, part in parts.items()}


def deserialized(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the config with the named layers made from theirs."""
    made = {name: keras.saving.deserialize_keras_object(config[name]) for name in names}
    return {**config, **made}


@keras.saving.register_keras_serializable(package="gradrecipes")
class ReZeroResidual(keras.layers.Layer):
    r"""Train hundreds of blocks without normalization: y = x + α·F(x), with one learned α, at first 0.

    Whatever the depth, the net starts as the identity, its signal and its gradient keep their size, and each
    branch enters as fast as it proves useful. Weight decay on α would hold the branches back; leave it out with
    `optimizer.exclude_from_weight_decay(var_names=["residual_weight"])`.

    Args:
        branch: F, a Keras layer or a list of them, ending in the shape of its input.
        shortcut: A layer that brings x to the shape of the branch where they differ.

    Example:
        >>> block = ReZeroResidual([keras.layers.Dense(32, activation="relu"), keras.layers.Dense(8)])
        >>> x = np.ones((4, 8), "float32")
        >>> bool(np.all(block(x) == x))
        True

    References:
        Bachlechner et al. 2020, arXiv 2003.04887; SkipInit: De, Smith 2020, arXiv 2002.10444.
    """

    def __init__(
        self,
        branch: keras.layers.Layer | Sequence[keras.layers.Layer],
        *,
        shortcut: keras.layers.Layer | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        require_layer("shortcut", shortcut, "ReZeroResidual")
        self.branch = as_branch(branch, "ReZeroResidual")
        self.shortcut = shortcut
        self.supports_masking = True

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Build the branch, the shortcut and α."""
        if not self.branch.built:
            self.branch.build(input_shape)
        build_shortcut(self.shortcut, input_shape, self.branch.compute_output_shape(input_shape))
        self.residual_weight = self.add_weight(shape=(), initializer="zeros", name="residual_weight")

    def call(self, inputs: Any) -> Any:
        """Return x + α·F(x)."""
        straight = inputs if self.shortcut is None else self.shortcut(inputs)
        return straight + self.residual_weight * self.branch(inputs)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the shape of the branch's output."""
        return tuple(self.branch.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        parts = {"branch": self.branch, "shortcut": self.shortcut}
        return {**super().get_config(), **serialized(parts)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ReZeroResidual:
        """Make the block from what `get_config` returned."""
        return cls(**deserialized(config, "branch", "shortcut"))


@keras.saving.register_keras_serializable(package="gradrecipes")
class PreNormResidual(keras.layers.Layer):
    r"""Let a deep net train by adding what a branch makes of the normalized input: y = x + F(norm(x)).

    The gradient reaches every block along the identity path, undiminished and unamplified. Un-normalized blocks
    with He initialization grow by √2 each and more; normalized, l blocks add l terms of one size, which is √l in all.

    Args:
        branch: F, a Keras layer or a list of them, ending in the shape of its input.
        normalization: A Keras layer. Defaults to `keras.layers.LayerNormalization()`; `gr.layers.normalization`
            chooses one by rule.
        shortcut: A layer that brings x to the shape of the branch where they differ.

    Example:
        >>> block = PreNormResidual([keras.layers.Dense(32, activation="relu"), keras.layers.Dense(8)])
        >>> block(np.ones((4, 8), "float32")).shape
        TensorShape([4, 8])

    References:
        He et al. 2016, arXiv 1603.05027; Xiong et al. 2020, arXiv 2002.04745.
    """

    def __init__(
        self,
        branch: keras.layers.Layer | Sequence[keras.layers.Layer],
        *,
        normalization: keras.layers.Layer | None = None,
        shortcut: keras.layers.Layer | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        require_layer("normalization", normalization, "PreNormResidual")
        require_layer("shortcut", shortcut, "PreNormResidual")
        self.branch = as_branch(branch, "PreNormResidual")
        self.normalization = normalization or keras.layers.LayerNormalization(dtype=self.dtype_policy)
        self.shortcut = shortcut
        self.supports_masking = True

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Build the branch, the normalization and the shortcut."""
        for layer in (self.normalization, self.branch):
            if not layer.built:
                layer.build(input_shape)
        build_shortcut(self.shortcut, input_shape, self.branch.compute_output_shape(input_shape))

    def call(self, inputs: Any) -> Any:
        """Return x + F(norm(x))."""
        straight = inputs if self.shortcut is None else self.shortcut(inputs)
        return straight + self.branch(self.normalization(inputs))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the shape of the branch's output."""
        return tuple(self.branch.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        parts = {"branch": self.branch, "normalization": self.normalization, "shortcut": self.shortcut}
        return {**super().get_config(), **serialized(parts)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PreNormResidual:
        """Make the block from what `get_config` returned."""
        return cls(**deserialized(config, "branch", "normalization", "shortcut"))


@keras.saving.register_keras_serializable(package="gradrecipes")
class FixupResidual(keras.layers.Layer):
    r"""Train very deep residual nets without normalization, at the price of a few scalars.

    y = x + a·F(x) + b, where the weight layers of F start with He variance times L^(-1/(m-1)), but the last of
    them at zero; a scalar bias stands before every weight layer and every activation, and a, at first 1, is
    learned. All L branches together then change the function, in one update, about as much as a shallow net's.

    The head of the net should start at zero as well: `Dense(10, kernel_initializer="zeros")`.

    Args:
        layers: The m weight layers of the branch, at least 2: Dense or convolutions, not built yet, with neither
            bias nor activation. The block sets their `kernel_initializer`.
        blocks: L, residual blocks in the whole net.
        activation: Between the weight layers, a Keras name or function.
        shortcut: A layer that brings x to the shape of the branch where they differ.

    Raises:
        ValueError: A layer that is built already, or has a bias or an activation.

    Example:
        >>> block = FixupResidual([keras.layers.Dense(32, use_bias=False), keras.layers.Dense(8, use_bias=False)],
        ...                       blocks=100)
        >>> x = np.ones((4, 8), "float32")
        >>> bool(np.all(block(x) == x))
        True

    References:
        Zhang, Dauphin, Ma 2019, arXiv 1901.09321.
    """

    def __init__(
        self,
        layers: Sequence[keras.layers.Layer],
        *,
        blocks: int,
        activation: Any = "relu",
        shortcut: keras.layers.Layer | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        layers = list(layers)
        for layer in layers:
            _require_bare(layer)
        require_layer("shortcut", shortcut, "FixupResidual")
        gain = fixup_gain(blocks, len(layers))
        for layer in layers[:-1]:
            layer.kernel_initializer = keras.initializers.VarianceScaling(
                gain**2, mode="fan_in", distribution="untruncated_normal"
            )
        layers[-1].kernel_initializer = keras.initializers.Zeros()
        self.layers = layers
        self.blocks = blocks
        self.activation = keras.activations.get(activation)
        self.shortcut = shortcut
        self.supports_masking = True

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Build the weight layers, the shortcut and the scalars."""
        shape = input_shape
        for layer in self.layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        build_shortcut(self.shortcut, input_shape, shape)
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.biases = [
            self.add_weight(shape=(), initializer="zeros", name=f"bias_{number}")
            for number in range(2 * len(self.layers))
        ]

    def call(self, inputs: Any) -> Any:
        """Return x + a·F(x) + b."""
        hidden = inputs
        for number, layer in enumerate(self.layers):
            if number:
                hidden = self.activation(hidden + self.biases[2 * number - 1])
            hidden = layer(hidden + self.biases[2 * number])
        straight = inputs if self.shortcut is None else self.shortcut(inputs)
        return straight + self.scale * hidden + self.biases[-1]

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the shape of the branch's output."""
        for layer in self.layers:
            input_shape = layer.compute_output_shape(input_shape)
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.layers]
        for layer in layers:
            layer.pop("build_config", None)  # the new block builds them, when it has set their initializers
        activation = keras.activations.serialize(self.activation)
        own = {"layers": layers, "blocks": self.blocks, "activation": activation}
        return {**super().get_config(), **own, **serialized({"shortcut": self.shortcut})}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FixupResidual:
        """Make the block from what `get_config` returned."""
        return cls(**deserialized(config, "layers", "shortcut"))


def _require_bare(layer: Any) -> None:
    if not isinstance(layer, keras.layers.Layer) or not hasattr(layer, "kernel_initializer"):
        raise TypeError(f"`layers` of FixupResidual must be Keras layers with a kernel. Received: {layer!r}.")
    activation = getattr(layer, "activation", None)
    if layer.built or getattr(layer, "use_bias", False) or activation not in (None, keras.activations.linear):
        raise ValueError(
            "FixupResidual chooses the initial weights and brings its own scalar biases and activation: its layers "
            "must be new, with use_bias=False and without an activation. "
            f"Received: {layer.name!r}, built={layer.built}, use_bias={getattr(layer, 'use_bias', None)}, "
            f"activation={getattr(activation, '__name__', activation)}."
        )


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
    require_whole("batch_size", batch_size, least=1, remedy="Pass the batch size of the training.")
    if channels is not None:
        require_whole("channels", channels, least=1, remedy="Leave it out where there are none.")
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
    """Return a new Keras normalization layer of the kind that `choose_normalization` names; it takes the same.

    Example:
        >>> type(normalization(residual=True, batch_size=4, channels=48)).__name__
        'GroupNormalization'
    """
    return choose_normalization(residual=residual, batch_size=batch_size, channels=channels).make_layer()
