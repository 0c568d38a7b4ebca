"""What a model's inputs meet first, and how its outputs leave it, beside the losses on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.core.trace.description import InputDescription, OutputDescription, Shape
from gradrecipes.training.description.describe_loss import OutputLoss, describe_loss, losses_of
from gradrecipes.training.description.model_graph import ModelGraph, is_weighted
from gradrecipes.training.description.output_head import (
    INPUT_SCALINGS,
    UNKNOWN,
    activation_of,
    behind_input,
    first_layers,
    last_activations,
)

LOOKUPS = {"Embedding", "StringLookup", "IntegerLookup", "Hashing", "CategoryEncoding", "TextVectorization"}


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
                **describe_loss(loss.loss, one_unit=units == 1),
            )
        )
    return tuple(found)


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
