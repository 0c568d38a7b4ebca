"""Read the layers of a net, and walk it from its inputs to its outputs: which layer feeds which, and how deep."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import keras
import numpy as np

from gradrecipes.compat.keras_private import inputs_of, made_by
from gradrecipes.core.trace.description import LayerDescription

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

MERGES = {"Add", "Concatenate", "Average", "Maximum", "Minimum", "Subtract", "Multiply", "Stack", "Where"}
NORMALIZATIONS = {f"{kind}Normalization" for kind in ("Batch", "Layer", "Group", "RMS", "Unit")}
# Weights of theirs do not mix the inputs of a unit, or are no product with them.
_NO_PRODUCTS = NORMALIZATIONS | {"Normalization", "Embedding", "PReLU", "InputLayer", "SpectralNormalization"}
ACTIVATION_LAYERS = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "ELU": "elu", "PReLU": "prelu", "Softmax": "softmax"}
UNKNOWN = "unknown"
# Keras' operations that are activations.
_FUNCTIONS = {"LogSoftmax": "log_softmax", "Exp": "exponential", "HardSigmoid": "hard_sigmoid"}
_FUNCTIONS |= {
    name: name.lower() for name in ("Sigmoid", "Tanh", "Relu", "Relu6", "Softplus", "Elu", "Selu", "Gelu", "Silu")
}


def none_if_unreadable(read: Callable[P, T]) -> Callable[P, T | None]:
    """Return None where a model is built in a way that cannot be read: a description does not raise."""

    @functools.wraps(read)
    def read_or_none(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return read(*args, **kwargs)
        except Exception:
            logger.debug("%s could not read a part of the model.", read.__name__, exc_info=True)
            return None

    return read_or_none


def describe_layer(layer: keras.layers.Layer, *, name: str | None = None) -> LayerDescription:
    """Return what a layer is: name and class alone where it cannot be read.

    The spread of its weights is added by the first sample of a training.

    Args:
        layer: The layer.
        name: Its name in the record; that of the layer by default.

    Example:
        >>> describe_layer(keras.layers.Dense(3, activation="relu", name="hidden")).activation
        'relu'
    """
    name, kind = layer.name if name is None else name, type(layer).__name__
    return _read(layer, name, kind) or LayerDescription(name, kind)


@none_if_unreadable
def _read(layer: keras.layers.Layer, name: str, kind: str) -> LayerDescription:
    kernel = kernel_of(layer)
    initializer = getattr(layer, "kernel_initializer", None)
    return LayerDescription(
        name=name,
        kind=kind,
        activation=_own_activation(layer),
        initializer=None if initializer is None else type(initializer).__name__,
        fan_in=None if kernel is None else int(np.prod(kernel.shape[:-1])),
        units=None if kernel is None else int(kernel.shape[-1]),
        parameters=int(sum(np.prod(variable.shape) for variable in layer.trainable_variables)),
        trainable=bool(layer.trainable),
        custom=is_custom(layer),
    )


def is_custom(layer: Any) -> bool:
    """Return whether the class of a layer is not one of Keras'."""
    return type(layer).__module__.split(".")[0] not in ("keras", "keras_hub", "keras_nlp", "keras_cv")


def kernel_of(layer: keras.layers.Layer) -> Any:
    """Return the weights that a layer's inputs are multiplied by, or None."""
    kernel = getattr(layer, "kernel", None)
    return kernel if kernel is not None and len(kernel.shape) >= 2 else None


def _own_activation(layer: Any) -> str | None:
    """Return the name of the activation that a layer itself applies, as Keras or Python calls it, or None."""
    if type(layer).__name__ in ACTIVATION_LAYERS:
        return ACTIVATION_LAYERS[type(layer).__name__]
    activation = getattr(layer, "activation", None)
    return None if activation is None else getattr(activation, "__name__", type(activation).__name__)


def activation_of(layer: Any) -> str | None:
    """Return the activation through which the values of a call go: that of the operation, or of the layer it wraps.

    `"linear"` for a layer that only multiplies by weights, None for what has no activation, `"unknown"` for a function
    without a name. Recurrent layers give their output through the activation too, times a gate between 0 and 1.
    """
    if type(layer).__name__ in _FUNCTIONS:
        return _FUNCTIONS[type(layer).__name__]
    for wrapped in ("layer", "forward_layer"):  # TimeDistributed, Bidirectional, SpectralNormalization
        inner = getattr(layer, wrapped, None)
        if inner is not None and hasattr(inner, "name"):
            return activation_of(inner)
    own = _own_activation(layer)
    if own is None:
        return "linear" if is_weighted(layer) and hasattr(layer, "kernel") else None
    return own if own.isidentifier() else UNKNOWN


def is_weighted(layer: Any) -> bool:
    """Return whether a layer multiplies its inputs by a matrix; embeddings look rows up, normalizations only scale."""
    if type(layer).__name__ in _NO_PRODUCTS or not isinstance(layer, keras.layers.Layer):
        return False
    if layer.weights:
        return any(len(weight.shape) >= 2 for weight in layer.weights)
    return not layer.built and (hasattr(layer, "units") or hasattr(layer, "filters"))


