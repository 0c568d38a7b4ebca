"""Practice 5: a net whose signal neither grows nor fades with depth, before it is trained at all."""

from __future__ import annotations

import keras

from gradrecipes.initializers import preset
from gradrecipes.layers import PreNormResidual, ReZeroResidual, normalization
from gradrecipes.recipes.recipe import Planned, Recipe

BLOCKS = {"pre_norm": PreNormResidual, "rezero": ReZeroResidual}


def architecture(
    *, activation: str = "relu", residual: str | None = "pre_norm", batch_size: int = 32, units: int | None = None
) -> Recipe:
    """Return the recipe of architecture: initializer, normalization and residual block that fit together.

    Args:
        activation: That of the hidden layers.
        residual: `"pre_norm"`, `"rezero"`, or None for a plain net.
        batch_size: Samples of a training batch: small ones rule out BatchNormalization.
        units: Width of the hidden layers, which the residual block needs; None for no block.

    Raises:
        ValueError: An unknown kind of residual block.

    Example:
        >>> type(architecture(residual=None).block("normalization")).__name__
        'LayerNormalization'
    """
    if residual is not None and residual not in BLOCKS:
        choices = ", ".join(map(repr, BLOCKS))
        raise ValueError(f"`residual` must be one of {choices}, or None. Received: residual={residual!r}.")
    blocks = {"normalization": Planned(normalization, {"residual": residual is not None, "batch_size": batch_size})}
    if residual is not None and units is not None:
        blocks["residual"] = Planned(_residual_block, {"kind": residual, "units": units, "activation": activation})
    return Recipe(
        name="architecture",
        claim="Residual blocks let a net train a hundred layers deep where a plain one of that size does not start.",
        references=(
            "He et al. 2016, arXiv 1603.05027",
            "Bachlechner et al. 2020, arXiv 2003.04887",
            "Yang et al. 2019, arXiv 1902.08129",
        ),
        layers={"kernel_initializer": Planned(preset, {"activation": activation})},
        blocks=blocks,
    )


def _residual_block(kind: str, units: int, activation: str) -> keras.layers.Layer:
    hidden = keras.layers.Dense(units, activation, kernel_initializer=preset(activation))
    return BLOCKS[kind]([hidden, keras.layers.Dense(units, kernel_initializer=preset(None))])
