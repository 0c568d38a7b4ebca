"""Initializers that several layers share: their seeds, and Keras initializers that are drawn anew at every call."""

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


@keras.saving.register_keras_serializable(package="gradrecipes")
class DrawnAnew(keras.initializers.Initializer):
    """Draw new numbers from a Keras initializer at every call, so that layers that share it start differently.

    An unseeded Keras initializer draws its seed once, when it is made: two layers of one shape that are handed
    the same object start with equal weights. With a seed, it stays as Keras has it.

    Args:
        initializer: A Keras initializer, or its name.

    Raises:
        TypeError: It is no Keras initializer.

    Example:
        >>> shared = DrawnAnew("he_normal")
        >>> bool(np.any(shared((3, 4)) != shared((3, 4))))
        True
    """

    def __init__(self, initializer: keras.initializers.Initializer | str):
        found = keras.initializers.get(initializer)
        if not isinstance(found, keras.initializers.Initializer):
            raise TypeError(f"`initializer` must be a Keras initializer or its name. Received: {initializer!r}.")
        self.initializer = found

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return a new tensor of the shape."""
        return self.initializer.clone()(shape, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {"initializer": keras.initializers.serialize(self.initializer)}
