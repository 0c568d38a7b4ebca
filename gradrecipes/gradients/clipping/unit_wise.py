"""Bound the gradient of each output unit by the norm of its weights, and say which entries lead to one unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from gradrecipes.compat.keras_private import inputs_of, made_by, sublayers
from gradrecipes.compat.tensorflow_private import rare_cond
from gradrecipes.gradients.clipping.method import (
    Clipped,
    SerializableMethod,
    StepGradients,
    clip_tensors,
    factor_where,
    in_units_of,
    require_positive,
)
from gradrecipes.gradients.packing import PackedTensors, TensorLike

Axes = tuple[int, ...]
layers = keras.layers
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
KERNELS = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings", "reverse_embeddings")


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class adaptive(SerializableMethod):  # noqa: N801
    r"""Let no unit's weights be asked to change by more than a small share of themselves (AGC).

    For the weights W_i that lead to one output unit, and their gradient G_i: where
    ‖G_i‖ > λ·max(‖W_i‖, ε), G_i becomes G_i·λ·max(‖W_i‖, ε)/‖G_i‖. The rest is untouched, so that one wild
    unit costs the others nothing; the direction of the whole step changes.

    Over which axes a unit's norm is taken depends on the layer; where a model is known,
    `unit_axes` says so, and leaves the last layer alone, as the authors do. In a loop
    of your own without a model, vectors count as a whole and kernels by their last axis. Without ε, weights
    that start at zero would never move. NaN passes through: combine it with a guard that skips.

    Args:
        max_ratio: λ, the largest ratio of gradient to weights, positive. The authors use 0.01 for batches of
            4096; the smaller the batch, the larger it may be.
        min_weight_norm: ε, what a smaller ‖W_i‖ counts as, positive.

    References:
        Brock et al. 2021, arXiv 2102.06171, section 4.
    """

    max_ratio: float = 0.01
    _: KW_ONLY
    min_weight_norm: float = 1e-3

    def __post_init__(self):
        require_positive(self.max_ratio, "max_ratio", "adaptive")
        require_positive(self.min_weight_norm, "min_weight_norm", "adaptive")

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        if step.weights is None:
            raise ValueError(
                "`adaptive` compares the gradient with the weights, and was given none. Received: weights=None. "
                "Pass StepGradients(weights=...), or bound the gradient by itself with `by_global_norm`."
            )
        stacks = _stacks(step)
        plain = [_measure(stack, safe=False) for stack in stacks]
        summed = [tf.reduce_sum(size) for norms in plain for norm in norms for size in (norm.of_scaled, norm.weights)]

        def bounded(norms: list[list[_UnitNorms]]) -> list[tf.Tensor]:
            parts, sizes, exceeded = [], [], []
            for stack, of_units in zip(stacks, norms, strict=True):
                part, after, exceeds = self._bound(step, stack, of_units)
                parts.append(part)
                sizes += after
                exceeded += exceeds
            clipped = tf.reduce_any(tf.stack([tf.reduce_any(exceeds) for exceeds in exceeded]))
            return [*parts, factor_where(clipped, _root_of_squares(sizes) / step.norms.total, step.norms)]

        *parts, factor = rare_cond(
            tf.reduce_all(tf.math.is_finite(tf.stack([0.0, *summed]))),  # else a sum of squares overflowed
            lambda: bounded(plain),
            lambda: bounded([_measure(stack, safe=True) for stack in stacks]),
        )
        return Clipped(step.packed.with_flat(parts), factor)

    def _bound(
        self, step: StepGradients, stack: _Stack, norms: list[_UnitNorms]
    ) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """Return the bounded stack, the norms of its units and of what is left alone, and which were bounded."""
        sizes = [tf.gather(step.norms.of_each, tf.constant(stack.left_alone, tf.int32))]
        values, exceeded = stack.gradients, [tf.constant(False)]
        for norm in norms:
            bound = in_units_of(step, self.max_ratio * tf.maximum(norm.weights, self.min_weight_norm))
            size = norm.largest * norm.of_scaled
            exceeds = (size > bound) & norm.members
            if norm.in_two_steps:
                values = values / tf.cast(tf.where(exceeds, norm.largest, 1.0), values.dtype)
            values = values * tf.cast(tf.where(exceeds, bound / norm.of_scaled, 1.0), values.dtype)
            sizes.append(tf.where(norm.members, tf.minimum(size, bound), 0.0))
            exceeded.append(exceeds)
        return tf.reshape(tf.cast(values, stack.flat.dtype), tf.shape(stack.flat)), sizes, exceeded


class _Stack(NamedTuple):
    """Gradients of one shape, their weights beside them, and the axes of each that is bounded."""

    flat: tf.Tensor
    gradients: tf.Tensor
    weights: tf.Tensor
    rows: tf.Tensor | None
    axes: list[Axes | None]
    left_alone: list[int]


class _UnitNorms(NamedTuple):
    """The norms of the units of those gradients of a stack that share their axes, kept broadcastable."""

    largest: tf.Tensor
    of_scaled: tf.Tensor
    weights: tf.Tensor
    members: tf.Tensor
    in_two_steps: bool


def clip_adaptively(
    gradients: Sequence[TensorLike],
    weights: Sequence[tf.Tensor],
    *,
    max_ratio: float = 0.01,
    min_weight_norm: float = 1e-3,
    unit_axes: Sequence[Axes | None] | None = None,
) -> list[TensorLike]:
    """Return the gradients with each unit's norm bounded by that of its weights; see `adaptive`.

    Example:
        >>> clipped = clip_adaptively([tf.ones([4, 2])], [tf.constant([[3.0, 0.0]] * 4)], max_ratio=0.1)
        >>> [round(float(n), 4) for n in tf.norm(clipped[0], axis=0)]  # 0.1 of the column's norm, at least 1e-4
        [0.6, 0.0001]
    """
    method = adaptive(max_ratio, min_weight_norm=min_weight_norm)
    return clip_tensors(gradients, method, weights=lambda: PackedTensors(weights), unit_axes=unit_axes)


def unit_axes_by_rank(rank: int) -> tuple[int, ...]:
    """Return the axes of one unit where the layer is not known: all of a vector, all but the last of a kernel."""
    return tuple(range(rank if rank < 2 else rank - 1))


def _stacks(step: StepGradients) -> list[_Stack]:
    if step.weights is None:
        raise ValueError("Adaptive clipping compares gradients with weights. Received: no `weights`. Pass them.")
    packed, weights, given = step.packed, step.weights(), step.unit_axes
    if given is not None and len(given) != len(packed):
        raise ValueError(
            f"`unit_axes` must have one entry for each of the {len(packed)} gradients. Received: {len(given)} entries. "
            "Make them from the very variables that the gradients belong to, in the same order."
        )
    if weights.members == packed.members:
        beside = weights.flat()
    else:  # a sparse gradient stands alone where its dense weights share a stack
        tensors = weights.unpacked()
        beside = [tf.stack([tensors[i] for i in g]) if len(g) > 1 else tensors[g[0]] for g in packed.members]
    found = []
    for group, flat, weight, rows in zip(packed.members, packed.flat(), beside, packed.rows_touched(), strict=True):
        wide = flat.dtype if flat.dtype.size >= 4 else tf.float32  # a half would round the factor itself
        gradients, weight = (_stacked(tf.cast(t, kind), group) for t, kind in ((flat, wide), (weight, tf.float32)))
        axes = [unit_axes_by_rank(gradients.shape.rank - 1) if given is None else given[i] for i in group]
        alone = [i for i, chosen in zip(group, axes, strict=True) if chosen is None]
        found.append(_Stack(flat, gradients, weight, rows, axes, alone))
    return found


def _stacked(tensor: tf.Tensor, group: list[int]) -> tf.Tensor:
    return tensor if len(group) > 1 else tensor[None]


def _measure(stack: _Stack, *, safe: bool) -> list[_UnitNorms]:
    """Return the norms of the units of a stack, a member for each choice of axes in it."""
    found = []
    for axes in dict.fromkeys(axes for axes in stack.axes if axes is not None):
        over = [axis + 1 for axis in axes]
        weights = stack.weights
        if stack.rows is not None and 0 not in axes:
            weights = tf.gather(weights, stack.rows, axis=1)
        largest, of_scaled = _norm(tf.cast(stack.gradients, tf.float32), over, safe)
        weights_largest, weights_scaled = _norm(weights, over, safe)
        members = [chosen == axes for chosen in stack.axes]
        shape = [len(members)] + [1] * (stack.gradients.shape.rank - 1)
        mask = tf.reshape(tf.constant(members), shape)
        found.append(_UnitNorms(largest, of_scaled, weights_largest * weights_scaled, mask, safe))
    return found


def _norm(values: tf.Tensor, over: list[int], safe: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Return m and the norm of values / m over some axes: m = 1, or the largest |entry| where squares overflow."""
    if not safe:
        return tf.ones(()), tf.sqrt(tf.reduce_sum(tf.square(values), axis=over, keepdims=True))
    largest = tf.reduce_max(tf.abs(values), axis=over, keepdims=True)
    largest = tf.where(largest > 0, largest, 1.0)
    return largest, tf.sqrt(tf.reduce_sum(tf.square(values / largest), axis=over, keepdims=True))


