"""Convolution kernels that keep the length of what passes through them."""

from __future__ import annotations

from typing import Any

import keras

from gradrecipes.initializers.preset import require_positive
from gradrecipes.initializers.seeds import checked_seed, seed_config, seed_of_this_call


@keras.saving.register_keras_serializable(package="gradrecipes")
class DeltaOrthogonal(keras.initializers.Initializer):
    """Start a convolution as an isometry, so that very deep plain convolutional nets train.

    The kernel is zero but for its middle, which holds a matrix with orthonormal rows. An orthogonal kernel of the
    usual kind (`keras.initializers.Orthogonal`) is orthogonal as a matrix but no isometry as a convolution.

    Args:
        gain: Factor of the isometry, positive. Take `gr.initializers.gain("tanh")` for an activation.
        seed: Fixes the numbers. Without it layers that share the object still start differently.

    Raises:
        ValueError: When called: a shape that is no kernel of Conv1D, Conv2D or Conv3D, or one with fewer filters
            than input channels, which cannot keep lengths.

    Example:
        >>> layer = keras.layers.Conv2D(16, 3, padding="same", kernel_initializer=DeltaOrthogonal())
        >>> kernel = np.array(DeltaOrthogonal(seed=0)((3, 3, 4, 4)))
        >>> np.allclose(kernel[1, 1] @ kernel[1, 1].T, np.eye(4), atol=1e-6), int(np.count_nonzero(kernel))
        (True, 16)

    References:
        Xiao et al. 2018, arXiv 1806.05393, algorithm 1.
    """

    def __init__(self, gain: float = 1.0, *, seed: int | keras.random.SeedGenerator | None = None):
        require_positive("gain", gain)
        self.gain = gain
        self.seed = checked_seed(seed)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return a new kernel of the shape `[*window, channels, filters]`."""
        *window, channels, filters = shape
        if not 1 <= len(window) <= 3:
            raise ValueError(
                "DeltaOrthogonal makes kernels of Conv1D, Conv2D and Conv3D, with 3 to 5 axes. "
                f'Received: shape={tuple(shape)}. For a dense layer use gr.initializers.preset(..., kind="orthogonal").'
            )
        if filters < channels:
            raise ValueError(
                "A convolution with fewer filters than channels cannot keep the length of its input. "
                f"Received: {channels} channels, {filters} filters. "
                'Use gr.initializers.preset(..., kind="orthogonal") in this layer.'
            )
        seed = seed_of_this_call(self.seed)
        middle = keras.initializers.Orthogonal(self.gain, seed)((channels, filters), dtype=dtype)
        around = [((size - 1) // 2, size // 2) for size in window]
        middle = keras.ops.reshape(middle, (*[1] * len(window), channels, filters))
        return keras.ops.pad(middle, [*around, (0, 0), (0, 0)])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {"gain": self.gain, "seed": seed_config(self.seed)}
