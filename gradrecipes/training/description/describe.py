"""Read a compiled Keras model once, into the plain record that probes, rules and reports share."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import has_own_train_step, leaves, lower_scale, optimizers_of, sublayers
from gradrecipes.core.trace.description import Call, Description, LayerDescription, OptimizerDescription
from gradrecipes.training.description.describe_ends import describe_inputs, describe_outputs
from gradrecipes.training.description.describe_layer import describe_layer
from gradrecipes.training.description.model_depth import depth_of
from gradrecipes.training.description.model_graph import NORMALIZATIONS, ModelGraph, innermost, model_graph

T = TypeVar("T")

logger = logging.getLogger(__name__)


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


def _calls(graph: ModelGraph) -> tuple[Call, ...]:
    return tuple(Call(node.operation.name, node.kind, node.parents, node.weighted) for node in graph.nodes)


def _optimizer(model: keras.Model) -> OptimizerDescription | None:
    if getattr(model, "optimizer", None) is None:
        return None
    optimizer = leaves(model.optimizer)[0]
    settings = json.loads(json.dumps(optimizer.get_config(), default=str))
    configured = settings.pop("learning_rate", None)
    return OptimizerDescription(
        name=type(optimizer).__name__,
        learning_rate=_learning_rate(optimizer),
        schedule=configured.get("class_name") if isinstance(configured, dict) else None,
        loss_scaler=None if lower_scale(model.optimizer) is None else type(model.optimizer).__name__,
        count=len(optimizers_of(model)),
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


def _normalizes_vectors(layer: keras.layers.Layer) -> bool:
    """Return whether a BatchNormalization averages over nothing but the samples."""
    return type(layer).__name__ == "BatchNormalization" and getattr(layer.input_spec, "ndim", None) == 2
