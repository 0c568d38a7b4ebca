"""What the residual blocks share: a branch, and a shortcut where the shape changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


def as_branch(branch: Any, owner: str) -> keras.layers.Layer:
    """Return one layer for a layer or a sequence of layers.

    Raises:
        TypeError: Something else came.
    """
    if isinstance(branch, keras.layers.Layer):
        return branch
    if isinstance(branch, Sequence) and branch and all(isinstance(layer, keras.layers.Layer) for layer in branch):
        return keras.Sequential(list(branch))
    raise TypeError(
        f"`branch` of {owner} must be a Keras layer or a list of them. Received: {branch!r}. "
        f'For example: {owner}([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(64)]).'
    )


def require_layer(name: str, layer: Any, owner: str) -> None:
    """Refuse what is neither a Keras layer nor None."""
    if layer is not None and not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"`{name}` of {owner} must be a Keras layer or None. Received: {name}={layer!r}.")


def build_shortcut(
    shortcut: keras.layers.Layer | None, input_shape: Sequence[int | None], branch_shape: Sequence[int | None]
) -> None:
    """Build the shortcut, and see that both ways end in one shape.

    Raises:
        ValueError: They do not, with the remedy.
    """
    shape = tuple(input_shape)
    if shortcut is not None:
        if not shortcut.built:
            shortcut.build(shape)
        shape = tuple(shortcut.compute_output_shape(shape))
    if shape == tuple(branch_shape):
        return
    way = "the input" if shortcut is None else "the shortcut"
    raise ValueError(
        f"A residual block adds its branch to {way}: both need one shape. Received: {way} {shape}, "
        f"the branch {tuple(branch_shape)}. Let the branch end in the shape of its input, or pass `shortcut=`, a layer "
        "that brings the input to the new shape: Dense(units, use_bias=False), or Conv2D(filters, 1, strides=...)."
    )


def deserialized(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the config with the named layers made from theirs."""
    made = {name: keras.saving.deserialize_keras_object(config[name]) for name in names}
    return {**config, **made}
