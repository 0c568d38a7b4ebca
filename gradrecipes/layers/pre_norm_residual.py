"""A residual block that normalizes what enters its branch and leaves the identity path alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from gradrecipes.layers.branch import as_branch, build_shortcut, deserialized, require_layer


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
        return {**super().get_config(), **{k: keras.saving.serialize_keras_object(v) for k, v in parts.items()}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PreNormResidual:
        """Make the block from what `get_config` returned."""
        return cls(**deserialized(config, "branch", "normalization", "shortcut"))
