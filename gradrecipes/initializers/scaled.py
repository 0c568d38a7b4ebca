"""Kernels of the right size, for an activation, for depth, for a convolution; and what is drawn anew at every call."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import keras

from gradrecipes.core.arguments import require_choice
from gradrecipes.core.signal_theory import Activation, backward_gain, fixup_gain, forward_gain

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


FANS = {"he": "fan_in", "lecun": "fan_in", "glorot": "fan_avg"}
KINDS = (*FANS, "orthogonal")
DISTRIBUTIONS = {"normal": "untruncated_normal", "truncated_normal": "truncated_normal", "uniform": "uniform"}
GAINS = {"signal": forward_gain, "gradient": backward_gain}


def gain(activation: str | Activation | Callable[..., Any] | None, *, preserve: str = "signal") -> float:
    r"""Return the σ_w that keeps the size of what passes through layers of an activation.

    σ_w² = fan_in·Var(W). For the signal 1/√E[φ(z)²], for the gradient 1/√E[φ'(z)²], with z ~ N(0, 1),
    integrated numerically: 1.414 for ReLU, both ways.

    Args:
        activation: A Keras name or function, or a `gradrecipes.core.signal_theory.Activation`.
        preserve: `"signal"`, the outputs on their way forwards, or `"gradient"`, on its way back. Where the two
            differ, as for tanh, one of them drifts; it is the price of such an activation.

    Raises:
        ValueError: An activation that the theory does not know, or another word in `preserve`.

    Example:
        >>> round(gain("relu"), 4), round(gain("tanh", preserve="gradient"), 4)
        (1.4142, 1.4674)

    References:
        He et al. 2015, arXiv 1502.01852; Poole et al. 2016, arXiv 1606.05340.
    """
    require_choice("preserve", preserve, GAINS)
    if not isinstance(activation, (str, Activation, type(None))):
        activation = getattr(activation, "__name__", activation)
    return GAINS[preserve](activation)


def preset(
    activation: str | Activation | Callable[..., Any] | None,
    *,
    kind: str = "he",
    distribution: str = "normal",
    preserve: str = "signal",
    seed: int | keras.random.SeedGenerator | None = None,
) -> ScaledInitializer:
    """Return the kernel initializer with which layers of an activation neither explode nor vanish.

    Keras' own `HeNormal` is right for ReLU, `LecunNormal` for linear layers and SELU; for GELU, SiLU, tanh and
    the others no constant of Keras is. This one is right for each. For GELU, SiLU and mish, size 1 is a balance
    that does not hold by itself: a signal a little larger grows on. In plain nets deeper than some ten layers add
    residual connections or a normalization to them.

    Args:
        activation: Of the hidden layers: a Keras name or function, or an `Activation` of the theory. The first
            layer, which sees standardized data rather than outputs of the activation, is exact with `"linear"`.
        kind: Which variance the weights get, for a gain σ_w: `"he"` σ_w²/fan_in; `"lecun"` the same (the two
            differ only in the activation they were derived for, and that gain is computed here); `"glorot"`
            σ_w²/fan_avg, a compromise between both directions; `"orthogonal"` an orthogonal matrix with
            variance σ_w²/fan_in, which keeps lengths almost exactly in layers of equal width.
        distribution: `"normal"`, `"truncated_normal"` (at two standard deviations) or `"uniform"`. Of one
            variance all three; an orthogonal kernel has a distribution of its own and takes `"normal"` only.
        preserve: Which gain: see `gain`.
        seed: Fixes the numbers. Without it layers that share the object still start differently.

    Raises:
        ValueError: An unknown word, with the choices.

    Example:
        >>> layer = keras.layers.Dense(64, activation="gelu", kernel_initializer=preset("gelu"))
        >>> round(preset("gelu").gain, 3)
        1.534
    """
    return ScaledInitializer(gain(activation, preserve=preserve), kind=kind, distribution=distribution, seed=seed)


@keras.saving.register_keras_serializable(package="gradrecipes")
class ScaledInitializer(keras.initializers.Initializer):
    """Draw a kernel whose σ_w = √(fan_in·Var(W)) is a given gain; `preset` makes one for an activation.

    Args:
        gain: σ_w, positive.
        kind: As in `preset`.
        distribution: As in `preset`.
        seed: As in `preset`.

    Example:
        >>> kernel = ScaledInitializer(2.0, seed=0)((400, 300))
        >>> round(float(np.std(kernel)) * 400**0.5, 1)
        2.0
    """

    def __init__(
        self,
        gain: float = 1.0,
        *,
        kind: str = "he",
        distribution: str = "normal",
        seed: int | keras.random.SeedGenerator | None = None,
    ):
        require_positive("gain", gain)
        require_choice("kind", kind, KINDS)
        require_choice("distribution", distribution, DISTRIBUTIONS)
        if kind == "orthogonal" and distribution != "normal":
            raise ValueError(
                "An orthogonal kernel is made from normal numbers: leave `distribution` out, or choose "
                f"another `kind`. Received: kind={kind!r}, distribution={distribution!r}."
            )
        self.gain = gain
        self.kind = kind
        self.distribution = distribution
        self.seed = checked_seed(seed)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return a new kernel of the shape `[*window, inputs, units]`."""
        seed = seed_of_this_call(self.seed)
        if self.kind == "orthogonal":
            # With more units than inputs the rows are orthonormal, not the columns: undo the shrinking of each unit.
            widening = max(1.0, shape[-1] / math.prod(shape[:-1]))
            return keras.initializers.Orthogonal(self.gain * math.sqrt(widening), seed)(shape, dtype=dtype)
        scaling = keras.initializers.VarianceScaling(
            self.gain**2, mode=FANS[self.kind], distribution=DISTRIBUTIONS[self.distribution], seed=seed
        )
        return scaling(shape, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {
            "gain": self.gain,
            "kind": self.kind,
            "distribution": self.distribution,
            "seed": seed_config(self.seed),
        }


def require_positive(name: str, value: Any) -> None:
    """Refuse what is not a positive, finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return
    raise ValueError(f"`{name}` must be a positive, finite number. Received: {name}={value!r}.")


@keras.saving.register_keras_serializable(package="gradrecipes")
class Fixup(keras.initializers.Initializer):
    r"""He initialization shrunk so that all residual branches together change the function by as much as one.

    σ_w² = 2·L^(-1/(m-1)) for L blocks of m weight layers each. It is for all weight layers of a branch but the
    last; the last one, and the head of the net, start at `"zeros"`. `gr.layers.FixupResidual` arranges all of it.

    Args:
        blocks: L, residual blocks in the whole net.
        layers_per_block: m, weight layers in a block, at least 2.
        seed: Fixes the numbers. Without it layers that share the object still start differently.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> round(Fixup(100).gain, 4)
        0.1414

    References:
        Zhang, Dauphin, Ma 2019, arXiv 1901.09321, section 3.
    """

    def __init__(self, blocks: int, *, layers_per_block: int = 2, seed: int | keras.random.SeedGenerator | None = None):
        fixup_gain(blocks, layers_per_block)  # refuses what is out of range
        self.blocks = blocks
        self.layers_per_block = layers_per_block
        self.seed = checked_seed(seed)

    @property
    def gain(self) -> float:
        """σ_w = √(fan_in·Var(W))."""
        return fixup_gain(self.blocks, self.layers_per_block)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return a new kernel of the shape."""
        return ScaledInitializer(self.gain, seed=self.seed)(shape, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {
            "blocks": self.blocks,
            "layers_per_block": self.layers_per_block,
            "seed": seed_config(self.seed),
        }


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
