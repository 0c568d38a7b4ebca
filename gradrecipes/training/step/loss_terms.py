"""The terms of a loss that a train step adds up by itself, and of which it returns the sum alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

PASSING = {"Identity", "Cast", "Squeeze", "Reshape"}
ADDING = {"Add", "AddV2", "AddN"}
REDUCTIONS: dict[str, Callable[[Any], Any]] = {"Mean": tf.reduce_mean, "Sum": tf.reduce_sum}
READING = {"ReadVariableOp", "ResourceGather"}


def loss_terms(loss: Any) -> dict[str, tf.Tensor]:
    """Return the terms of a sum by their names, without the factors that multiply them; empty for what is no sum.

    Only those are returned that read weights: constants, and sums over the data alone, are no task of their own.

    Args:
        loss: A scalar of a graph.

    Example:
        >>> weight = tf.Variable(3.0)
        >>> @tf.function
        ... def traced():
        ...     return loss_terms(tf.square(weight) + 1e7 * tf.abs(weight) + 0.5)
        >>> {name: float(term) for name, term in traced().items()}
        {'term 1 of the sum': 9.0, 'term 2 of the sum': 3.0}
    """
    if not tf.is_tensor(loss) or tf.executing_eagerly() or loss.shape.rank != 0:
        return {}
    found = [part for part in _parts(loss) if _reads_weights(part.tensor)]
    if len(found) < 2:
        return {}
    return {f"term {number} of the sum": part.reduced() for number, part in enumerate(found, start=1)}


def contributions(loss: Any) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Return the terms of a sum, each as (tensor, weights) whose products add up to what the term contributes.

    Args:
        loss: A scalar of a graph; of anything else, or of what is no sum, there are none.

    Example:
        >>> weight = tf.Variable([3.0, 4.0])
        >>> @tf.function
        ... def traced():
        ...     loss = tf.reduce_mean(tf.square(weight) + weight) + 10.0 * tf.reduce_sum(weight)
        ...     return [tf.reduce_sum(weights * part) for part, weights in contributions(loss)]
        >>> [float(value) for value in traced()]
        [12.5, 3.5, 70.0]
    """
    if not tf.is_tensor(loss) or tf.executing_eagerly() or loss.shape.rank != 0:
        return []
    found = [part for part in _parts(loss) if _reads_weights(part.tensor)]
    return [(part.tensor, part.weights()) for part in found] if len(found) > 1 else []


class _Part(NamedTuple):
    """A term: its tensor, the operation that reduces it to a scalar, and the scalars that multiply that."""

    tensor: tf.Tensor
    reduction: str | None = None
    factors: tuple[tf.Tensor, ...] = ()

    def reduced(self) -> tf.Tensor:
        """Return the scalar, without the factors."""
        value = tf.cast(self.tensor, tf.float32)
        return REDUCTIONS[self.reduction](value) if self.reduction else value

    def weights(self) -> tf.Tensor:
        """Return by what each entry is multiplied in the sum."""
        size = tf.cast(tf.size(self.tensor), tf.float32) if self.reduction == "Mean" else tf.constant(1.0)
        weight = functools.reduce(tf.multiply, [tf.cast(one, tf.float32) for one in self.factors], 1.0 / size)
        return tf.fill(tf.shape(self.tensor), weight)


def _parts(tensor: tf.Tensor, reduction: str | None = None, factors: tuple[tf.Tensor, ...] = ()) -> Iterator[_Part]:
    """Yield the terms in the order in which they are written."""
    made = tensor.op
    shape = tensor.shape if reduction else tf.TensorShape([])
    alike = all(_same_shape(part.shape, shape) for part in made.inputs)
    if made.type in PASSING and alike:
        yield from _parts(made.inputs[0], reduction, factors)
    elif made.type in ADDING and alike:
        for part in made.inputs:
            yield from _parts(part, reduction, factors)
    elif (multiplied := _multiplied(tensor, shape)) is not None:
        yield from _parts(multiplied[0], reduction, (*factors, multiplied[1]))
    elif made.type in REDUCTIONS and reduction is None and tensor.shape.rank == 0:
        inner = made.inputs[0]
        if made.type == "Sum" and inner.op.type == "Pack" and all(one.shape.rank == 0 for one in inner.op.inputs):
            for part in inner.op.inputs:
                yield from _parts(part, None, factors)
            return
        found = list(_parts(inner, made.type, factors))
        yield from found if len(found) > 1 else [_Part(tensor, None, factors)]
    else:
        yield _Part(tensor, reduction, factors)


