"""Practice 4: weights and slopes held small, with a strength that is measured rather than guessed."""

from __future__ import annotations

import keras

from gradrecipes.recipes.recipe import Planned, Recipe
from gradrecipes.regularizers import GradientCombination, Penalty


def regularization(
    *,
    weight_decay: float | None = 0.01,
    l2: float | None = None,
    dropout: float | None = None,
    penalty: Penalty | GradientCombination | None = None,
) -> Recipe:
    """Return the recipe of regularization. Decay, L2 and dropout are Keras' own.

    Args:
        weight_decay: Decoupled weight decay (AdamW), or None.
        l2: Factor of the squared weights in the loss, or None; beside weight decay it acts twice.
        dropout: Share of units that are dropped, or None.
        penalty: A gradient penalty of `gradrecipes.regularizers`, for `gr.RecipeModel`, or None.

    Raises:
        ValueError: Both weight decay and L2.

    Example:
        >>> regularization(weight_decay=0.1).compile_arguments()["optimizer"].weight_decay
        0.1
    """
    if weight_decay is not None and l2 is not None:
        raise ValueError(
            "Weight decay and L2 both shrink the weights. "
            f"Received: weight_decay={weight_decay!r} and l2={l2!r}. Set one of them to None."
        )
    return Recipe(
        name="regularization",
        claim="A penalty on the slope and decoupled weight decay keep a net from fitting noise steeply.",
        references=(
            "Loshchilov, Hutter 2019, arXiv 1711.05101",
            "Ross, Doshi-Velez 2017, arXiv 1711.09404",
            "Zhao, Zhang, Hu 2022, arXiv 2202.03599",
        ),
        optimizer={} if weight_decay is None else {"class_name": "AdamW", "weight_decay": weight_decay},
        layers={} if l2 is None else {"kernel_regularizer": Planned(keras.regularizers.L2, {"l2": l2})},
        blocks={} if dropout is None else {"dropout": Planned(keras.layers.Dropout, {"rate": dropout})},
        model={} if penalty is None else {"penalty": penalty},
    )
