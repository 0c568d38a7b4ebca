"""The six best practices, each one function that returns a `Recipe`."""

from __future__ import annotations

import math
import os
from typing import Any

import keras

from gradrecipes.callbacks.gradient_guard import GradientGuard
from gradrecipes.callbacks.gradient_monitor import GradientMonitor
from gradrecipes.callbacks.nanproof_early_stopping import NanProofEarlyStopping
from gradrecipes.gradients.clipping import by_global_norm
from gradrecipes.initializers import preset
from gradrecipes.layers import PreNormResidual, ReZeroResidual, normalization
from gradrecipes.probes import learning_rate_range, noise_scale, sharpness
from gradrecipes.recipes.recipe import Planned, Recipe
from gradrecipes.regularizers import GradientCombination, Penalty
from gradrecipes.schedules import WarmUp


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


def validation(*, share: float = 0.2, monitor: str = "val_loss", patience: int = 10) -> Recipe:
    """Return the recipe of experimentation and validation.

    Keras' `validation_split` takes the last samples, before any shuffling: shuffle data that are in an order.

    To compare remedies, take it as an arm of a `gr.Study`, whose own frozen split then stands for `share`: the study
    trains every arm with every seed and says which differences are beyond doubt.

    Args:
        share: Part of the training data that is set aside, between 0 and 1.
        monitor: What decides; a value of the validation data.
        patience: Epochs without improvement before the training stops.

    Raises:
        ValueError: A share that leaves nothing on one side.

    Example:
        >>> validation(share=0.25).fit_arguments()["validation_split"]
        0.25
    """
    if not 0 < share < 1:
        raise ValueError(
            f"`share` must lie between 0 and 1, both excluded. Received: share={share!r}. 0.2 suits most data sets."
        )
    arguments = {"monitor": monitor, "patience": patience, "restore_best_weights": True}
    return Recipe(
        name="validation",
        claim="Validation data show when a remedy moves the training loss only, and keep the best epoch's weights.",
        references=("Prechelt 1998, Early stopping - but when?", "Bouthillier et al. 2021, arXiv 2103.03098"),
        planned_callbacks={"early_stopping": Planned(NanProofEarlyStopping, arguments)},
        fit={"validation_split": share},
    )


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
