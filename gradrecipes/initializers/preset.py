"""The initializer that suits an activation, with its gain computed rather than looked up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras

from gradrecipes.core.arguments import require_choice
from gradrecipes.core.theory.activation import Activation
from gradrecipes.core.theory.signal_theory import backward_gain, forward_gain
from gradrecipes.initializers.seeds import checked_seed, seed_config, seed_of_this_call

FANS = {"he": "fan_in", "lecun": "fan_in", "glorot": "fan_avg"}
KINDS = (*FANS, "orthogonal")
DISTRIBUTIONS = {"normal": "untruncated_normal", "truncated_normal": "truncated_normal", "uniform": "uniform"}
GAINS = {"signal": forward_gain, "gradient": backward_gain}


def gain(activation: str | Activation | Callable[..., Any] | None, *, preserve: str = "signal") -> float:
    r"""Return the σ_w that keeps the size of what passes through layers of an activation.

    σ_w² = fan_in·Var(W). For the signal 1/√E[φ(z)²], for the gradient 1/√E[φ'(z)²], with z ~ N(0, 1),
    integrated numerically: 1.414 for ReLU, both ways.

    Args:
        activation: A Keras name or function, or a `gradrecipes.core.theory.activation.Activation`.
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
