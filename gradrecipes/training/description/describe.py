"""Read a compiled Keras model once, into the plain record that probes, rules and reports share."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_optimizers import lower_scale
from gradrecipes.compat.keras_private import (
    compile_arguments,
    frozen_variables,
    has_own_train_step,
    leaves,
    optimizers_of,
    own_variables,
    sublayers,
)
from gradrecipes.core.trace.description import Call, Description, FrozenLayer, OptimizerDescription, Regularization
from gradrecipes.training.description.model_graph import (
    NORMALIZATIONS,
    Node,
    depth_of,
    describe_layer,
    model_graph,
    none_if_unreadable,
)
from gradrecipes.training.description.output_head import describe_inputs, describe_outputs


def describe_model(
    model: keras.Model,
    layers: Sequence[keras.layers.Layer] | None = None,
    *,
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> Description:
    """Return what a model is. Nothing is run and nothing is changed; what cannot be read is None.

    Args:
        model: A model, compiled or not, built or not.
        layers: The layers to describe; all of them by default.
        names: Their names in the record, where those of the layers are not unique.
        batch_size: Samples in a batch, where it is known.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
        >>> model.compile(loss="mse")
        >>> [(one.activation, one.loss) for one in describe_model(model).outputs]
        [('softmax', 'mean_squared_error')]
    """
    every = sublayers(model)
    layers = every if layers is None else layers
    names = [layer.name for layer in layers] if names is None else names
    optimizers = [(one, leaves(one)[0], lower_scale(one)) for one in optimizers_of(model)]
    frozen = [(layer, variables) for layer in every if (variables := frozen_variables(layer))]
    loss_weights = (compile_arguments(model) or {}).get("loss_weights") or None
    kinds = Counter(type(layer).__name__ for layer in every)
    innermost = [Node(layer, ()) for layer in every if not sublayers(layer)]
    own = {
        "frozen": _frozen(frozen) or (),
        "regularization": _regularization(every) or (),
        "optimizer": _optimizer(optimizers) if getattr(model, "optimizer", None) is not None else None,
        "loss": _name_of(getattr(model, "loss", None)),
        "slowest_average": max(map(_momentum, every), default=None) or None,
        "vector_batch_normalizations": sum(_normalizes_vectors(one.operation) for one in innermost),
    }
    graph = model_graph(model)
    depth = None if graph is None else depth_of(graph)
    return Description(
        model=model.name,
        layers=tuple(describe_layer(layer, name=name) for layer, name in zip(layers, names, strict=True)),
        trainable_entries=sum(math.prod(one.shape) for one in model.trainable_variables),
        calls=None
        if graph is None
        else tuple(Call(one.operation.name, one.kind, one.parents, one.weighted) for one in graph.nodes),
        inputs=describe_inputs(model, graph, innermost) or (),
        outputs=describe_outputs(model, graph, innermost, loss_weights) or (),
        precision=model.dtype_policy.name,
        batch_size=batch_size,
        depth=None if depth is None else depth.depth,
        skips=None if depth is None else depth.skips,
        plain_depth=None if depth is None else depth.plain_depth,
        plain_batch_normalizations=None if depth is None else depth.batch_normalizations_on_plain,
        normalizations={kind: count for kind, count in kinds.items() if kind in NORMALIZATIONS},
        kinds=dict(kinds),
        masked="Masking" in kinds or any(getattr(one.operation, "mask_zero", False) for one in innermost),
        own_train_step=has_own_train_step(model),
        own_loss=type(model).compute_loss is not keras.Model.compute_loss,
        keras=keras.__version__,
        tensorflow=tf.__version__,
        **own,
    )


@none_if_unreadable
def _frozen(layers: Sequence[tuple[keras.layers.Layer, list[Any]]]) -> tuple[FrozenLayer, ...]:
    found = []
    for layer, variables in layers:
        entries = sum(math.prod(one.shape) for one in variables)
        kernel = any(len(one.shape) >= 2 for one in variables)
        found.append(FrozenLayer(layer.name, type(layer).__name__, entries, kernel, untrained(layer, variables)))
    return tuple(found)


def regularizing(layer: keras.layers.Layer) -> Iterator[tuple[str, str, Any]]:
    """Yield (kind, attribute, value) of what holds a layer back while it is trained, as `Regularization` names it."""
    name = type(layer).__name__
    rates = {"dropout": "dropout", "recurrent_dropout": "dropout"}  # of the cell of a recurrent layer
    rates |= {"rate": "dropout"} if "Dropout" in name else {"stddev": "noise"} if name == "GaussianNoise" else {}
    for attribute, value in list(vars(layer).items()):
        if attribute.endswith("_regularizer") and value is not None:
            yield "penalty", attribute, value
        elif attribute.endswith("_constraint") and value is not None:
            yield "constraint", attribute, value
        elif attribute in rates and isinstance(value, int | float) and value > 0:
            yield rates[attribute], attribute, value


NOISE, LIMITS = ("dropout", "noise"), ("penalty", "constraint")  # kinds of regularization


def switched_off(layer: keras.layers.Layer, kinds: Sequence[str] = (*NOISE, *LIMITS)) -> list[tuple[Any, str, Any]]:
    """Train a layer without regularization of these kinds, and return (object, attribute, value) of what was."""
    held = [(layer, attribute, value) for kind, attribute, value in regularizing(layer) if kind in kinds]
    if set(LIMITS) <= set(kinds):
        for variable in own_variables(layer):
            held += [(variable, name, getattr(variable, name)) for name in ("regularizer", "constraint")]
    for one, attribute, value in held:
        setattr(one, attribute, 0.0 if isinstance(value, int | float) else None)
    return held


@none_if_unreadable
def _regularization(layers: Sequence[keras.layers.Layer]) -> tuple[Regularization, ...]:
    found = [(layer.name, kind, value) for layer in layers for kind, _, value in regularizing(layer)]
    return tuple(Regularization(name, kind, _strength(kind, value)) for name, kind, value in found)


def _strength(kind: str, value: Any) -> str:
    """Return a regularizer or constraint with its settings, "L1(l1=0.1)", and of a rate its number."""
    if isinstance(value, int | float):
        return f"{kind} of {value:g}"
    name = getattr(value, "__name__", type(value).__name__)
    try:
        settings = value.get_config()
    except (AttributeError, NotImplementedError):  # a function
        return name
    shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in settings.items()}
    return f"{name}({', '.join(f'{key}={setting}' for key, setting in shown.items())})"


def untrained(layer: keras.layers.Layer, frozen: Sequence[Any]) -> bool | None:
    """Return whether the biases of a layer are all 0 still, or its running statistics those of no data."""
    if type(layer).__name__ == "BatchNormalization":
        return bool(np.all(np.asarray(layer.moving_mean) == 0) and np.all(np.asarray(layer.moving_variance) == 1))
    if isinstance(getattr(layer, "bias_initializer", None), keras.initializers.Zeros):
        biases = [one for one in frozen if one.path.rsplit("/", 1)[-1] == "bias"]
        return all(bool(np.all(np.asarray(one) == 0)) for one in biases) if biases else None
    return None


@none_if_unreadable
def _optimizer(optimizers: Sequence[tuple[Any, Any, Any]]) -> OptimizerDescription:
    """Describe the optimizers of a model.

    Args:
        optimizers: Each with the one within it that updates weights, and what lowers its loss scale.
    """
    # `compile()` without arguments makes an optimizer that a train step with others never uses.
    used = [one for one in optimizers if np.any(keras.ops.convert_to_numpy(one[0].iterations))] or list(optimizers)
    whole, optimizer, lower = used[0]
    settings = json.loads(json.dumps(optimizer.get_config(), default=str))
    configured = settings.pop("learning_rate", None)
    rates = {_learning_rate(leaf) for _, leaf, _ in used}
    return OptimizerDescription(
        name=type(optimizer).__name__,
        learning_rate=rates.pop() if len(rates) == 1 else None,
        schedule=configured.get("class_name") if isinstance(configured, dict) else None,
        loss_scaler=None if lower is None else type(whole).__name__,
        count=len(used),
        settings=settings,
    )


def _learning_rate(optimizer: keras.optimizers.Optimizer) -> float | None:
    try:
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    except (AttributeError, TypeError, ValueError):  # a composite optimizer has no single rate
        return None
    return rate if np.isfinite(rate) else None


def _name_of(loss: Any) -> str | None:
    if loss is None or isinstance(loss, str):
        return loss
    if isinstance(loss, (list, tuple)):
        return ", ".join(str(_name_of(part)) for part in loss)
    if isinstance(loss, dict):
        return ", ".join(f"{name}: {_name_of(part)}" for name, part in loss.items())
    return getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__)


def _momentum(layer: keras.layers.Layer) -> float:
    """Return the momentum of a BatchNormalization that is trained and has its initial moving averages; else 0."""
    if type(layer).__name__ != "BatchNormalization" or not layer.trainable:
        return 0.0
    return float(layer.momentum) if not layer.built or untrained(layer, ()) else 0.0


def _normalizes_vectors(layer: keras.layers.Layer) -> bool:
    """Return whether a BatchNormalization averages over nothing but the samples."""
    return type(layer).__name__ == "BatchNormalization" and getattr(layer.input_spec, "ndim", None) == 2