def _root_of_squares(sizes: list[tf.Tensor]) -> tf.Tensor:
    """Return the norm of many norms; in shares of the largest no square leaves float32."""
    filled = [size for size in sizes if size.shape.num_elements() != 0]
    largest = tf.reduce_max(tf.stack([tf.reduce_max(size) for size in filled]))
    divisor = tf.where(largest > 0, largest, 1.0)
    return largest * tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(size / divisor)) for size in filled]))


def unit_axes(model: keras.Model, variables: Sequence[Any]) -> list[Axes | None]:
    """Say for each variable over which axes the norm of one output unit is taken; None where it is left alone.

    | variable | its axes | a unit is |
    |---|---|---|
    | kernel of Dense, of a recurrent cell | 0 | a column |
    | kernel of Conv1D, 2D, 3D | all but the last | a filter |
    | kernel of a transposed convolution `[..., filters, inputs]` | all but the last but one | a filter |
    | kernel of a depthwise convolution `[..., inputs, multiplier]` | all but the last two | a filter of a channel |
    | kernel of EinsumDense (those of attention too) | what its equation sums over | an output feature |
    | table of Embedding | 1 | a token |
    | bias, scale, whatever else is no kernel of a known layer | all | the variable |
    | weights of two axes or more in a layer of another kind | all but the last | |

    The head is left alone: the last layer with a kernel that feeds the output, with its bias. From each output
    the graph is walked back, past activations, normalizations, reshapes and merges, to the nearest layer with a
    kernel; of several on the way, those nearest to that output count. A subclassed model shows no graph: its
    head is the layer with a kernel that was made last. Where nothing but the head is trained, it is bounded too.

    Args:
        model: The model, built.
        variables: Keras variables, in the order of their gradients.

    Returns:
        A tuple of axes, or None, for each variable.

    Example:
        >>> net = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()])
        >>> net.add(keras.layers.Dense(2))
        >>> unit_axes(net, net.trainable_variables)
        [(0, 1, 2), (0,), None, None]

    References:
        Brock et al. 2021, arXiv 2102.06171, section 4.1.
    """
    owners = _owners(model)
    head = {id(variable) for layer in head_layers(model) for variable in layer.weights}
    if all(id(variable) in head for variable in variables):
        head = set()
    return [
        None if id(variable) in head else _axes(owners.get(id(variable)), variable.name, len(variable.shape))
        for variable in variables
    ]


