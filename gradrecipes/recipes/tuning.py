"""Practice 3: learning rate, batch size and initializer from measurements rather than from habit."""

from __future__ import annotations

import math
from typing import Any

import keras

from gradrecipes.initializers import preset
from gradrecipes.probes import learning_rate_range, noise_scale, sharpness
from gradrecipes.recipes.recipe import Planned, Recipe

LARGEST_BATCH = 1024  # samples; beyond it a step of most nets no longer fits one device
CURVED_BATCHES = 4  # of the loss whose curvature bounds the rate; a single batch curves more steeply than the data


def tuning(
    *, learning_rate: float | None = None, batch_size: int | None = None, activation: str | None = None
) -> Recipe:
    """Return the recipe of hyperparameter tuning, for values that were measured; see `measured_tuning`.

    What no measurement decides is searched for: `gr.tuning` has the spaces, which the same measurements narrow, and
    searches that survive the trials that diverge.

    Args:
        learning_rate: For the optimizer, or None to leave it.
        batch_size: For `fit`, or None to leave it.
        activation: That of the hidden layers: their initializer gets its gain. None to leave it.

    Example:
        >>> tuning(learning_rate=0.01, batch_size=64).fit_arguments()["batch_size"]
        64
    """
    return Recipe(
        name="tuning",
        claim="A rate from the range test and weights scaled for their activation train where defaults do not.",
        references=("Smith 2015, arXiv 1506.01186", "McCandlish et al. 2018, arXiv 1812.06162"),
        optimizer={} if learning_rate is None else {"learning_rate": learning_rate},
        layers={} if activation is None else {"kernel_initializer": Planned(preset, {"activation": activation})},
        fit={} if batch_size is None else {"batch_size": batch_size},
    )


def measured_tuning(
    model: keras.Model, x: Any, y: Any, *, batch_size: int = 32, activation: str | None = None
) -> Recipe:
    """Measure a compiled model, which stays as it is, and return the recipe for what was found.

    The rate is that of the range test, and no higher than the curvature of the loss admits. That bound is taken only
    where the optimizer does not divide by the size of past gradients: before its first steps an adaptive one has
    none, and the bound would be a guess.

    Args:
        model: A compiled model.
        x: Training inputs.
        y: Targets.
        batch_size: For the range test, and the least that is proposed.
        activation: See `tuning`.

    Example:
        >>> recipe = gr.recipes.measured_tuning(model, x, y, batch_size=16)
        >>> recipe.optimizer["learning_rate"] > 0
        True

    References:
        Cohen et al. 2021, arXiv 2103.00065, on the bound.
    """
    rates = learning_rate_range(model, x, y, batch_size=batch_size)
    curved = sharpness(model, x, y, batch_size=batch_size, batches=CURVED_BATCHES)
    noise = noise_scale(model, x, y, batch_size=batch_size)
    rate = rates.valley
    if rate is not None and curved.highest_learning_rate is not None and not curved.preconditioned:
        rate = min(rate, curved.highest_learning_rate)
    batch_size = _power_of_two(noise.noise_scale, batch_size)
    return tuning(learning_rate=rate, batch_size=batch_size, activation=activation)


def _power_of_two(noise_scale: float, least: int) -> int:
    """Return the batch at which a step and a sample make the same progress, within what one device trains."""
    if not math.isfinite(noise_scale) or noise_scale <= least:
        return least
    return min(LARGEST_BATCH, 2 ** round(math.log2(noise_scale)))
