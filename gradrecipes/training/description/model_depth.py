"""How deep a net is, and how much of that depth the gradient must cross without a skip connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradrecipes.training.description.model_graph import MERGES, ModelGraph

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


def depth_of(graph: ModelGraph) -> Depth:
    """Return the depth of a net.

    A skip connection is a way around: where branches that leave one node meet again, all that lies off the branch
    with the fewest weighted layers is passed over. Towers that start from inputs of their own pass over nothing.

    Example:
        >>> from gradrecipes.training.description.model_graph import model_graph
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


def _gates(graph: ModelGraph) -> list[int]:
    """Return for each node the last one that every path from the inputs to it crosses (its immediate dominator)."""
    gates: list[int] = []
    level: list[int] = []

    def above(place: int) -> int:
        return _SOURCE if place == _SOURCE else gates[place]

    def height(place: int) -> int:
        return -1 if place == _SOURCE else level[place]

    for node in graph.nodes:
        parents = list(dict.fromkeys(node.parents))
        gate = parents[0] if parents else _SOURCE
        for parent in parents[1:]:
            other = parent
            while gate != other:
                if height(gate) >= height(other):
                    gate = above(gate)
                else:
                    other = above(other)
        gates.append(gate)
        level.append(height(gate) + 1)
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
