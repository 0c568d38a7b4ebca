"""Seeds for initializers that several layers share."""

from __future__ import annotations

import random
from typing import Any

import keras

LARGEST_SEED = 1_000_000_000  # as Keras draws its own default seeds


def seed_of_this_call(seed: int | keras.random.SeedGenerator | None) -> int | keras.random.SeedGenerator:
    """Return the given seed, or a new one for every call, which `keras.utils.set_random_seed` makes repeatable.

    Keras draws the seed of an unseeded initializer once, when the object is made: layers of one shape that share
    the object start with the same weights.
    """
    return random.randint(1, LARGEST_SEED) if seed is None else seed


def checked_seed(seed: Any) -> int | keras.random.SeedGenerator | None:
    """Return the seed, made from its saved config if need be.

    Raises:
        TypeError: It is no seed.
    """
    if isinstance(seed, dict):
        seed = keras.saving.deserialize_keras_object(seed)
    if seed is None or isinstance(seed, keras.random.SeedGenerator) or (isinstance(seed, int) and seed is not True):
        return seed
    raise TypeError(
        f"`seed` must be a whole number, a keras.random.SeedGenerator or None. Received: seed={seed!r}. "
        "With None every call draws anew; keras.utils.set_random_seed makes that repeatable."
    )


def seed_config(seed: Any) -> Any:
    """Return what `checked_seed` makes the seed from."""
    return keras.saving.serialize_keras_object(seed)