def head_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers that `unit_axes` takes for the head, one or more for each output."""
    found = list(_heads(model))
    return list({id(layer): layer for layer in found}.values())


def _owners(model: keras.Model) -> dict[int, keras.layers.Layer]:
    owners: dict[int, keras.layers.Layer] = {}
    for layer in sorted(sublayers(model), key=lambda layer: -len(layer.trainable_variables)):
        owners |= {id(variable): layer for variable in layer.trainable_variables}  # the smallest comes last, and stays
    return owners


def _axes(layer: keras.layers.Layer | None, name: str, rank: int) -> Axes:
    whole, columns = tuple(range(rank)), tuple(range(rank - 1))
    if rank < 2:
        return whole
    if layer is not None and type(layer).__module__.startswith("keras.") and name not in KERNELS:
        return columns if name.startswith("lora_") else whole  # a bias or a scale, of two axes or more
    if name == "depthwise_kernel" or (name == "kernel" and isinstance(layer, DEPTHWISE)):
        return whole[:-2]
    if name == "kernel" and isinstance(layer, TRANSPOSED):
        return (*whole[:-2], rank - 1)
    if name == "kernel" and isinstance(layer, layers.EinsumDense):
        return summed_axes(layer.equation)
    if name == "embeddings" and isinstance(layer, layers.Embedding):
        return whole[1:]
    return columns


def summed_axes(equation: str) -> Axes:
    """Return the axes of the second operand that an equation sums over; all of them where it sums over none.

    Example:
        >>> summed_axes("abc,cde->abde"), summed_axes("abcd,cde->abe"), summed_axes("...x,xy->...y")
        ((0,), (0, 1), (0,))
    """
    operands, output = equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1].replace(".", "")
    summed = tuple(axis for axis, label in enumerate(kernel) if label not in output)
    return summed or tuple(range(len(kernel)))


def _has_kernel(layer: Any) -> bool:
    known = type(layer).__module__.startswith("keras.")  # then what is no kernel by name is a bias or a scale
    weights = getattr(layer, "weights", ())  # frozen ones too: a head stays the head
    return any(len(weight.shape) >= 2 and (weight.name in KERNELS or not known) for weight in weights)


def _heads(part: Any) -> Iterator[keras.layers.Layer]:
    """Yield the heads within a model or a layer that has a kernel somewhere."""
    if isinstance(part, keras.Sequential):
        yield from _heads(next((layer for layer in reversed(part.layers) if _has_kernel(layer)), None))
    elif isinstance(part, keras.Model) and _has_graph(part):
        for output in part.outputs:
            for layer in _nearest(output):
                yield from _heads(layer)
    elif isinstance(part, keras.layers.Layer):
        inner = [layer for layer in sublayers(part) if _has_kernel(layer)]
        if inner:
            yield from _heads(inner[-1])
        elif _has_kernel(part):
            yield part


def _has_graph(model: keras.Model) -> bool:
    outputs = getattr(model, "outputs", None)  # a subclassed model may give the name to what it likes
    return isinstance(outputs, list) and bool(outputs) and all(made_by(output) is not None for output in outputs)


def _nearest(output: Any) -> list[Any]:
    """Return the layers with a kernel that lie nearest to an output, breadth first; those that tie, all of them."""
    tensors, seen = [output], set()
    while tensors:
        operations = {id(made.operation): made for made in map(made_by, tensors) if made is not None}
        with_kernel = [made.operation for made in operations.values() if _has_kernel(made.operation)]
        if with_kernel:
            return with_kernel
        tensors = [tensor for made in operations.values() for tensor in inputs_of(made) if id(tensor) not in seen]
        seen |= {id(tensor) for tensor in tensors}
    return []
