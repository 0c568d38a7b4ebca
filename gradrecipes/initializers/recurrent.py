"""Recurrent layers that neither forget nor explode at the start: identity RNN and chrono bias."""

from __future__ import annotations

import math
from typing import Any

import keras

from gradrecipes.initializers.scaled import DrawnAnew, checked_seed, require_positive, seed_config, seed_of_this_call

INPUT_STD = 0.001  # standard deviation of the input weights; arXiv 1504.00941, section 4


def identity_rnn(*, scale: float = 1.0) -> dict[str, Any]:
    """Return the arguments with which a `keras.layers.SimpleRNN` remembers, and its gradient keeps its size.

    The recurrent matrix starts as the identity, ReLU is the activation, and the input weights are small: at
    first the state is copied from step to step, and so is its gradient, whatever the length of the sequence.

    Args:
        scale: Factor of the identity, positive: 1 for long memory; below 1, such as 0.01, for tasks that need
            only the recent past.

    Returns:
        Keyword arguments of `keras.layers.SimpleRNN`. The identity is Keras' own.

    Example:
        >>> layer = keras.layers.SimpleRNN(64, **identity_rnn())

    References:
        Le, Jaitly, Hinton 2015, arXiv 1504.00941.
    """
    require_positive("scale", scale)
    return {
        "activation": "relu",
        "kernel_initializer": DrawnAnew(keras.initializers.RandomNormal(stddev=INPUT_STD)),
        "recurrent_initializer": keras.initializers.Identity(scale),
        "bias_initializer": "zeros",
    }


def chrono_lstm(units: int, *, max_length: float, seed: int | None = None) -> dict[str, Any]:
    """Return the arguments with which a `keras.layers.LSTM` can remember over so many steps from the start.

    Args:
        units: Units of the layer.
        max_length: Longest dependency that the task is thought to have, in steps, above 2.
        seed: Fixes the numbers.

    Returns:
        Keyword arguments of `keras.layers.LSTM`, `units` among them. `unit_forget_bias` is off, for Keras would
        put its 1 where the chrono bias belongs.

    Example:
        >>> layer = keras.layers.LSTM(**chrono_lstm(32, max_length=100))
    """
    bias = ChronoBias(units, max_length=max_length, seed=seed)
    return {"units": units, "bias_initializer": bias, "unit_forget_bias": False}


@keras.saving.register_keras_serializable(package="gradrecipes")
class ChronoBias(keras.initializers.Initializer):
    r"""Bias of an LSTM whose units forget at different speeds, up to a given length.

    b_f = log U(1, T-1) and b_i = -b_f: a forget gate with this bias keeps its cell for 2 to T steps.
    The biases of the cell and of the output gate are 0.

    Args:
        units: Units of the layer, so that a wrong use is noticed.
        max_length: T, in steps, above 2.
        seed: Fixes the numbers. Without it layers that share the object still start differently.

    Raises:
        ValueError: An argument out of range; when called, a shape other than the `[4 * units]` of an LSTM that has
            `unit_forget_bias=False`.

    Example:
        >>> bias = ChronoBias(2, max_length=50, seed=0)((8,))
        >>> bool(np.all(bias[:2] == -bias[2:4])), np.array(bias[4:]).tolist()
        (True, [0.0, 0.0, 0.0, 0.0])

    References:
        Tallec, Ollivier 2018, arXiv 1804.11188.
    """

    def __init__(self, units: int, *, max_length: float, seed: int | keras.random.SeedGenerator | None = None):
        if not isinstance(units, int) or isinstance(units, bool) or units < 1:
            raise ValueError(f"`units` must be a whole number, at least 1. Received: units={units!r}.")
        if not (isinstance(max_length, (int, float)) and 2 < max_length < math.inf):
            raise ValueError(
                "`max_length` is the longest dependency in steps and must be above 2. "
                f"Received: max_length={max_length!r}."
            )
        self.units = units
        self.max_length = max_length
        self.seed = checked_seed(seed)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return the bias, `[4 * units]`, in Keras' order: input gate, forget gate, cell, output gate."""
        if tuple(shape) != (4 * self.units,):
            raise ValueError(
                f"ChronoBias({self.units}) fills the whole bias of an LSTM, of the shape ({4 * self.units},). "
                f"Received: shape={tuple(shape)}. Pass the layer unit_forget_bias=False as well, or take the "
                "arguments of gr.initializers.chrono_lstm."
            )
        seed = seed_of_this_call(self.seed)
        steps = keras.random.uniform((self.units,), 1.0, self.max_length - 1.0, dtype="float32", seed=seed)
        forget = keras.ops.log(steps)
        rest = keras.ops.zeros((2 * self.units,), "float32")
        return keras.ops.cast(keras.ops.concatenate([-forget, forget, rest]), dtype or keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {"units": self.units, "max_length": self.max_length, "seed": seed_config(self.seed)}
