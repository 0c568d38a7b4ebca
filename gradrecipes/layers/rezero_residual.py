"""A residual block that starts as the identity, by one weight that starts at zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from gradrecipes.layers.branch import as_branch, build_shortcut, deserialized, require_layer


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
        return {**super().get_config(), **{k: keras.saving.serialize_keras_object(v) for k, v in parts.items()}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ReZeroResidual:
        """Make the block from what `get_config` returned."""
        return cls(**deserialized(config, "branch", "shortcut"))
