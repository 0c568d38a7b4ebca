"""Find the random operations that keep a state of their own, in the graph in which they stand."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def draws_by_itself(graph: Any) -> bool:
    """Return whether a graph holds seeded operations such as `tf.random.normal` and `tf.nn.dropout`.

    Each goes on from its own last number, and a second graph of the same step begins anew. Keras' layers draw from
    variables, which all graphs share.

    Args:
        graph: What `current_graph` returned.
    """
    if not isinstance(graph, tf.Graph):
        return False
    operations = graph.get_operations()
    if any(map(_is_seeded, {operation.type: operation for operation in operations}.values())):
        return any(
            operation.get_attr("seed") or operation.get_attr("seed2") for operation in filter(_is_seeded, operations)
        )
    if not any(operation.type in ("StatefulPartitionedCall", "If", "While", "Case") for operation in operations):
        return False
    inner = [node for function in graph.as_graph_def().library.function for node in function.node_def]
    return any("seed2" in node.attr and (node.attr["seed"].i or node.attr["seed2"].i) for node in inner)


def _is_seeded(operation: tf.Operation) -> bool:
    return operation.op_def.is_stateful and any(attribute.name == "seed2" for attribute in operation.op_def.attr)