def _multiplied(tensor: tf.Tensor, shape: tf.TensorShape) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Return (tensor, constant) of a product or quotient of a tensor of this shape and a constant; None of others."""
    made = tensor.op
    if made.type not in ("Mul", "RealDiv"):
        return None
    one, other = made.inputs
    if made.type == "Mul" and _is_constant(one):
        one, other = other, one
    if not _is_constant(other) or _is_constant(one) or not _same_shape(one.shape, shape):
        return None
    return one, 1.0 / tf.cast(other, tf.float32) if made.type == "RealDiv" else other


def _is_constant(tensor: tf.Tensor) -> bool:
    return tensor.op.type == "Const" and tensor.shape.rank == 0


def _same_shape(one: tf.TensorShape, other: tf.TensorShape) -> bool:
    return one.rank is not None and other.rank is not None and one.as_list() == other.as_list()


def _reads_weights(tensor: tf.Tensor) -> bool:
    """Return whether a tensor comes from a variable."""
    return tensor.op.type in READING or any(made.type in READING for made in ancestors([tensor]))


def ancestors(
    tensors: Iterable[tf.Tensor], *, through: Callable[[tf.Operation], bool] = lambda made: True
) -> Iterator[tf.Operation]:
    """Yield the operations that some tensors of a graph come from, each once, their own left out.

    Args:
        tensors: Of one graph.
        through: Whether what an operation comes from counts, too.
    """
    open_ = [part.op for one in tensors if through(one.op) for part in one.op.inputs]
    seen: set[str] = set()
    while open_:
        made = open_.pop()
        if made.name not in seen:
            seen.add(made.name)
            yield made
            open_ += [part.op for part in made.inputs] if through(made) else []


PICKED = {"Max", "Select", "SelectV2"}  # what a logarithm of sums of exponentials holds fixed changes no value


def has_moving_target(loss: Any) -> bool:
    """Return whether a loss of a graph reads what weights make and `tf.stop_gradient` holds fixed.

    Example:
        >>> weight = tf.Variable(3.0)
        >>> @tf.function
        ... def traced():
        ...     return has_moving_target(tf.square(weight - tf.stop_gradient(0.9 * weight + 1.0)))
        >>> bool(traced())
        True
    """
    if not tf.is_tensor(loss) or tf.executing_eagerly():
        return False
    held = [made.inputs[0] for made in ancestors([loss]) if made.type == "StopGradient"]
    return any(_reads_weights(one) for one in held if one.op.type not in PICKED)


# Operations that no slope passes; what is made of whole numbers has none either.
FLAT = {"StopGradient", "ArgMax", "ArgMin", "Round", "Rint", "Floor", "Ceil", "Sign", "Greater", "GreaterEqual", "Less"}


class CutTerms(NamedTuple):
    """Terms of a sum, each by the name of its tensor: those cut off from sources that made them, with their places in
    the sum, and those that a slope leads from to some source.
    """

    cut_off: dict[str, str]
    steep: set[str]

    def joined(self, other: CutTerms) -> CutTerms:
        """Return the terms of both."""
        return CutTerms(self.cut_off | other.cut_off, self.steep | other.steep)

    @property
    def lasting(self) -> tuple[str, ...]:
        """Which of those that are cut off have a slope nowhere, in the weights of no net of the step."""
        return tuple(place for name, place in self.cut_off.items() if name not in self.steep)


def cut_off_terms(loss: Any, sources: Any) -> CutTerms:
    """Return which terms of a sum are made with weights, while no slope leads to these, nor to other sources.

    A generator is to be judged by what a discriminator says of its samples: of copies of them, or of what is rounded or
    held fixed by `tf.stop_gradient`, it learns nothing.

    Args:
        loss: A scalar of a graph.
        sources: What it is differentiated in.

    Example:
        >>> weight = tf.Variable(3.0)
        >>> @tf.function
        ... def traced():
        ...     return list(cut_off_terms(tf.square(weight) + tf.abs(tf.stop_gradient(weight)), [weight])[0].values())
        >>> [bytes(name.numpy()).decode() for name in traced()]
        ['term 2 of the sum']
    """
    if not tf.is_tensor(loss) or tf.executing_eagerly() or loss.shape.rank != 0:
        return CutTerms({}, set())
    own = [one if hasattr(one, "handle") else getattr(one, "value", None) for one in tf.nest.flatten(sources)]
    handles = [getattr(one, "handle", None) for one in own]
    held = {id(one) for one in handles if one is not None}
    asked = {inner.op.name for outer, inner in loss.graph.captures if id(outer) in held}
    found = [part for part in _parts(loss) if _reads_weights(part.tensor)]
    cut, slopes = {}, set()
    for number, part in enumerate(found, start=1):
        made = {one.name for one in ancestors([part.tensor])}
        steep = {one.name for one in ancestors([part.tensor], through=lambda one: one.type not in FLAT)}
        if steep & asked:
            slopes.add(part.tensor.name)
        elif made & asked:
            cut[part.tensor.name] = f"term {number} of the sum"
    return CutTerms(cut if len(found) > len(cut) else {}, slopes)
