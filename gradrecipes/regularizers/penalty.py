"""What a train step asks of a gradient penalty, and what all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import keras
import tensorflow as tf


@runtime_checkable
class Penalty(Protocol):
    """A term that is added to the loss inside the train step's tape."""

    def penalty(self, model: keras.Model, x: Any, y: Any, compute_loss: Callable[[Any], tf.Tensor]) -> tf.Tensor:
        """Return the term.

        Args:
            model: The model that is trained.
            x: Its inputs, a tensor or a nested structure of them, samples first.
            y: Its targets, likewise.
            compute_loss: Runs the model on other inputs in place of `x` and returns the unscaled loss, a
                scalar: the mean over the samples.

        Returns:
            float32 scalar (float64 in a model of float64), to be added to the unscaled loss before any loss scale.
        """


@runtime_checkable
class GradientCombination(Protocol):
    """A rule that takes the gradient at two places and joins them."""

    def gradients(
        self, variables: Sequence[Any], compute_gradients: Callable[[], Sequence[Any]]
    ) -> list[tf.Tensor | None]:
        """Return the gradients to apply.

        Args:
            variables: The trainable variables. They are moved for a moment, and are back to the bit on return.
            compute_gradients: Runs forward and backward with the weights as they are at the moment; called twice.
                A loss scale may be in it: the result is in the same unit.

        Returns:
            One gradient for each variable; None where the first pass gave none.
        """


class Serializable:
    """Give a frozen dataclass the config that Keras saves."""

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Make the penalty from its arguments."""
        return cls(**config)


def require_number(name: str, value: Any, *, least: float = 0.0, most: float = math.inf) -> None:
    """Refuse what is not a finite number above `least` and at most `most`."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if plain and math.isfinite(value) and least < value <= most:
        return
    bound = f" and at most {most:g}" if most < math.inf else ""
    raise ValueError(
        f"`{name}` must be a number above {least:g}{bound}. Received: {name}={value!r}. "
        "To train without the penalty, leave it out."
    )


def at_least_float32(tensor: Any) -> tf.Tensor:
    """Return the tensor in float32, or in float64 if it is in that: sums of squares do not fit float16."""
    tensor = tf.convert_to_tensor(tensor)
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)
