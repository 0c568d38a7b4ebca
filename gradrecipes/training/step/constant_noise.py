"""Find noise that the graph of a step draws with a constant seed, and so the same at each run."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from gradrecipes.training.step.loss_terms import ancestors

NOISE = {f"Stateless{kind}V2" for kind in ("RandomNormal", "RandomUniform", "TruncatedNormal")}
MIXING = {"Mul", "AddV2", "Add", "Sub", "RealDiv", "Greater", "GreaterEqual", "Less", "LessEqual", "Select", "SelectV2"}
PASSED_ON = {"Cast", "Identity", "Floor", "Reshape", "Sqrt", "Log", "Exp", "Neg", "Square", "LogicalNot"} | MIXING
GIVEN = {"ReadVariableOp", "ResourceGather", "Placeholder", "IteratorGetNext", "VarHandleOp"}


def constant_noise(graph: Any) -> str:
    """Return the name of an operation that draws the same noise at each run of a graph, for each sample; or "".

    Its seed is a constant, as that of `keras.random.normal(shape, seed=1)`, and what it draws is added to the samples
    of a batch, or multiplied with them. A matrix that the samples are multiplied by may be fixed on purpose.

    Args:
        graph: Of a step; of anything else there is none.
    """
    for operation in graph.get_operations() if isinstance(graph, tf.Graph) else ():
        if operation.type in NOISE and not _is_given(operation.inputs[1]) and _is_mixed(operation.outputs[0]):
            return str(operation.type)
    return ""


def _is_given(tensor: tf.Tensor) -> bool:
    """Return whether a tensor comes from data or variables."""
    return tensor.op.type in GIVEN or any(made.type in GIVEN for made in ancestors([tensor]))


def _is_mixed(noise: tf.Tensor) -> bool:
    """Return whether noise meets, entry by entry, something else that depends on data."""
    open_, seen = [noise], {noise.op.name}
    while open_:
        tensor = open_.pop()
        for used in tensor.consumers():
            others = [one for one in used.inputs if one is not tensor]
            if used.type in MIXING and any(_for_each_sample(tensor, one) and _is_given(one) for one in others):
                return True
            if used.type in PASSED_ON and used.name not in seen:
                seen.add(used.name)
                open_ += used.outputs
    return False


def _for_each_sample(noise: tf.Tensor, other: tf.Tensor) -> bool:
    """Return whether noise has an entry of its own for each sample of another tensor, and is not broadcast to them."""
    rank = noise.shape.rank
    return bool(rank) and rank == other.shape.rank and noise.shape[0] != 1 and noise.shape[0] == other.shape[0]
