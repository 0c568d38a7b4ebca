"""What stands first and last in a net: what its inputs meet, the activation of each output, and the loss on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from gradrecipes.compat.keras_private import loss_arguments
from gradrecipes.core.trace.description import InputDescription, OutputDescription, Shape
from gradrecipes.training.description.model_graph import (
    MERGES,
    NORMALIZATIONS,
    UNKNOWN,
    ModelGraph,
    Node,
    none_if_unreadable,
)

INPUT_SCALINGS = NORMALIZATIONS | {"Normalization", "Rescaling"}
# Operations that scale what comes in, written as `x / 255` or `(x - mean) / std`.
_ARITHMETIC = {"TrueDivide", "Divide", "Multiply", "Subtract", "DivideNoNan", "Normalize", "Log", "Log1p", "Lambda"}
# They move values about, leave some out, or average them: an interval that held before holds after.
_KEEPS_VALUES = {"Reshape", "Flatten", "Dropout", "Permute", "Identity", "Cast", "ActivityRegularization"}
_KEEPS_VALUES |= {"GaussianNoise", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "RepeatVector"}
_KEEPS_VALUES |= {f"{kind}{d}D" for kind in ("Cropping", "UpSampling", "ZeroPadding") for d in (1, 2, 3)}
_KEEPS_VALUES |= {f"{kind}Pooling{d}D" for kind in ("Max", "Average") for d in (1, 2, 3)}
_KEEPS_VALUES |= {f"Global{kind}Pooling{d}D" for kind in ("Max", "Average") for d in (1, 2, 3)}
_KEEPS_VALUES |= {"GetItem", "Squeeze", "ExpandDims", "Transpose", "StopGradient", "Mean", "Max", "Min", "Take"}
_KEEPS_VALUES |= {"Masking", "InputLayer", "Copy"}
_LINEAR_MERGES = {"Add", "Subtract"}


def last_activations(graph: ModelGraph, place: int) -> list[str]:
    """Return the activations that act on an output after the last weighted layer, the last one first.

    `["linear"]` where there is none, `"unknown"` at the end where an operation is not understood.

    Example:
        >>> from gradrecipes.training.description.model_graph import model_graph
        >>> inputs = keras.Input((4,))
        >>> graph = model_graph(keras.Model(inputs, keras.layers.Softmax()(keras.layers.Dense(3)(inputs))))
        >>> last_activations(graph, graph.outputs[0])
        ['softmax']
    """
    found: list[str] = []
    while True:
        node = graph.nodes[place]
        own = UNKNOWN if node.activation is None and node.opaque else node.activation
        if own is not None and own != "linear":
            found.append(own)
        if node.weighted or node.kind in NORMALIZATIONS or own == UNKNOWN or node.kind == "Embedding":
            break
        if own is None and node.kind not in _KEEPS_VALUES:
            found += [] if _stays_linear(graph, node) else [UNKNOWN]
            break
        if not node.parents:
            break
        place = node.parents[0]
    return found or ["linear"]


def _stays_linear(graph: ModelGraph, node: Node) -> bool:
    """Return whether an operation joins outputs of which one is unbounded in both directions: so is then the result."""
    if node.kind not in _LINEAR_MERGES:
        return False
    return any(last_activations(graph, parent) == ["linear"] for parent in node.parents)


def behind_input(graph: ModelGraph, place: int) -> dict[str, str | None]:
    """Return what an input meets: the scaling that stands before all weights, and the first layer with weights."""
    children = graph.children
    scaling = None
    seen = {place}
    front = [place]
    while front:
        place = front.pop(0)
        node = graph.nodes[place]
        if node.kind in INPUT_SCALINGS and scaling is None and node.scales:
            scaling = node.kind
        elif node.kind in _ARITHMETIC and scaling is None:
            scaling = "Rescaling" if node.kind != "Lambda" else "Lambda"
        elif node.weighted or node.kind == "Embedding":
            return {"normalized": scaling, "first_kind": node.kind}
        elif node.kind not in _KEEPS_VALUES | MERGES | INPUT_SCALINGS | _ARITHMETIC and scaling is None:
            scaling = node.kind if node.kind not in ("Activation", "ReLU") else None
        for child in children[place]:
            if child not in seen:
                seen.add(child)
                front.append(child)
    return {"normalized": scaling, "first_kind": None}


def first_kinds(graph: ModelGraph, place: int) -> set[str]:
    """Return the classes of the layers and operations that read an input's values, after those that only move them."""
    children = graph.children
    found: set[str] = set()
    front, seen = [place], {place}
    while front:
        place = front.pop()
        for child in children[place]:
            if child in seen:
                continue
            seen.add(child)
            if graph.nodes[child].kind in _KEEPS_VALUES:
                front.append(child)
            else:
                found.add(graph.nodes[child].kind)
    return found


# Families whose Keras functions take probabilities unless they are told that logits come.
CROSS_ENTROPIES = (
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "sparse_categorical_crossentropy",
)


@dataclass(frozen=True, eq=False)
class OutputLoss:
    """One loss on one output.

    Args:
        loss: What the user gave: a name, a function or a `keras.Loss`; None for an output without loss.
        output: Place of the output among the flattened ones.
        target: Place of its target among the flattened targets, or None.
    """

    loss: Any
    output: int
    target: int | None

    @property
    def about(self) -> dict[str, Any]:
        """What `describe_loss` returns of it."""
        return describe_loss(self.loss)


