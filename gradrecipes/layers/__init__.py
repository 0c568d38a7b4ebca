"""Layers that keep deep nets trainable: three residual blocks, and a normalization chosen by rule.

The normalizations themselves are Keras' own.
"""

from gradrecipes.layers.normalization import NormalizationChoice, choose_normalization, normalization
from gradrecipes.layers.residual import FixupResidual, PreNormResidual, ReZeroResidual

__all__ = [
    "FixupResidual",
    "NormalizationChoice",
    "PreNormResidual",
    "ReZeroResidual",
    "choose_normalization",
    "normalization",
]
