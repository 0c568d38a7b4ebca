"""Walk a net from its inputs to its outputs: which layer feeds which, nested models opened up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from gradrecipes.compat.keras_private import inputs_of, made_by, sublayers

MERGES = {"Add", "Concatenate", "Average", "Maximum", "Minimum", "Subtract", "Multiply", "Stack", "Where"}
NORMALIZATIONS = {
    "BatchNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "UnitNormalization",
}
# Weights of theirs do not mix the inputs of a unit, or are no product with them.
_NO_PRODUCTS = NORMALIZATIONS | {"Normalization", "Embedding", "PReLU", "InputLayer", "SpectralNormalization"}


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
        """Whether it multiplies what comes in by a matrix of weights."""
        return is_weighted(self.operation)


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

    def children(self) -> list[list[int]]:
        """Return for each node the places of those that it feeds."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for place, node in enumerate(self.nodes):
            for parent in dict.fromkeys(node.parents):
                found[parent].append(place)
        return found


def is_weighted(layer: Any) -> bool:
    """Return whether a layer multiplies its inputs by a matrix; embeddings look rows up, normalizations only scale."""
    if type(layer).__name__ in _NO_PRODUCTS or not isinstance(layer, keras.layers.Layer):
        return False
    if layer.weights:
        return any(len(weight.shape) >= 2 for weight in layer.weights)
    return not layer.built and (hasattr(layer, "units") or hasattr(layer, "filters"))


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
    try:
        places = building.place(outputs, {})
    except (AttributeError, IndexError, KeyError):  # a graph made by hand, in a way that Keras does not document
        return None
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


def innermost(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers of a model that hold no others, in the order in which they were attached."""
    return [layer for layer in sublayers(model) if not sublayers(layer)]
