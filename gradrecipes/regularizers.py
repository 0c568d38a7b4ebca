"""Gradient penalties, which need the tape of a train step.

L1, L2 and the like are `keras.regularizers`; decoupled weight decay is `weight_decay=` of Keras' optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import keras
import tensorflow as tf

__all__ = [
    "GradientCombination",
    "InputGradientPenalty",
    "ParameterGradientPenalty",
    "Penalty",
    "R1Penalty",
    "WassersteinPenalty",
    "interpolate",
    "penalized_gradients",
    "per_sample_gradient_norms",
]


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


def per_sample_gradient_norms(function: Callable[[Any], tf.Tensor], x: Any) -> tf.Tensor:
    """Return the norm of the gradient of each sample's value with respect to that sample.

    Args:
        function: Inputs to values, samples first; values of one sample are added up. A scalar is taken as the
            sum over the samples.
        x: A tensor or a nested structure of them, samples first. Inputs that are no floating numbers, such as
            tokens, have no gradient and are left out.

    Returns:
        float32 `[samples]` (float64 where the inputs are), L2 norm over all inputs of a sample. Its own gradient
        is 0, not NaN, where it is 0.

    Raises:
        ValueError: No input is a floating tensor, or the function does not depend on one.

    Example:
        >>> inputs = tf.constant([[3.0, 4.0], [0.0, 1.0]])
        >>> per_sample_gradient_norms(lambda x: tf.reduce_sum(x**2, axis=-1) / 2, inputs).numpy().tolist()
        [5.0, 1.0]
    """
    squares = _per_sample_squares(function, x)
    positive = squares > 0
    # Two where: with one, the gradient of the root at 0 would be 0 times infinity.
    return tf.where(positive, tf.sqrt(tf.where(positive, squares, 1.0)), 0.0)


def interpolate(real: Any, fake: Any, *, seed: int | keras.random.SeedGenerator | None = None) -> Any:
    """Return for each pair of samples a random point on the line between them, where WGAN-GP looks at its critic.

    Args:
        real: A floating tensor, samples first, or a nested structure of them.
        fake: The same for the generated samples.
        seed: A `keras.random.SeedGenerator` draws anew at every step; a number would not.

    Example:
        >>> mixed = interpolate(tf.zeros((4, 2)), tf.ones((4, 2)))
        >>> bool(tf.reduce_all(mixed[:, 0] == mixed[:, 1]))
        True
    """
    parts = keras.tree.flatten(real)
    share = keras.random.uniform((tf.shape(parts[0])[0],), dtype="float32", seed=seed)

    def mix(one: Any, other: Any) -> tf.Tensor:
        one = tf.convert_to_tensor(one)
        other = tf.cast(other, one.dtype)
        weight = tf.cast(tf.reshape(share, [-1, *[1] * (len(one.shape) - 1)]), one.dtype)
        return one + weight * (other - one)

    return keras.tree.map_structure(mix, real, fake)


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class InputGradientPenalty(Serializable):
    r"""Keep the loss from depending steeply on the inputs: λ·mean ‖∇_x ℓ‖², with ℓ the loss of a sample.

    For classification and regression ("double backpropagation"). The loss must be a mean over the batch, as
    Keras' losses are unless told otherwise.

    Args:
        weight: λ, positive. Start near 0.01 for inputs of size 1 and sweep in factors of 10.

    Example:
        >>> InputGradientPenalty(0.1).get_config()
        {'weight': 0.1}

    References:
        Drucker, LeCun 1992; Ross, Doshi-Velez 2017, arXiv 1711.09404.
    """

    weight: float = 0.01

    def __post_init__(self):
        require_number("weight", self.weight)

    def penalty(self, model: keras.Model, x: Any, y: Any, compute_loss: Callable[[Any], tf.Tensor]) -> tf.Tensor:
        """Return the term; see `Penalty.penalty`."""

        def sum_of_losses(inputs: Any) -> tf.Tensor:
            loss = at_least_float32(compute_loss(inputs))
            return loss * tf.cast(tf.shape(keras.tree.flatten(inputs)[0])[0], loss.dtype)

        return self.weight * tf.reduce_mean(_per_sample_squares(sum_of_losses, x))


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class WassersteinPenalty(Serializable):
    r"""Hold a critic's slope near 1, as WGAN-GP does: λ·mean (‖∇_x D(x)‖ − 1)².

    For a model with one output for each sample. In a GAN, call it on `interpolate(real, fake)`.

    Args:
        weight: λ, positive.
        target: The slope to hold, positive.

    Example:
        >>> critic = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> real, fake = tf.zeros((8, 2)), tf.ones((8, 2))
        >>> term = WassersteinPenalty().penalty(critic, interpolate(real, fake), None, None)
        >>> round(float(term), 4)  # 10 * (sqrt(2) - 1)^2
        1.7157

    References:
        Gulrajani et al. 2017, arXiv 1704.00028.
    """

    weight: float = 10.0
    target: float = 1.0

    def __post_init__(self):
        require_number("weight", self.weight)
        require_number("target", self.target)

    def penalty(
        self, model: keras.Model, x: Any, y: Any = None, compute_loss: Callable[[Any], tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Return the term; `y` and `compute_loss` are not used."""
        norms = per_sample_gradient_norms(_one_output(model, "WassersteinPenalty"), x)
        return self.weight * tf.reduce_mean(tf.square(norms - self.target))


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class R1Penalty(Serializable):
    r"""Flatten a discriminator where the data are: γ/2·mean ‖∇_x D(x)‖², on real samples.

    For a model with one output for each sample, before any sigmoid.

    Args:
        weight: γ, positive.

    Example:
        >>> critic = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> float(R1Penalty(10.0).penalty(critic, tf.zeros((8, 2))))  # 10 / 2 * (1 + 1)
        10.0

    References:
        Mescheder, Geiger, Nowozin 2018, arXiv 1801.04406, section 4.1.
    """

    weight: float = 10.0

    def __post_init__(self):
        require_number("weight", self.weight)

    def penalty(
        self, model: keras.Model, x: Any, y: Any = None, compute_loss: Callable[[Any], tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Return the term; `y` and `compute_loss` are not used."""
        return 0.5 * self.weight * tf.reduce_mean(_per_sample_squares(_one_output(model, "R1Penalty"), x))


def _per_sample_squares(function: Callable[[Any], tf.Tensor], x: Any) -> tf.Tensor:
    x = keras.tree.map_structure(tf.convert_to_tensor, x)
    inputs = [part for part in keras.tree.flatten(x) if part.dtype.is_floating]
    if not inputs:
        raise ValueError(
            "A gradient with respect to the inputs needs floating inputs. For tokens, penalize behind the embedding. "
            f"Received: {[part.dtype.name for part in keras.tree.flatten(x)]}."
        )
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        total = tf.reduce_sum(at_least_float32(function(x)))
    gradients = [part for part in tape.gradient(total, inputs) if part is not None]
    if not gradients:
        raise ValueError("The function whose gradient is penalized does not depend on any floating input.")
    samples = tf.shape(gradients[0])[0]
    squares = [tf.square(at_least_float32(part)) for part in gradients]
    return tf.add_n([tf.reduce_sum(tf.reshape(part, [samples, -1]), axis=1) for part in squares])


def _one_output(model: keras.Model, owner: str) -> Callable[[Any], tf.Tensor]:
    def call(inputs: Any) -> tf.Tensor:
        outputs = model(inputs, training=True)
        if not tf.is_tensor(outputs) or any(size != 1 for size in outputs.shape[1:]):
            shapes = keras.tree.map_structure(lambda output: output.shape, outputs)
            raise ValueError(
                f"{owner} is for a critic, a model with one output for each sample. "
                f"Received: model {model.name!r} with the outputs {shapes}. "
                "For other models use InputGradientPenalty, which looks at the loss."
            )
        return outputs

    return call


def penalized_gradients(
    variables: Sequence[Any],
    compute_gradients: Callable[[], Sequence[Any]],
    *,
    radius: float,
    share: float,
) -> list[tf.Tensor | None]:
    r"""Return (1 − α)·∇L(θ) + α·∇L(θ + r·∇L/‖∇L‖), the gradient of L + α·r·‖∇L‖ to first order in r.

    Args:
        variables: θ, Keras or TensorFlow variables; moved for a moment, and back to the bit on return.
        compute_gradients: Returns ∇L at the weights as they are, in any unit; called twice.
        radius: r, how far the second look goes.
        share: α, weight of the second look.

    Returns:
        One gradient for each variable, in the unit of `compute_gradients`; None where that gave none. If the first
        is not finite, so is the result.

    Example:
        >>> weight = tf.Variable([3.0, 4.0])  # L = sum of squares / 2, so the gradient is the weight itself
        >>> penalized_gradients([weight], lambda: [tf.identity(weight)], radius=1.0, share=0.5)[0].numpy()
        array([3.3, 4.4], dtype=float32)
    """
    first = [None if part is None else tf.convert_to_tensor(part) for part in compute_gradients()]
    moved = [(variable, part) for variable, part in zip(variables, first, strict=True) if part is not None]
    if not moved:
        return first
    places = [tf.identity(variable) for variable, _ in moved]
    largest, inverse_norm = _inverse_norm([part for _, part in moved])
    for (variable, part), place in zip(moved, places, strict=True):
        step = radius * (at_least_float32(part) / largest) * inverse_norm
        variable.assign(place + tf.cast(step, place.dtype))
    second = compute_gradients()
    for (variable, _), place in zip(moved, places, strict=True):
        variable.assign(place)
    return [
        None if there is None else (1.0 - share) * there + share * _same_kind(there, beyond)
        for there, beyond in zip(first, second, strict=True)
    ]


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class ParameterGradientPenalty(Serializable):
    r"""Seek flat minima by a second look at the gradient: (1 − α)·∇L(θ) + α·∇L(θ + r·∇L/‖∇L‖).

    It aims at generalization. It does *not* bound gradients: against explosions use clipping. Every step costs two.
    α = 0 would be plain training, α = 1 is sharpness-aware minimization.

    Args:
        radius: r, positive: how far the second look goes, in the units of the weights.
        share: α, above 0 and at most 1. The strength of the penalty is λ = α·r.

    Example:
        >>> ParameterGradientPenalty(share=0.8).radius
        0.05

    References:
        Zhao, Zhang, Hu 2022, arXiv 2202.03599, algorithm 1.
    """

    radius: float = 0.05
    share: float = 0.5

    def __post_init__(self):
        require_number("radius", self.radius)
        require_number("share", self.share, most=1.0)

    def gradients(
        self, variables: Sequence[Any], compute_gradients: Callable[[], Sequence[Any]]
    ) -> list[tf.Tensor | None]:
        """Return the gradients to apply; see `GradientCombination.gradients`."""
        return penalized_gradients(variables, compute_gradients, radius=self.radius, share=self.share)


def _inverse_norm(parts: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return m = max|g| and m/‖g‖, for plain squares leave float32 above 1.8e19 and below 1e-19."""
    parts = [at_least_float32(part) for part in parts]
    largest = tf.reduce_max(tf.stack([tf.reduce_max(tf.abs(part)) for part in parts]))
    largest = tf.where(largest == 0, tf.ones_like(largest), largest)  # not `> 0`: a NaN has to stay one
    squares = tf.add_n([tf.reduce_sum(tf.square(part / largest)) for part in parts])
    return largest, tf.math.rsqrt(tf.where(squares == 0, tf.ones_like(squares), squares))


def _same_kind(first: tf.Tensor, second: Any) -> tf.Tensor:
    return tf.zeros_like(first) if second is None else tf.cast(tf.convert_to_tensor(second), first.dtype)
