"""Leave everybody's random numbers as they were: Python's, numpy's, TensorFlow's and Keras' own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np

from gradrecipes.compat.random_state import eager_random_kept, global_seed_kept


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Put the global random states back after the `with` block, whatever was drawn in it.

    Example:
        >>> import random
        >>> random.seed(1)
        >>> with random_numbers_kept():
        ...     first = random.random()
        >>> first == random.random()
        True
    """
    python, numpy = random.getstate(), np.random.get_state()
    with global_seed_kept(), eager_random_kept():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
