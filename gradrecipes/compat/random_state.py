"""Leave random numbers as they were: those of Python, numpy, TensorFlow and Keras, by private names where needed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.eager import context as tensorflow_context
from tensorflow.python.ops import stateful_random_ops

SEED_GENERATOR, RANDOM_SEED = "global_seed_generator", "global_random_seed"


@contextlib.contextmanager
def eager_random_kept() -> Iterator[None]:
    """Let eager random operations be seeded from elsewhere meanwhile.

    To set the generator back would not do: an operation of the same seeds goes on where the earlier one ended.
    """
    context = tensorflow_context.context()
    before = getattr(context, "_rng", None)
    if before is not None:
        context._rng = random.Random("elsewhere")
    try:
        yield
    finally:
        if before is not None:
            context._rng = before


@contextlib.contextmanager
def global_seed_kept() -> Iterator[None]:
    """Put back the seed that layers without one of their own draw from; one that came into being is forgotten."""
    generator = global_state.get_global_attribute(SEED_GENERATOR)
    seed = global_state.get_global_attribute(RANDOM_SEED)
    before = None if generator is None else np.array(generator.state)
    try:
        yield
    finally:
        global_state.set_global_attribute(RANDOM_SEED, seed)
        global_state.set_global_attribute(SEED_GENERATOR, generator)
        if generator is not None:
            generator.state.assign(before)


def seed_all(seed: int) -> None:
    """Seed Python, numpy, TensorFlow and Keras, whose own generator `set_random_seed` of Keras 3.7 leaves alone."""
    keras.utils.set_random_seed(seed)
    global_state.set_global_attribute(SEED_GENERATOR, None)


@contextlib.contextmanager
def global_generator_kept() -> Iterator[None]:
    """Put back TensorFlow's global generator; one that came into being is forgotten."""
    before = stateful_random_ops.global_generator
    state = None if before is None else np.array(before.state)
    try:
        yield
    finally:
        stateful_random_ops.global_generator = before
        if before is not None:
            before.state.assign(state)


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


@contextlib.contextmanager
def tensorflow_seeded(seed: int = 0) -> Iterator[None]:
    """Let TensorFlow draw the same numbers in each `with` block, and Keras; those of numpy and Python go on."""
    with global_seed_kept(), global_tensorflow_seed_kept():
        tf.random.set_seed(seed)
        yield


def _is_seeded(operation: tf.Operation) -> bool:
    return operation.op_def.is_stateful and any(attribute.name == "seed2" for attribute in operation.op_def.attr)


@contextlib.contextmanager
def global_tensorflow_seed_kept() -> Iterator[None]:
    """Put TensorFlow's global seed back after the `with` block."""
    context = tensorflow_context.context()
    before = context._seed
    try:
        yield
    finally:
        context._seed = before


GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, tf.random.Generator)


@contextlib.contextmanager
def random_numbers_kept(*owners: Any) -> Iterator[None]:
    """Put the random states back after the `with` block, whatever was drawn in it: global ones, and those of objects.

    Args:
        owners: Objects, such as a model and its layers, whose attributes may be generators of Python, numpy or
            TensorFlow.

    Example:
        >>> import random
        >>> random.seed(1)
        >>> with random_numbers_kept():
        ...     first = random.random()
        >>> first == random.random()
        True
    """
    python, numpy = random.getstate(), np.random.get_state()
    held = [(one, _state_of(one)) for owner in owners for one in vars(owner).values() if isinstance(one, GENERATORS)]
    with global_seed_kept(), eager_random_kept(), global_generator_kept():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for generator, state in held:
                _put_back(generator, state)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state() if isinstance(generator, np.random.RandomState) else np.array(generator.state)


def _put_back(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.state.assign(state)
