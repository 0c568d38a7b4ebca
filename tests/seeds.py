"""Seeds as a process begins with them, in every Keras that pyproject.toml admits."""

from __future__ import annotations

import keras
from keras.src.backend.common import global_state


def begin_anew(seed: int = 0) -> None:
    """Seed Python, numpy, TensorFlow and Keras, whose own generator `set_random_seed` of Keras 3.7 leaves alone."""
    keras.utils.set_random_seed(seed)
    global_state.set_global_attribute("global_seed_generator", None)
