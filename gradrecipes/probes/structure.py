"""Read from a model, without running it: how its outputs leave it, what its inputs meet, how deep it is."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat.keras_private import has_own_train_step, sublayers
from gradrecipes.training.description.describe import describe_run
from gradrecipes.training.description.describe_loss import OutputLoss, describe_loss, losses_of
from gradrecipes.training.description.model_depth import depth_of
from gradrecipes.training.description.model_graph import NORMALIZATIONS, ModelGraph, innermost, is_weighted, model_graph
from gradrecipes.training.description.output_head import (
    INPUT_SCALINGS,
    UNKNOWN,
    activation_of,
    behind_input,
    last_activations,
)

SLOTS_NAMED = 5

logger = logging.getLogger(__name__)


def structure_probe(model: keras.Model) -> dict[str, Any]:
    """Tell how a model is built: last activations beside losses, what stands behind the inputs, depth and skips.

    Nothing is run and nothing is changed. Of a subclassed model the graph is not known: its figures are None, and
    the activation of the layer attached last stands in for that of the output (`"certain": False`).

    Args:
        model: A model, compiled or not, built or not.

    Returns:
        Plain JSON values.
        `outputs`: for each output `name`, `units`, `shape` (without samples), `activation`, `activations` (all of
        them behind the last weighted layer, the last one first), `certain`, `loss`, `loss_class`, `custom`,
        `from_logits`, `config`, `target` (its place among the flattened targets).
        `inputs`: for each input `name`, `shape`, `normalized` (the scaling before all weights, or None),
        `first_kind` (class of the first layer with weights).
        `optimizer`: its settings, `name`, `learning_rate`, `schedule` and `nonfinite_slots` (the paths of up to five
        that hold a NaN or infinity). `precision`: the policy's name.
        `depth`, `skips`, `plain_depth`, `batch_normalizations_on_plain`: see
        `gradrecipes.training.description.model_depth.Depth`; None where the graph is not known.
        `vector_batch_normalizations`: how many BatchNormalizations have nothing but the samples to count over.
        `normalizations`: how many layers of each kind. `kinds`: how many layers of each class, at any depth.
        `masked`: whether a Masking or an Embedding with a mask is among them.
        `subclassed`, `own_train_step`, `own_loss` (`compute_loss` is overridden).

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
        >>> model.compile(loss="mse")
        >>> [(one["activation"], one["loss"]) for one in structure_probe(model)["outputs"]]
        [('softmax', 'mean_squared_error')]
    """
    graph = _quietly(model_graph, model)
    layers = innermost(model)
    kinds = Counter(type(layer).__name__ for layer in sublayers(model))
    depth = None if graph is None else _quietly(depth_of, graph)
    names = ("depth", "skips", "plain_depth", "batch_normalizations_on_plain")
    return {
        "outputs": _quietly(_outputs, model, graph, layers) or [],
        "inputs": _quietly(_inputs, model, graph, layers) or [],
        "optimizer": _optimizer(model),
        "precision": model.dtype_policy.name,
        **{name: None if depth is None else getattr(depth, name) for name in names},
        "vector_batch_normalizations": sum(map(_normalizes_vectors, layers)),
        "normalizations": {kind: count for kind, count in kinds.items() if kind in NORMALIZATIONS},
        "kinds": dict(kinds),
        "masked": "Masking" in kinds or any(getattr(layer, "mask_zero", False) for layer in layers),
        "subclassed": graph is None,
        "own_train_step": has_own_train_step(model),
        "own_loss": type(model).compute_loss is not keras.Model.compute_loss,
    }


def _quietly(read: Any, *arguments: Any) -> Any:
    """Return None where a model is built in a way that cannot be read; a probe does not raise."""
    try:
        return read(*arguments)
    except Exception:
        logger.debug("%s could not read %r.", read.__name__, arguments[0], exc_info=True)
        return None


def _outputs(model: keras.Model, graph: ModelGraph | None, layers: list[Any]) -> list[dict[str, Any]]:
    ends = [] if graph is None else list(graph.outputs)
    compiled = losses_of(model, len(ends) or 1)
    count = max(len(ends), len(compiled), 1)
    shapes = _shapes(model, "outputs", count)
    names = list(getattr(model, "output_names", None) or [])
    found = []
    for place in range(count):
        loss = compiled[place] if place < len(compiled) else OutputLoss(None, place, None)
        if graph is not None:
            activations = last_activations(graph, ends[place])
            last = graph.nodes[ends[place]].operation
        else:
            last = next((layer for layer in reversed(layers) if activation_of(layer) is not None), None)
            activations = [activation_of(last) if last is not None and count == 1 else UNKNOWN]
        shape = shapes[place]
        units = shape[-1] if shape else getattr(last, "units", None)
        found.append(
            {
                "name": names[place] if place < len(names) else getattr(last, "name", f"output_{place}"),
                "units": units,
                "shape": shape,
                "activation": activations[0],
                "activations": activations,
                "certain": graph is not None and UNKNOWN not in activations,
                "target": loss.target,
                **describe_loss(loss.loss, one_unit=units == 1),
            }
        )
    return found


def _inputs(model: keras.Model, graph: ModelGraph | None, layers: list[Any]) -> list[dict[str, Any]]:
    if graph is None:
        return [_first_met(layers)]
    shapes = _shapes(model, "inputs", len(graph.inputs))
    return [
        {"name": graph.nodes[place].operation.name, "shape": shape, **behind_input(graph, place)}
        for place, shape in zip(graph.inputs, shapes, strict=True)
    ]


def _first_met(layers: list[Any]) -> dict[str, Any]:
    """Return what the input of a subclassed model probably meets: its layers in the order of their attachment."""
    scaling = None
    for layer in layers:
        if is_weighted(layer) or type(layer).__name__ == "Embedding":
            return {"name": None, "shape": None, "normalized": scaling, "first_kind": type(layer).__name__}
        if type(layer).__name__ in INPUT_SCALINGS:
            scaling = type(layer).__name__
    return {"name": None, "shape": None, "normalized": scaling, "first_kind": None}


def _shapes(model: keras.Model, which: str, count: int) -> list[list[int | None] | None]:
    try:
        tensors = list(getattr(model, which))
    except (AttributeError, TypeError, ValueError):
        tensors = []
    shapes = [None if tensor is None else [*tensor.shape[1:]] for tensor in tensors]
    return [shapes[place] if place < len(shapes) else None for place in range(count)]


def _optimizer(model: keras.Model) -> dict[str, Any]:
    if getattr(model, "optimizer", None) is None:
        return {}
    run = _quietly(lambda: describe_run(model, [], names=[]))
    if run is None:
        return {"name": type(model.optimizer).__name__}
    config = run["optimizer"]
    return {
        **config,
        "schedule": isinstance(config.get("learning_rate"), dict),
        "learning_rate": run["learning_rate"],
        "nonfinite_slots": [slot.path for slot in model.optimizer.variables if not _is_finite(slot)][:SLOTS_NAMED],
    }


def _is_finite(variable: Any) -> bool:
    value = tf.convert_to_tensor(variable)
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))


def _normalizes_vectors(layer: keras.layers.Layer) -> bool:
    """Say whether a BatchNormalization has no positions to count beside the samples."""
    return type(layer).__name__ == "BatchNormalization" and getattr(layer.input_spec, "ndim", None) == 2
