"""Leave everybody's random numbers as they were: Python's, numpy's, TensorFlow's and Keras' own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from gradrecipes.compat.random_state import eager_random_kept, global_generator_kept, global_seed_kept

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
