"""Residual branches that start small enough for any depth, without normalization."""

from __future__ import annotations

from typing import Any

import keras

from gradrecipes.core.theory.fixup import fixup_gain
from gradrecipes.initializers.preset import ScaledInitializer
from gradrecipes.initializers.seeds import checked_seed, seed_config


@keras.saving.register_keras_serializable(package="gradrecipes")
class Fixup(keras.initializers.Initializer):
    r"""He initialization shrunk so that all residual branches together change the function by as much as one.

    σ_w² = 2·L^(-1/(m-1)) for L blocks of m weight layers each. It is for all weight layers of a branch but the
    last; the last one, and the head of the net, start at `"zeros"`. `gr.layers.FixupResidual` arranges all of it.

    Args:
        blocks: L, residual blocks in the whole net.
        layers_per_block: m, weight layers in a block, at least 2.
        seed: Fixes the numbers. Without it layers that share the object still start differently.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> round(Fixup(100).gain, 4)
        0.1414

    References:
        Zhang, Dauphin, Ma 2019, arXiv 1901.09321, section 3.
    """

    def __init__(self, blocks: int, *, layers_per_block: int = 2, seed: int | keras.random.SeedGenerator | None = None):
        fixup_gain(blocks, layers_per_block)  # refuses what is out of range
        self.blocks = blocks
        self.layers_per_block = layers_per_block
        self.seed = checked_seed(seed)

    @property
    def gain(self) -> float:
        """σ_w = √(fan_in·Var(W))."""
        return fixup_gain(self.blocks, self.layers_per_block)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return a new kernel of the shape."""
        return ScaledInitializer(self.gain, seed=self.seed)(shape, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {
            "blocks": self.blocks,
            "layers_per_block": self.layers_per_block,
            "seed": seed_config(self.seed),
        }