@dataclass(frozen=True, eq=False)
class Node:
    """One call of one layer or operation.

    Args:
        operation: The layer, or the Keras operation.
        parents: Places of the nodes that feed it, in the order of its arguments.
    """

    operation: Any
    parents: tuple[int, ...]

    @property
    def kind(self) -> str:
        """Name of its class."""
        return type(self.operation).__name__

    @property
    def weighted(self) -> bool:
        """Whether it multiplies its inputs by a matrix of weights."""
        return is_weighted(self.operation)

    @property
    def activation(self) -> str | None:
        """Keras' name of its activation, see `activation_of`."""
        return activation_of(self.operation)

    @property
    def opaque(self) -> bool:
        """Whether its values may be bounded without an activation: by a unit length, or behind custom weights."""
        return self.kind == "UnitNormalization" or (self.weighted and is_custom(self.operation))

    @property
    def scales(self) -> bool:
        """Whether a layer that normalizes or rescales does anything: an unadapted Normalization does not."""
        mean = getattr(self.operation, "adapt_mean", None)
        variance = getattr(self.operation, "adapt_variance", None)
        if self.kind != "Normalization" or getattr(self.operation, "input_mean", None) is not None:
            return True
        if mean is None or variance is None:
            return False
        return bool(np.any(np.asarray(mean) != 0) or np.any(np.asarray(variance) != 1))


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """Hold the calls of a net in an order in which each comes after what feeds it.

    Args:
        nodes: The calls.
        inputs: Places of the inputs, in the order of `model.inputs`.
        outputs: Places of the outputs, in the order of `model.outputs`.
    """

    nodes: Sequence[Node]
    inputs: Sequence[int]
    outputs: Sequence[int]

    @functools.cached_property
    def children(self) -> list[list[int]]:
        """For each node the places of those that it feeds."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for place, node in enumerate(self.nodes):
            for parent in dict.fromkeys(node.parents):
                found[parent].append(place)
        return found


@none_if_unreadable
def model_graph(model: keras.Model) -> ModelGraph | None:
    """Return the graph of a Sequential or functional model; None for a subclassed one, whose graph is its code.

    Example:
        >>> inputs = keras.Input((4,))
        >>> hidden = keras.layers.Dense(4)(inputs)
        >>> graph = model_graph(keras.Model(inputs, keras.layers.Add()([inputs, hidden])))
        >>> [(node.kind, node.parents) for node in graph.nodes]
        [('InputLayer', ()), ('Dense', (0,)), ('Add', (0, 1))]
    """
    inputs, outputs = _ends(model)
    if outputs is None:
        return _chain(model) if isinstance(model, keras.Sequential) and model.layers else None
    building = _Building()
    places = building.place(outputs, {})
    starts = [building.known.get(_key(tensor)) for tensor in inputs]
    return ModelGraph(building.nodes, [place for place in starts if place is not None], places)


def _chain(model: keras.Sequential) -> ModelGraph:
    """Return the graph of a Sequential that does not know its input yet."""
    nodes = [Node(layer, (place - 1,) if place else ()) for place, layer in enumerate(model.layers)]
    return ModelGraph(nodes, [0], [len(nodes) - 1])


def _ends(model: Any) -> tuple[list[Any], list[Any] | None]:
    """Return the symbolic inputs and outputs of a model, or None where it has none."""
    if not isinstance(model, keras.Model):
        return [], None
    try:
        inputs, outputs = model.inputs, model.outputs
    except (AttributeError, ValueError):
        return [], None
    if not inputs or not outputs or any(made_by(tensor) is None for tensor in [*inputs, *outputs]):
        return [], None
    return list(inputs), list(outputs)


def _key(tensor: Any) -> tuple[int, int, int]:
    made = made_by(tensor)
    return id(made.operation), made.node_index, made.tensor_index


@dataclass
class _Building:
    """Turn symbolic tensors into nodes, one call after the other, without recursion over depth."""

    nodes: list[Node] = field(default_factory=list)
    known: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def place(self, outputs: Sequence[Any], given: dict[tuple[int, int, int], int]) -> list[int]:
        """Return the places of tensors; `given` holds those of a nested model's inputs."""
        known = dict(given)
        calls: dict[tuple[int, int], int] = {}  # several outputs of one call are one node
        pending = list(outputs)
        while pending:
            tensor = pending[-1]
            if _key(tensor) in known:
                pending.pop()
                continue
            made = made_by(tensor)
            feeding = inputs_of(made)
            missing = [one for one in feeding if _key(one) not in known]
            if missing:
                pending += reversed(missing)
                continue
            parents = [known[_key(one)] for one in feeding]
            inner_inputs, inner_outputs = _ends(made.operation)
            if inner_outputs is not None and len(inner_inputs) == len(parents):
                inner = dict(zip(map(_key, inner_inputs), parents, strict=True))
                for index, place in enumerate(self.place(inner_outputs, inner)):
                    known[(id(made.operation), made.node_index, index)] = place
                continue
            call = (id(made.operation), made.node_index)
            if call not in calls:
                calls[call] = len(self.nodes)
                self.nodes.append(Node(made.operation, tuple(parents)))
            known[_key(tensor)] = calls[call]
        if not given:
            self.known = known
        return [known[_key(tensor)] for tensor in outputs]


