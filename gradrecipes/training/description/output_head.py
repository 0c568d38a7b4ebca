"""What stands first and last in a net: what its inputs meet, the activation of each output, and the loss on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import keras

from gradrecipes.compat.keras_private import loss_arguments
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


def describe_loss(loss: Any, *, one_unit: bool = False, sparse: bool = False) -> dict[str, Any]:
    """Return name, class, origin, `from_logits` and settings of a loss, as plain JSON values.

    Args:
        loss: A name, a function or a `keras.Loss`.
        one_unit: Whether the output has a single unit, for the name "crossentropy" leaves the choice to Keras.
        sparse: Whether the targets are whole numbers of another shape than the output, likewise.

    Example:
        >>> describe_loss("mse")["loss"], describe_loss(keras.losses.BinaryCrossentropy())["from_logits"]
        ('mean_squared_error', False)
    """
    if loss is None:
        return {"loss": None, "loss_class": None, "custom": False, "from_logits": None, "config": {}}
    if isinstance(loss, str):
        if loss.lower() in ("crossentropy", "ce"):
            loss = "binary_crossentropy" if one_unit else f"{'sparse_' if sparse else ''}categorical_crossentropy"
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