def losses_of(model: keras.Model, outputs: int) -> list[OutputLoss]:
    """Return the loss of each output, in the order of the flattened outputs; empty without a compiled loss."""
    given = getattr(model, "loss", None)
    if given is None or not getattr(model, "compiled", False):
        return []
    names = list(getattr(model, "output_names", None) or [])
    if isinstance(given, dict):
        keys = names if names and set(given) <= set(names) else sorted(given)
        parts = [given.get(key) for key in keys]
    elif isinstance(given, list | tuple):
        parts = list(given)
    else:
        parts = [given] * max(1, outputs)
    taken, found = 0, []
    partly = sum(part is not None for part in parts) < len(parts)
    for place, part in enumerate(parts):
        # Keras takes one target for each loss where there are as many of them, else one for each output.
        found.append(OutputLoss(part, place, None if part is None else (taken if partly else place)))
        taken += part is not None
    return found


def describe_loss(loss: Any, *, one_unit: bool = False) -> dict[str, Any]:
    """Return name, class, origin, `from_logits` and settings of a loss, as plain JSON values.

    Args:
        loss: A name, a function or a `keras.Loss`.
        one_unit: Whether the output has a single unit, for the name "crossentropy" leaves the choice to Keras.

    Example:
        >>> describe_loss("mse")["loss"], describe_loss(keras.losses.BinaryCrossentropy())["from_logits"]
        ('mean_squared_error', False)
    """
    if loss is None:
        return {"loss": None, "loss_class": None, "custom": False, "from_logits": None, "config": {}}
    if isinstance(loss, str):
        if loss.lower() in ("crossentropy", "ce"):
            loss = "binary_crossentropy" if one_unit else "categorical_crossentropy"
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return {"loss": loss, "loss_class": None, "custom": True, "from_logits": None, "config": {}}
    function = getattr(loss, "fn", loss)
    is_class = isinstance(loss, keras.Loss)
    origin = type(loss) if is_class else function
    custom = not _of_keras(origin) or not _of_keras(function)
    name = getattr(function, "__name__", None) if not is_class or hasattr(loss, "fn") else type(loss).__name__
    settings = loss_arguments(loss)
    from_logits = settings.get("from_logits", getattr(loss, "from_logits", None))
    if from_logits is None and name in CROSS_ENTROPIES and not custom:
        from_logits = False
    if getattr(loss, "reduction", None) == "sum":
        settings["reduction"] = "sum"
    return {
        "loss": name or type(function).__name__,
        "loss_class": type(loss).__name__ if is_class else None,
        "custom": custom,
        "from_logits": None if from_logits is None else bool(from_logits),
        "config": json.loads(json.dumps({key: value for key, value in settings.items() if key != "fn"}, default=str)),
    }


def _of_keras(part: Any) -> bool:
    module = getattr(part, "__module__", None) or type(part).__module__
    return module.split(".")[0] == "keras"


LOOKUPS = {"Embedding", "StringLookup", "IntegerLookup", "Hashing", "CategoryEncoding", "TextVectorization"}


@none_if_unreadable
def describe_outputs(
    model: keras.Model, graph: ModelGraph | None, layers: Sequence[Node], loss_weights: Any = None
) -> tuple[OutputDescription, ...]:
    """Return a description of each output of a model, with the loss on it.

    Args:
        model: The model.
        graph: Its graph; None for a subclassed model, where the activation of the layer attached last stands in for
            that of the output, and `certain` is False.
        layers: Its innermost layers, in the order of their attachment, as nodes.
        loss_weights: What it was compiled with.
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
            node = graph.nodes[ends[place]]
        else:
            node = next((one for one in reversed(layers) if one.activation is not None), None)
            own = None if node is None else node.activation
            activations = [own if own is not None and count == 1 else UNKNOWN]
        last = None if node is None else node.operation
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


@none_if_unreadable
def describe_inputs(
    model: keras.Model, graph: ModelGraph | None, layers: Sequence[Node]
) -> tuple[InputDescription, ...]:
    """Return a description of each input of a model; of a subclassed one, of what its first layers suggest."""
    if graph is None:
        return (_first_met(layers),)
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


def _first_met(layers: Sequence[Node]) -> InputDescription:
    """Return what the input of a subclassed model probably meets: its layers in the order of their attachment."""
    first = next((one for one in layers if one.kind != "InputLayer"), None)
    looked_up = first is not None and first.kind in LOOKUPS
    scaling = None
    for layer in layers:
        if layer.weighted or layer.kind == "Embedding":
            return InputDescription(normalized=scaling, first_kind=layer.kind, looked_up=looked_up)
        if layer.kind in INPUT_SCALINGS:
            scaling = layer.kind
    return InputDescription(normalized=scaling, looked_up=looked_up)


def _only_looked_up(graph: ModelGraph, place: int) -> bool:
    kinds = first_kinds(graph, place)
    return bool(kinds & LOOKUPS) and kinds <= LOOKUPS | {"NotEqual", "Equal"}


def _shapes(model: keras.Model, which: str, count: int) -> list[Shape | None]:
    try:
        tensors = list(getattr(model, which))
    except (AttributeError, TypeError, ValueError):
        tensors = []
    shapes = [None if tensor is None else tuple(tensor.shape[1:]) for tensor in tensors]
    return [shapes[place] if place < len(shapes) else None for place in range(count)]
