"""Which entries of a variable lead to the same output unit, so that adaptive clipping can weigh unit by unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from gradrecipes.compat.keras_private import inputs_of, made_by, sublayers

Axes = tuple[int, ...]

layers = keras.layers
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
KERNELS = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings", "reverse_embeddings")


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
    owners = {}
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
