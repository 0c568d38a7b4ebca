"""Share one Keras initializer among layers without giving them the same weights."""

from __future__ import annotations

from typing import Any

import keras


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
