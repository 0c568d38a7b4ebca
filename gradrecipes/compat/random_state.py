"""The private names of Keras and TensorFlow that hold their random states; a test fails when one moves."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
from keras.src.backend.common import global_state
from tensorflow.python.eager import context as tensorflow_context
from tensorflow.python.ops import stateful_random_ops


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
    name = "global_seed_generator"
    generator = global_state.get_global_attribute(name)
    before = None if generator is None else np.array(generator.state)
    try:
        yield
    finally:
        if generator is None:
            global_state.set_global_attribute(name, None)
        else:
            generator.state.assign(before)


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
