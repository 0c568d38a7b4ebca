"""What stands last and first in a net: the activation that its outputs leave through, what its inputs meet."""

from __future__ import annotations

from typing import Any

import keras

from gradrecipes.training.description.describe_layer import ACTIVATION_LAYERS, is_custom
from gradrecipes.training.description.model_graph import MERGES, NORMALIZATIONS, ModelGraph, Node, is_weighted

UNKNOWN = "unknown"
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
_FUNCTIONS = {
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Relu": "relu",
    "Relu6": "relu6",
    "LogSoftmax": "log_softmax",
    "Softplus": "softplus",
    "Exp": "exponential",
    "HardSigmoid": "hard_sigmoid",
    "Elu": "elu",
    "Selu": "selu",
    "Gelu": "gelu",
    "Silu": "silu",
}


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
        own = activation_of(node.operation)
        if own is None and (node.kind == "UnitNormalization" or (node.weighted and is_custom(node.operation))):
            own = UNKNOWN  # bounded by its length, or whatever it does behind its weights
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


def activation_of(layer: Any) -> str | None:
    """Return the Keras name of a layer's activation; None for what has none, `"unknown"` for a function without name.

    Recurrent layers give their output through the activation too, times a gate between 0 and 1.
    """
    kind = type(layer).__name__
    if kind in ACTIVATION_LAYERS:
        return ACTIVATION_LAYERS[kind]
    if kind in _FUNCTIONS:
        return _FUNCTIONS[kind]
    for wrapped in ("layer", "forward_layer"):  # TimeDistributed, Bidirectional, SpectralNormalization
        inner = getattr(layer, wrapped, None)
        if inner is not None and hasattr(inner, "name"):
            return activation_of(inner)
    activation = getattr(layer, "activation", None)
    if activation is None:
        return "linear" if is_weighted(layer) and hasattr(layer, "kernel") else None
    name = getattr(activation, "__name__", None) or type(activation).__name__
    return name if name.isidentifier() else UNKNOWN


def behind_input(graph: ModelGraph, place: int) -> dict[str, str | None]:
    """Return what an input meets: the scaling that stands before all weights, and the first layer with weights."""
    children = graph.children()
    scaling = None
    seen = {place}
    front = [place]
    while front:
        place = front.pop(0)
        node = graph.nodes[place]
        if node.kind in INPUT_SCALINGS and scaling is None and _scales(node.operation):
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


def first_layers(graph: ModelGraph, place: int) -> list[Any]:
    """Return the layers and operations that read an input's values, behind what only moves them about."""
    children = graph.children()
    found: list[Any] = []
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
                found.append(graph.nodes[child].operation)
    return found


def _scales(layer: Any) -> bool:
    """Return whether a scaling layer does anything: a Normalization that was never adapted passes all on as it is."""
    if type(layer).__name__ != "Normalization" or getattr(layer, "input_mean", None) is not None:
        return True
    mean, variance = getattr(layer, "adapt_mean", None), getattr(layer, "adapt_variance", None)
    if mean is None or variance is None:
        return False
    mean, variance = (keras.ops.convert_to_numpy(part) for part in (mean, variance))
    return bool((mean != 0).any() or (variance != 1).any())
