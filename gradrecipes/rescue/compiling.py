"""Compile a rebuilt model as its user did, with the optimizer, rate, clipping and loss of a setup."""

from __future__ import annotations

import copy
from typing import Any

import keras

from gradrecipes.compat.keras_private import build_optimizer
from gradrecipes.compat.model_copy import compile_arguments
from gradrecipes.rescue.setup import CLIPS, OWN, Setup, optimizer_config, unwrapped
from gradrecipes.schedules.warm_up import WarmUp

RATES = ("initial_learning_rate", "end_learning_rate", "warmup_target")  # of Keras' schedules, and `values`
LOSSES = {
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
}


def compile_as(
    made: keras.Model, original: keras.Model, base: Setup, setup: Setup, *, loss_weight: float = 1.0
) -> None:
    """Compile a model as the original is compiled, but for what the setup changes.

    Args:
        made: The model to compile.
        original: The user's model, whose loss and metrics are used; metrics are copied, for they hold state.
        base: The user's setup.
        setup: The setup wanted.
        loss_weight: What the loss is multiplied by, to be of unit size where targets are scaled within the model.
    """
    arguments = copied_arguments(original)
    arguments["optimizer"] = optimizer_of(arguments.get("optimizer"), base, setup)
    if (setup.loss, setup.from_logits) != (base.loss, base.from_logits):
        kind = LOSSES.get(setup.loss)
        arguments["loss"] = kind(from_logits=bool(setup.from_logits)) if kind else setup.loss
    if loss_weight != 1.0:
        arguments["loss_weights"] = (
            [loss_weight] if arguments.get("loss_weights") is None else arguments["loss_weights"]
        )
    plain = type(made).compile is keras.Model.compile
    made.compile(**arguments) if plain else keras.Model.compile(made, **arguments)
    if made.built:
        build_optimizer(made)  # a file of a model whose optimizer has no slots yet opens with a warning


def copied_arguments(model: keras.Model) -> dict[str, Any]:
    """Return what a model was compiled with, its metrics without their state."""
    arguments = compile_arguments(model) or {}
    for name in ("metrics", "weighted_metrics"):
        arguments[name] = keras.tree.map_structure(_copied_metric, arguments.get(name))
    return arguments


def _copied_metric(metric: Any) -> Any:
    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def optimizer_of(given: Any, base: Setup, setup: Setup) -> Any:
    """Return a new optimizer as the setup has it, in the loss scaler that the user's has, if any."""
    given = keras.optimizers.get(copy.deepcopy(given) if isinstance(given, dict) else given)
    inner = unwrapped(given)
    config = optimizer_config(given)
    if setup.optimizer == OWN:
        return type(given).from_config(given.get_config())
    if setup.optimizer != base.optimizer or setup.settings != base.settings:
        config = {"learning_rate": config["learning_rate"], **{clip: config.get(clip) for clip in CLIPS}}
        config |= setup.settings
    if setup.clipping != base.clipping:
        config |= dict.fromkeys(CLIPS)
        if setup.clipping:
            config[setup.clipping[0]] = float(setup.clipping[1])
    rate = config["learning_rate"]
    if (setup.learning_rate, setup.schedule) != (base.learning_rate, base.schedule):
        rate = setup.learning_rate
    config["learning_rate"] = scaled_rate(rate, setup.rate_factor)
    if setup.warm_up:
        config["learning_rate"] = WarmUp(_schedule(config["learning_rate"]), steps=setup.warm_up)
    made_by = type(inner) if setup.optimizer == type(inner).__name__ else getattr(keras.optimizers, setup.optimizer)
    made = made_by.from_config(config)
    if inner is not given and setup.precision in (OWN, base.precision):
        outer = {name: value for name, value in given.get_config().items() if name not in ("inner_optimizer", "name")}
        made = type(given)(made, **{name: outer[name] for name in ("initial_scale", "dynamic_growth_steps")})
    return made


def scaled_rate(rate: Any, factor: float) -> Any:
    """Return a rate, or the config of a schedule, multiplied by a factor."""
    if factor == 1.0 or rate is None:
        return rate
    if not isinstance(rate, dict):
        return float(rate) * factor
    rate = copy.deepcopy(rate)
    for name in RATES:
        if isinstance(rate["config"].get(name), int | float):
            rate["config"][name] *= factor
    if isinstance(rate["config"].get("values"), list | tuple):
        rate["config"]["values"] = [value * factor for value in rate["config"]["values"]]
    return rate


def _schedule(rate: Any) -> Any:
    return keras.optimizers.schedules.deserialize(rate) if isinstance(rate, dict) else rate
