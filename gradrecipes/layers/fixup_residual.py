"""A residual block whose initialization alone keeps any number of them trainable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from gradrecipes.core.theory.fixup import fixup_gain
from gradrecipes.layers.branch import build_shortcut, deserialized, require_layer


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
        return {
            **super().get_config(),
            "layers": layers,
            "shortcut": keras.saving.serialize_keras_object(self.shortcut),
            "blocks": self.blocks,
            "activation": keras.activations.serialize(self.activation),
        }

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
