"""The user's model as a rescue sees it: read once, never written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import compile_arguments, has_own_train_step, sublayers
from gradrecipes.rescue.layer_edits import RECURRENT
from gradrecipes.training.description.model_graph import (
    ACTIVATION_LAYERS,
    NORMALIZATIONS,
    ModelGraph,
    activation_of,
    model_graph,
)

MIN_ENTRIES = 32  # entries of a weight below which its distribution says nothing
UNLIKE_ITS_INITIALIZER = 1e-6  # two-sided Kolmogorov-Smirnov p of a weight against a fresh draw
USUAL_SPREAD = (0.05, 20.0)  # spread of a weight over that of a fresh draw; trained weights stay within
GATES = ("Multiply",)  # an activation that feeds one is a gate, not a nonlinearity between layers


@dataclass(frozen=True, eq=False)
class Original:
    """Hold the user's model and which of its layers play which part.

    Args:
        model: Built and compiled; read only.
        surgical: Whether it is a Sequential or Functional model that Keras can build again layer by layer.
        wrappable: Whether scaling can be put around it.
        hidden: Names of weighted layers that no output comes from directly.
        heads: Names of the weighted layers that the outputs come from.
        tail: Names of the layers between a head and its output.
        activations: Names of the hidden layers whose activation may be exchanged, and of activation layers.
        normalizations: Names of normalization layers.
        recurrent: Names of recurrent layers.
        kept: Names of layers whose weights are frozen or pretrained.
    """

    model: keras.Model
    surgical: bool
    wrappable: bool
    hidden: frozenset[str] = frozenset()
    heads: frozenset[str] = frozenset()
    tail: frozenset[str] = frozenset()
    activations: frozenset[str] = frozenset()
    normalizations: frozenset[str] = frozenset()
    recurrent: frozenset[str] = frozenset()
    kept: frozenset[str] = field(default_factory=frozenset)


def read_original(model: keras.Model) -> Original:
    """Return what a rescue needs to know of a built model."""
    own_step = has_own_train_step(model)
    plain = not own_step and type(model).compile is keras.Model.compile and bool(compile_arguments(model))
    plain = plain and type(model).compute_loss is keras.Model.compute_loss
    kept = frozenset(layer.name for layer in sublayers(model) if _keeps_weights(layer))
    graph = model_graph(model) if plain and _is_graph(model) else None
    if graph is None or not model.inputs:
        return Original(model, surgical=False, wrappable=plain, kept=kept)
    heads, tail = _heads(graph)
    children = graph.children
    hidden, activations, normalizations, recurrent = set(), set(), set(), set()
    for place, node in enumerate(graph.nodes):
        name, layer = node.operation.name, node.operation
        if name in heads or name in tail:
            continue
        if node.kind in NORMALIZATIONS:
            normalizations.add(name)
        if node.kind in RECURRENT or node.kind == "Bidirectional":
            recurrent.add(name)
        if node.weighted:
            hidden.add(name)
        gate = any(graph.nodes[child].kind in GATES for child in children[place])
        bends = activation_of(layer) not in (None, "linear", "unknown", "softmax")
        if bends and not gate and name not in recurrent and (node.weighted or node.kind in ACTIVATION_LAYERS):
            activations.add(name)
    return Original(
        model,
        surgical=True,
        wrappable=True,
        hidden=frozenset(hidden),
        heads=frozenset(heads),
        tail=frozenset(tail),
        activations=frozenset(activations),
        normalizations=frozenset(normalizations),
        recurrent=frozenset(recurrent),
        kept=kept,
    )


def _is_graph(model: keras.Model) -> bool:
    """Return whether Keras' own call runs the graph of the model: a subclass may have a call of its own."""
    return isinstance(model, keras.Sequential) or type(model).call.__module__.startswith("keras.")


def _heads(graph: ModelGraph) -> tuple[set[str], set[str]]:
    heads: set[str] = set()
    tail: set[str] = set()
    for place in graph.outputs:
        while True:
            node = graph.nodes[place]
            if node.weighted:
                heads.add(node.operation.name)
                break
            if len(node.parents) != 1:
                break
            tail.add(node.operation.name)
            place = node.parents[0]
    return heads, tail


def _keeps_weights(layer: keras.layers.Layer) -> bool:
    """Return whether a layer's weights are not as its initializers draw them: frozen, or loaded from elsewhere.

    Weights that are far too large or too small are taken for a mistake, which is what is to be repaired.
    """
    own = [weight for weight in layer.weights if len(weight.shape) >= 2]
    if not own or sublayers(layer):
        return False
    if not layer.trainable:
        return True
    for name in ("kernel", "embeddings"):
        initializer, weight = getattr(layer, f"{name}_initializer", None), getattr(layer, name, None)
        if weight is None or not isinstance(initializer, keras.initializers.Initializer):
            continue
        values = np.asarray(weight, np.float64).ravel()
        if len(values) < MIN_ENTRIES or not np.isfinite(values).all():
            continue
        drawn = _drawn(initializer, weight.shape)
        if drawn is None:
            continue
        ratio = values.std() / max(drawn.std(), np.finfo(np.float32).tiny)
        if USUAL_SPREAD[0] < ratio < USUAL_SPREAD[1] and _different(values, drawn) < UNLIKE_ITS_INITIALIZER:
            return True
    return False


def _drawn(initializer: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        fresh = type(initializer).from_config(initializer.get_config())
        return np.asarray(fresh(tuple(shape), dtype="float32"), np.float64).ravel()
    except Exception:  # an initializer of the user's own may want what is not known here
        return None


def _different(one: np.ndarray, other: np.ndarray) -> float:
    """Return the p of the two-sample Kolmogorov-Smirnov test, by its limiting distribution."""
    one, other = np.sort(one), np.sort(other)
    both = np.concatenate([one, other])
    apart = np.abs(
        np.searchsorted(one, both, "right") / len(one) - np.searchsorted(other, both, "right") / len(other)
    ).max()
    size = len(one) * len(other) / (len(one) + len(other))
    return float(min(1.0, 2.0 * np.exp(-2.0 * size * apart**2)))
