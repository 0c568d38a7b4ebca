"""The terms of a loss that a train step adds up by itself, and of which it returns the sum alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

PASSING = {"Identity", "Cast", "Squeeze", "Reshape"}
ADDING = {"Add", "AddV2", "AddN"}
READING = {"ReadVariableOp", "ResourceGather"}


def loss_terms(loss: Any) -> dict[str, tf.Tensor]:
    """Return the terms of a sum by their names, without the factors that multiply them; empty for what is no sum.

    Only those are returned that read weights: constants, and sums over the data alone, are no task of their own.

    Args:
        loss: A scalar of a graph.

    Example:
        >>> weight = tf.Variable(3.0)
        >>> @tf.function
        ... def traced():
        ...     return loss_terms(tf.square(weight) + 1e7 * tf.abs(weight) + 0.5)
        >>> {name: float(term) for name, term in traced().items()}
        {'term 1 of the sum': 9.0, 'term 2 of the sum': 3.0}
    """
    if not tf.is_tensor(loss) or tf.executing_eagerly() or loss.shape.rank != 0:
        return {}
    found = [term for term in _terms(loss) if _reads_weights(term)]
    if len(found) < 2:
        return {}
    return {f"term {number} of the sum": tf.cast(term, tf.float32) for number, term in enumerate(found, start=1)}


def _terms(tensor: tf.Tensor) -> Iterator[tf.Tensor]:
    """Yield the terms in the order in which they are written."""
    made = tensor.op
    scalars = all(part.shape.rank == 0 for part in made.inputs)
    if made.type in PASSING and scalars:
        yield from _terms(made.inputs[0])
    elif made.type in ADDING and scalars:
        for part in made.inputs:
            yield from _terms(part)
    elif made.type == "Mul" and scalars:
        rest = [part for part in made.inputs if part.op.type != "Const"]
        yield from _terms(rest[0]) if len(rest) == 1 else (tensor,)
    else:
        yield tensor


def _reads_weights(tensor: tf.Tensor) -> bool:
    """Return whether a tensor comes from a variable."""
    seen, open_ = set(), [tensor.op]
    while open_:
        made = open_.pop()
        if made.type in READING:
            return True
        for part in made.inputs:
            if part.op.name not in seen:
                seen.add(part.op.name)
                open_.append(part.op)
    return False
