"""Read a compiled Keras model once, into the plain record that probes, rules and reports share."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import (
    compile_arguments,
    frozen_variables,
    has_own_train_step,
    leaves,
    lower_scale,
    optimizers_of,
    sublayers,
)
from gradrecipes.core.trace.description import (
    Call,
    Description,
    FrozenLayer,
    InputDescription,
    LayerDescription,
    OptimizerDescription,
    OutputDescription,
    Shape,
)
from gradrecipes.training.description.describe_layer import describe_layer
from gradrecipes.training.description.model_graph import (
    NORMALIZATIONS,
    ModelGraph,
    depth_of,
    innermost,
    is_weighted,
    model_graph,
)
from gradrecipes.training.description.output_head import (
    INPUT_SCALINGS,
    UNKNOWN,
    OutputLoss,
    activation_of,
    behind_input,
    describe_loss,
    first_layers,
    last_activations,
    losses_of,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)
LOOKUPS = {"Embedding", "StringLookup", "IntegerLookup", "Hashing", "CategoryEncoding", "TextVectorization"}


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
    layers = sublayers(model) if layers is None else layers
    names = [layer.name for layer in layers] if names is None else names
    graph = _quietly(lambda: model_graph(model))
    innermost_layers = innermost(model)
    kinds = Counter(type(layer).__name__ for layer in sublayers(model))
    depth = None if graph is None else _quietly(lambda: depth_of(graph))
    return Description(
        model=model.name,
        layers=tuple(_described(layer, name) for layer, name in zip(layers, names, strict=True)),
        frozen=_quietly(lambda: _frozen(model)) or (),
        trainable_entries=sum(math.prod(one.shape) for one in model.trainable_variables),
        calls=None if graph is None else _calls(graph),
        inputs=_quietly(lambda: describe_inputs(model, graph, innermost_layers)) or (),
        outputs=_quietly(lambda: describe_outputs(model, graph, innermost_layers)) or (),
        optimizer=_quietly(lambda: _optimizer(model)),
        loss=_name_of(getattr(model, "loss", None)),
        precision=model.dtype_policy.name,
        batch_size=batch_size,
        depth=None if depth is None else depth.depth,
        skips=None if depth is None else depth.skips,
        plain_depth=None if depth is None else depth.plain_depth,
        plain_batch_normalizations=None if depth is None else depth.batch_normalizations_on_plain,
        vector_batch_normalizations=sum(map(_normalizes_vectors, innermost_layers)),
        normalizations={kind: count for kind, count in kinds.items() if kind in NORMALIZATIONS},
        kinds=dict(kinds),
        masked="Masking" in kinds or any(getattr(layer, "mask_zero", False) for layer in innermost_layers),
        own_train_step=has_own_train_step(model),
        own_loss=type(model).compute_loss is not keras.Model.compute_loss,
        keras=keras.__version__,
        tensorflow=tf.__version__,
    )


def _quietly(read: Callable[[], T]) -> T | None:
    """Return None where a model is built in a way that cannot be read; a description does not raise."""
    try:
        return read()
    except Exception:
        logger.debug("A part of the model could not be described.", exc_info=True)
        return None


def _described(layer: keras.layers.Layer, name: str) -> LayerDescription:
    described = _quietly(lambda: describe_layer(layer, name=name))
    return LayerDescription(name, type(layer).__name__) if described is None else described


def _frozen(model: keras.Model) -> tuple[FrozenLayer, ...]:
    found = []
    for layer in sublayers(model):
        frozen = frozen_variables(layer)
        if frozen:
            entries = sum(math.prod(one.shape) for one in frozen)
            kernel = any(len(one.shape) >= 2 for one in frozen)
            found.append(FrozenLayer(layer.name, type(layer).__name__, entries, kernel, _untrained(layer, frozen)))
    return tuple(found)


def _untrained(layer: keras.layers.Layer, frozen: Sequence[Any]) -> bool | None:
    """Return whether the biases of a layer are all 0 still, or its running statistics those of no data."""
    if type(layer).__name__ == "BatchNormalization":
        return bool(np.all(np.asarray(layer.moving_mean) == 0) and np.all(np.asarray(layer.moving_variance) == 1))
    if isinstance(getattr(layer, "bias_initializer", None), keras.initializers.Zeros):
        biases = [one for one in frozen if one.path.rsplit("/", 1)[-1] == "bias"]
        return all(bool(np.all(np.asarray(one) == 0)) for one in biases) if biases else None
    return None


def _calls(graph: ModelGraph) -> tuple[Call, ...]:
    return tuple(Call(node.operation.name, node.kind, node.parents, node.weighted) for node in graph.nodes)


def _optimizer(model: keras.Model) -> OptimizerDescription | None:
    if getattr(model, "optimizer", None) is None:
        return None
    whole = optimizers_of(model)
    # `compile()` without arguments makes an optimizer that a train step with others never uses.
    whole = [one for one in whole if np.any(keras.ops.convert_to_numpy(one.iterations))] or whole
    optimizer = leaves(whole[0])[0]
    settings = json.loads(json.dumps(optimizer.get_config(), default=str))
    configured = settings.pop("learning_rate", None)
    return OptimizerDescription(
        name=type(optimizer).__name__,
        learning_rate=_common_learning_rate(whole),
        schedule=configured.get("class_name") if isinstance(configured, dict) else None,
        loss_scaler=None if lower_scale(whole[0]) is None else type(whole[0]).__name__,
        count=len(whole),
        settings=settings,
    )


def _common_learning_rate(optimizers: Sequence[keras.optimizers.Optimizer]) -> float | None:
    rates = {_learning_rate(leaves(optimizer)[0]) for optimizer in optimizers}
    return rates.pop() if len(rates) == 1 else None


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


def _normalizes_vectors(layer: keras.layers.Layer) -> bool:
    """Return whether a BatchNormalization averages over nothing but the samples."""
    return type(layer).__name__ == "BatchNormalization" and getattr(layer.input_spec, "ndim", None) == 2


def describe_outputs(
    model: keras.Model, graph: ModelGraph | None, layers: Sequence[Any]
) -> tuple[OutputDescription, ...]:
    """Return a description of each output of a model, with the loss on it.

    Args:
        model: The model.
        graph: Its graph; None for a subclassed model, where the activation of the layer attached last stands in for
            that of the output, and `certain` is False.
        layers: Its innermost layers, in the order of their attachment.
    """
    ends = [] if graph is None else list(graph.outputs)
    compiled = losses_of(model, len(ends) or 1)
    count = max(len(ends), len(compiled), 1)
    shapes = _shapes(model, "outputs", count)
    names = list(getattr(model, "output_names", None) or [])
    loss_weights = (compile_arguments(model) or {}).get("loss_weights")
    found = []
    for place in range(count):
        loss = compiled[place] if place < len(compiled) else OutputLoss(None, place, None)
        if graph is not None:
            activations = last_activations(graph, ends[place])
            last = graph.nodes[ends[place]].operation
        else:
            last = next((layer for layer in reversed(layers) if activation_of(layer) is not None), None)
            own = None if last is None else activation_of(last)
            activations = [own if own is not None and count == 1 else UNKNOWN]
        shape = shapes[place]
        units = shape[-1] if shape else getattr(last, "units", None)
        found.append(
            OutputDescription(
                name=names[place] if place < len(names) else getattr(last, "name", f"output_{place}"),
                units=units,
                shape=shape,
                activation=activations[0],
                activations=tuple(activations),
                certain=graph is not None and UNKNOWN not in activations,
                target=loss.target,
                loss_weight=_loss_weight(loss_weights, place, names),
                **describe_loss(loss.loss, one_unit=units == 1),
            )
        )
    return tuple(found)


def _loss_weight(weights: Any, place: int, names: Sequence[str]) -> float | None:
    if isinstance(weights, dict):
        weight = weights.get(names[place], 1.0) if place < len(names) else None
    elif isinstance(weights, list | tuple):
        weight = weights[place] if place < len(weights) else None
    else:
        weight = weights
    return float(weight) if isinstance(weight, int | float) else None


def describe_inputs(
    model: keras.Model, graph: ModelGraph | None, layers: Sequence[Any]
) -> tuple[InputDescription, ...]:
    """Return a description of each input of a model; of a subclassed one, of what its first layers suggest."""
    if graph is None:
        return (_first_met(model, layers),)
    shapes = _shapes(model, "inputs", len(graph.inputs))
    return tuple(
        InputDescription(
            name=graph.nodes[place].operation.name,
            shape=shape,
            looked_up=_only_looked_up(graph, place),
            **behind_input(graph, place),
        )
        for place, shape in zip(graph.inputs, shapes, strict=True)
    )


def _first_met(model: keras.Model, layers: Sequence[Any]) -> InputDescription:
    """Return what the input of a subclassed model probably meets: its layers in the order of their attachment."""
    attached = [one for one in sublayers(model) if not sublayers(one) and type(one).__name__ != "InputLayer"]
    looked_up = bool(attached) and type(attached[0]).__name__ in LOOKUPS
    scaling = None
    for layer in layers:
        if is_weighted(layer) or type(layer).__name__ == "Embedding":
            return InputDescription(normalized=scaling, first_kind=type(layer).__name__, looked_up=looked_up)
        if type(layer).__name__ in INPUT_SCALINGS:
            scaling = type(layer).__name__
    return InputDescription(normalized=scaling, looked_up=looked_up)


def _only_looked_up(graph: ModelGraph, place: int) -> bool:
    kinds = {type(layer).__name__ for layer in first_layers(graph, place)}
    return bool(kinds & LOOKUPS) and kinds <= LOOKUPS | {"NotEqual", "Equal"}


def _shapes(model: keras.Model, which: str, count: int) -> list[Shape | None]:
    try:
        tensors = list(getattr(model, which))
    except (AttributeError, TypeError, ValueError):
        tensors = []
    shapes = [None if tensor is None else tuple(tensor.shape[1:]) for tensor in tensors]
    return [shapes[place] if place < len(shapes) else None for place in range(count)]