_SOURCE = -1  # stands before all inputs


@dataclass(frozen=True)
class Depth:
    """Measure the depth of a net in weighted layers.

    Args:
        depth: On the longest path from an input to an output.
        skips: Merges on that path that a skip connection joins.
        plain_depth: The longest run of weighted layers that no skip connection passes over.
        batch_normalizations_on_plain: BatchNormalization layers in that run.
    """

    depth: int
    skips: int
    plain_depth: int
    batch_normalizations_on_plain: int


@none_if_unreadable
def depth_of(graph: ModelGraph) -> Depth:
    """Return the depth of a net.

    A skip connection is a way around: where branches that leave one node meet again, all that lies off the branch
    with the fewest weighted layers is passed over. Towers that start from inputs of their own pass over nothing.

    Example:
        >>> inputs = keras.Input((4,))
        >>> hidden = keras.layers.Dense(4)(keras.layers.Dense(4)(inputs))
        >>> outputs = keras.layers.Dense(1)(keras.layers.Add()([inputs, hidden]))
        >>> depth_of(model_graph(keras.Model(inputs, outputs)))
        Depth(depth=3, skips=1, plain_depth=1, batch_normalizations_on_plain=0)
    """
    passed_over, joins = _skips(graph)
    depth: list[int] = []
    on_longest: list[int | None] = []  # the parent on the longest path
    run: list[tuple[int, int]] = []  # weighted layers and BatchNormalizations since the last skip
    best = (0, 0)
    for place, node in enumerate(graph.nodes):
        deepest = max(node.parents, key=lambda parent: depth[parent], default=None)
        depth.append((depth[deepest] if deepest is not None else 0) + node.weighted)
        on_longest.append(deepest)
        if place in passed_over or place in joins:
            run.append((0, 0))
            continue
        length, normalizations = max((run[parent] for parent in node.parents), default=(0, 0))
        run.append((length + node.weighted, normalizations + (node.kind == "BatchNormalization")))
        best = max(best, run[-1])
    end = max(graph.outputs, key=lambda place: depth[place])
    skips, place = 0, end
    while place is not None:
        skips += place in joins
        place = on_longest[place]
    return Depth(depth[end], skips, *best)


def _skips(graph: ModelGraph) -> tuple[set[int], set[int]]:
    """Return the nodes that a skip connection passes over, and the merges where one arrives."""
    gates = _gates(graph)
    passed_over: set[int] = set()
    joins: set[int] = set()
    for place, node in enumerate(graph.nodes):
        if len(set(node.parents)) < 2 or node.weighted or node.kind not in MERGES or gates[place] == _SOURCE:
            continue
        between = _between(graph, gates[place], place)
        shortest, up_to, behind = _lengths(graph, gates[place], between, node.parents)
        off = {inner for inner in between if up_to[inner] + behind[inner] > shortest}
        if any(graph.nodes[inner].weighted for inner in off):
            passed_over |= off
            joins.add(place)
    return passed_over, joins


def _gates(graph: ModelGraph) -> dict[int, int]:
    """Return for each node the last one that every path from the inputs to it crosses (its immediate dominator)."""
    gates, level = {_SOURCE: _SOURCE}, {_SOURCE: -1}
    for place, node in enumerate(graph.nodes):
        parents = list(dict.fromkeys(node.parents))
        gate = parents[0] if parents else _SOURCE
        for other in parents[1:]:
            while gate != other:
                if level[gate] >= level[other]:
                    gate = gates[gate]
                else:
                    other = gates[other]
        gates[place], level[place] = gate, level[gate] + 1
    return gates


def _between(graph: ModelGraph, start: int, end: int) -> list[int]:
    """Return the nodes on the paths from `start` to `end`, both left out, in the order of the graph."""
    found: set[int] = set()
    pending = list(graph.nodes[end].parents)
    while pending:
        place = pending.pop()
        if place != start and place not in found:
            found.add(place)
            pending += graph.nodes[place].parents
    return sorted(found)


def _lengths(
    graph: ModelGraph, start: int, between: Sequence[int], ends: Sequence[int]
) -> tuple[int, dict[int, int], dict[int, int]]:
    """Return the fewest weighted layers on a path, and for each node the fewest up to it and from behind it."""
    up_to = {start: 0}
    for place in between:
        node = graph.nodes[place]
        up_to[place] = node.weighted + min(up_to[parent] for parent in node.parents if parent in up_to)
    behind = dict.fromkeys(ends, 0)
    for place in reversed(between):
        if place in behind:
            node = graph.nodes[place]
            for parent in node.parents:
                length = behind[place] + node.weighted
                behind[parent] = min(behind.get(parent, length), length)
    return min(up_to[end] for end in ends), up_to, behind
