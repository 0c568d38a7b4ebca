"""Practice 6: a training that survives its own bad steps, and stops when it should."""

from __future__ import annotations

from typing import Any

import keras

from gradrecipes.callbacks.gradient_guard import GradientGuard
from gradrecipes.callbacks.nanproof_early_stopping import NanProofEarlyStopping
from gradrecipes.gradients.clipping import by_global_norm
from gradrecipes.recipes.recipe import Planned, Recipe
from gradrecipes.schedules import WarmUp


def training(
    *,
    max_norm: float | None = 1.0,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
    warm_up: int | None = None,
    batch_size: int | None = None,
    patience: int = 10,
) -> Recipe:
    """Return the recipe of training strategies: guard with clipping, warm-up, early stopping, batch size.

    Args:
        max_norm: Bound of the global gradient norm, or None for no clipping.
        learning_rate: For the optimizer, or None to leave it.
        warm_up: Steps over which the rate rises, or None; needs `learning_rate`.
        batch_size: For `fit`, or None to leave it.
        patience: Epochs without a better validation loss before the training stops.

    Raises:
        ValueError: A warm-up without a rate.

    Example:
        >>> training(learning_rate=0.1, warm_up=100).callbacks()[0].clipping
        by_global_norm(max_norm=1.0)
    """
    if warm_up is not None and learning_rate is None:
        raise ValueError(f"A warm-up leads to a rate. Received: warm_up={warm_up!r} and learning_rate=None. Give both.")
    optimizer: dict[str, Any] = {}
    if learning_rate is not None:
        optimizer["learning_rate"] = learning_rate if warm_up is None else WarmUp(learning_rate, steps=warm_up)
    clipping = None if max_norm is None else by_global_norm(max_norm)
    stopping = {"monitor": "val_loss", "patience": patience, "restore_best_weights": True}
    return Recipe(
        name="training",
        claim="Clipping, skipping, rolling back and a warm-up widen the range of learning rates that train.",
        references=(
            "Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063",
            "Goyal et al. 2017, arXiv 1706.02677",
            "Chowdhery et al. 2022, arXiv 2204.02311, section 5.1",
        ),
        optimizer=optimizer,
        planned_callbacks={
            "guard": Planned(GradientGuard, {"clipping": clipping}),
            "early_stopping": Planned(NanProofEarlyStopping, stopping),
        },
        fit={} if batch_size is None else {"batch_size": batch_size},
    )
