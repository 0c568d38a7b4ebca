"""Practice 1: look at the gradients of every step, and see an anomaly before the loss shows it."""

from __future__ import annotations

import os

import keras

from gradrecipes.callbacks.gradient_monitor import GradientMonitor
from gradrecipes.recipes.recipe import Planned, Recipe


def monitoring(*, sample_every: int = 50, log_dir: str | os.PathLike[str] | None = None) -> Recipe:
    """Return the recipe of gradient monitoring.

    Args:
        sample_every: Steps from one sample of histograms, weights and layer outputs to the next.
        log_dir: Where TensorBoard finds the norm of every epoch and the histograms, or None.

    Example:
        >>> monitoring().callbacks()[0].sample_every
        50
    """
    directory = None if log_dir is None else os.fspath(log_dir)
    arguments = {"sample_every": sample_every, "histogram_dir": directory}
    planned = {"monitor": Planned(GradientMonitor, arguments)}
    if directory is not None:
        planned["tensorboard"] = Planned(keras.callbacks.TensorBoard, {"log_dir": directory})
    return Recipe(
        name="monitoring",
        claim="The gradient norms of the real step tell of an explosion steps before the loss is NaN, layer by layer.",
        references=("Glorot, Bengio 2010, section 4", "Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063"),
        planned_callbacks=planned,
    )
