"""Initialize a model by its own data: every layer's output gets variance 1, whatever the architecture."""

from __future__ import annotations

import contextlib
import math
import random
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import holds_layers, replaced, sublayers
from gradrecipes.initializers.scaled import LARGEST_SEED


@dataclass(frozen=True)
class LsuvLayer:
    """What was done to one layer.

    Attributes:
        name: Path of the layer in the model.
        std_before: Standard deviation of its output before its activation, when its turn came, with the weights it
            had; over all samples, positions and units.
        std_after: The same at the end, with every layer in place.
        divisions: How often its kernel was divided.
        reached: Whether the deviation ended within the tolerance of 1.
    """

    name: str
    std_before: float
    std_after: float
    divisions: int
    reached: bool


@dataclass(frozen=True)
class LsuvResult:
    """What `lsuv` did, layer by layer in the order of the calls.

    Attributes:
        layers: The layers whose kernels it set.
        left_alone: Paths of layers with weights that it does not know how to set, such as recurrent ones.
    """

    layers: tuple[LsuvLayer, ...]
    left_alone: tuple[str, ...]

    @property
    def reached(self) -> bool:
        """Whether every layer that was set ended within the tolerance."""
        return all(layer.reached for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "reached": self.reached}

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5)
        lines = [f"{'layer':<{width}}  std before  std after  divisions"]
        lines += [
            f"{layer.name:<{width}}  {layer.std_before:>10.4g}  {layer.std_after:>9.4g}  {layer.divisions:>9}"
            + ("" if layer.reached else "  not reached")
            for layer in self.layers
        ]
        return "\n".join([*lines, *(f"{name}  left alone" for name in self.left_alone)])


def lsuv(
    model: keras.Model,
    x: Any,
    *,
    tolerance: float = 0.1,
    max_divisions: int = 10,
    seed: int | None = None,
) -> LsuvResult:
    """Give every dense and convolutional layer an orthonormal kernel, scaled so that its output has variance 1.

    Layer by layer in the order in which the model calls them: the kernel becomes orthonormal, then it is divided
    by the standard deviation of the layer's output before its activation, until that is 1. Needs no theory of the
    architecture: residual branches, concatenations and any activation are measured as they are. Biases stay, and
    so do layers that are frozen. Dropout is off and BatchNormalization uses its moving statistics, as in
    `model.predict`.

    Args:
        model: A Keras model of any kind; its weights are changed in place. Untrained: what it learned is lost.
        x: One batch of inputs as the model takes them, a few hundred samples.
        tolerance: Largest |std - 1| that is left as it is.
        max_divisions: Divisions of one kernel at the most, at least 1.
        seed: Fixes the numbers; else `keras.utils.set_random_seed` does.

    Raises:
        ValueError: An argument out of range, or a model without any layer that this can set.

    Example:
        >>> net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu"),
        ...                         keras.layers.Dense(1)])
        >>> result = lsuv(net, x, seed=0)
        >>> result.reached, len(result.layers)
        (True, 2)

    References:
        Mishkin, Matas 2015, arXiv 1511.06422, algorithm 1.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` must lie between 0 and 1. Received: tolerance={tolerance!r}.")
    if not isinstance(max_divisions, int) or max_divisions < 1:
        raise ValueError(f"`max_divisions` must be at least 1. Received: max_divisions={max_divisions!r}.")
    x = keras.tree.map_structure(tf.convert_to_tensor, x)
    model(keras.tree.map_structure(lambda part: part[:2], x))  # builds what is not built yet
    listener = _Listener(model)
    before = listener.measure(x)
    if not before:
        raise ValueError(
            f"The model {model.name!r} calls no layer with a trainable kernel of its own that can be set. "
            "Recurrent layers: see gr.initializers.identity_rnn and chrono_lstm."
        )
    numbers = random.Random(random.random() if seed is None else seed)
    done = [
        _set_layer(listener, layer, x, tolerance, max_divisions, numbers.randint(1, LARGEST_SEED)) for layer in before
    ]
    after = listener.measure(x)
    layers = tuple(
        LsuvLayer(layer.path, std_before, after[layer], divisions, _reached(after[layer], tolerance))
        for layer, (std_before, divisions) in zip(before, done, strict=True)
    )
    return LsuvResult(layers, _left_alone(model, before))


def _set_layer(
    listener: _Listener, layer: keras.layers.Layer, x: Any, tolerance: float, max_divisions: int, seed: int
) -> tuple[float, int]:
    kernel, before = layer.kernel, listener.measure(x)[layer]
    kernel.assign(keras.initializers.Orthogonal(seed=seed)(tuple(kernel.shape), dtype="float32"))
    for divisions in range(max_divisions):
        std = listener.measure(x)[layer]
        if _reached(std, tolerance) or not (math.isfinite(std) and std > 0):
            return before, divisions
        kernel.assign(kernel / std)
    return before, max_divisions


def _reached(std: float, tolerance: float) -> bool:
    return abs(std - 1.0) < tolerance


class _Listener:
    """Measure the outputs of all layers that can be set, before their activations, in one traced pass."""

    def __init__(self, model: keras.Model):
        self._model = model
        self._candidates = [layer for layer in _outside_loops(model) if _can_be_set(layer)]
        self._heard: list[keras.layers.Layer] = []
        self._pass = tf.function(self._forward, reduce_retracing=True)

    def measure(self, x: Any) -> dict[keras.layers.Layer, float]:
        """Return the standard deviation of each layer's output, in the order of the calls."""
        stds = np.asarray(self._pass(x))
        return dict(zip(self._heard, stds.tolist(), strict=True))

    def _forward(self, x: Any) -> tf.Tensor:
        graph, outputs = tf.compat.v1.get_default_graph(), {}

        def listening(layer, activation):
            def listen(output, *args, **kwargs):
                # Inside the loop of another layer there is no tensor to take out.
                if tf.compat.v1.get_default_graph() is graph:
                    outputs.setdefault(layer, []).append(tf.reshape(tf.cast(output, tf.float32), [-1]))
                return activation(output, *args, **kwargs)

            return listen

        with contextlib.ExitStack() as stack:
            for layer in self._candidates:
                stack.enter_context(replaced(layer, "activation", listening(layer, layer.activation)))
            self._model(x)
        self._heard = list(outputs)
        return tf.stack([tf.math.reduce_std(tf.concat(parts, 0)) for parts in outputs.values()]) if outputs else []


def _can_be_set(layer: keras.layers.Layer) -> bool:
    kernel = getattr(layer, "kernel", None)
    return (
        isinstance(kernel, keras.Variable)
        and len(kernel.shape) >= 2
        and kernel.trainable
        and callable(getattr(layer, "activation", None))
    )


def _left_alone(model: keras.Model, done: Any) -> tuple[str, ...]:
    taken = {id(variable) for layer in done for variable in layer.weights}
    left = {}
    for layer in _outside_loops(model):
        own = [variable for variable in layer.trainable_variables if id(variable) not in taken]
        if any(len(variable.shape) >= 2 for variable in own) and (
            isinstance(layer, keras.layers.RNN) or not holds_layers(layer)
        ):
            left[id(layer)] = layer.path
    return tuple(left.values())


def _outside_loops(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers of a model but for cells: one step of the loop they run in says nothing of the others."""
    layers = sublayers(model)
    cells = {id(cell) for layer in layers if isinstance(layer, keras.layers.RNN) for cell in sublayers(layer)}
    return [layer for layer in layers if id(layer) not in cells]
