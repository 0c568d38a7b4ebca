"""The Hessian of a model's loss, by its products with vectors, and what an optimizer divides its gradient by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.theory.stability import MEMORY_OF_SIZES, MEMORY_OF_SQUARES

DIFFERENCE = 1e-4  # length of a finite step over that of the weights; longer ones cross the kinks of ReLU nets
Batch = tuple[Any, Any]


class Curvature:
    """Multiply the Hessian of the mean loss over some batches with vectors, in training mode.

    Every pass begins from the same moving statistics and seeds, so that dropout leaves out the same units each time.
    To be used within `preserve_state` only.

    Args:
        model: A compiled, built model.
        batches: Pairs of inputs and targets.
        seed: Fixes the noise of layers such as Dropout.
    """

    def __init__(self, model: keras.Model, batches: Sequence[Batch], *, seed: int):
        self._model, self._batches = model, [keras.tree.map_structure(_tensor, batch) for batch in batches]
        self._variables = list(model.trainable_variables)
        self._shapes = [tuple(variable.shape) for variable in self._variables]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        self._state = [(variable, _fixed(variable, seed)) for variable in model.non_trainable_variables]
        self._traced: dict[Any, Callable[..., tf.Tensor]] = {}
        self.method: str | None = None

    @property
    def size(self) -> int:
        """How many weights there are."""
        return sum(self._sizes)

    def gradients(self, batches: Sequence[Batch]) -> list[np.ndarray]:
        """Return the gradient of each batch, float32 `[weights]`."""
        return [self._called(self._flat_gradient, keras.tree.map_structure(_tensor, batch)) for batch in batches]

    def product(self, vector: np.ndarray) -> np.ndarray:
        """Return the Hessian times a vector, float32 `[weights]` both.

        Where an operation has no second derivative the gradients on either side are subtracted instead.
        """
        if self.method == "finite_difference":
            return self._difference(vector)
        try:
            image = self._mean(self._flat_product, tf.constant(vector, tf.float32))
        except Exception:  # of any kind: a gradient function that cannot be derived raises what it likes
            if self.method is not None:  # it worked before, so this is another trouble
                raise
            image = self._difference(vector)
            self.method = "finite_difference"
            return image
        self.method = "double_backprop"
        return image

    def _mean(self, function: Callable[..., tf.Tensor], *arguments: Any) -> np.ndarray:
        return np.mean([self._called(function, batch, *arguments) for batch in self._batches], axis=0)

    def _called(self, function: Callable[..., tf.Tensor], batch: Batch, *arguments: Any) -> np.ndarray:
        for variable, value in self._state:
            variable.assign(value)
        # A concrete function: TensorFlow warns of retracing when one method of many models is traced.
        key = (function, *(part.shape for part in keras.tree.flatten(batch) if part is not None))
        if key not in self._traced:
            self._traced[key] = tf.function(function).get_concrete_function(*batch, *arguments)
        return np.asarray(self._traced[key](*batch, *arguments))

    def _difference(self, vector: np.ndarray) -> np.ndarray:
        weights = [np.asarray(tf.convert_to_tensor(variable)) for variable in self._variables]
        length = np.sqrt(sum(float(np.sum(np.square(part, dtype=np.float64))) for part in weights))
        step = DIFFERENCE * max(1.0, length)
        sides = []
        try:
            for sign in (1.0, -1.0):
                for variable, part, along in zip(self._variables, weights, self._parts(vector), strict=True):
                    variable.assign(part + sign * step * along)
                sides.append(self._mean(self._flat_gradient))
        finally:
            for variable, part in zip(self._variables, weights, strict=True):
                variable.assign(part)
        return (sides[0] - sides[1]) / (2 * step)

    def _parts(self, flat: Any) -> list[Any]:
        parts = (
            tf.split(flat, self._sizes) if isinstance(flat, tf.Tensor) else np.split(flat, np.cumsum(self._sizes)[:-1])
        )
        reshape = tf.reshape if isinstance(flat, tf.Tensor) else np.reshape
        return [reshape(part, shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _loss(self, x: Any, y: Any) -> tf.Tensor:
        return self._model.compute_loss(x=x, y=y, y_pred=self._model(x, training=True), training=True)

    def _flat_gradient(self, x: Any, y: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self._loss(x, y)
        return _flat(tape.gradient(loss, self._values(), unconnected_gradients=tf.UnconnectedGradients.ZERO))

    def _flat_product(self, x: Any, y: Any, vector: tf.Tensor) -> tf.Tensor:
        along = self._parts(vector)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = self._loss(x, y)
            gradients = inner.gradient(loss, self._values(), unconnected_gradients=tf.UnconnectedGradients.ZERO)
            pairs = zip(gradients, along, strict=True)
            slope = tf.add_n([tf.reduce_sum(tf.cast(tf.convert_to_tensor(g), tf.float32) * v) for g, v in pairs])
        return _flat(outer.gradient(slope, self._values(), unconnected_gradients=tf.UnconnectedGradients.ZERO))

    def _values(self) -> list[Any]:
        return [variable.value for variable in self._variables]


def divisor(
    optimizer: keras.optimizers.Optimizer, sizes: int, gradients: Callable[[], list[np.ndarray]]
) -> tuple[np.ndarray, str] | None:
    """Return what an adaptive optimizer divides each gradient by, float32 `[weights]`, and whence it is known.

    Args:
        optimizer: The optimizer that updates the weights.
        sizes: How many weights there are.
        gradients: Makes the gradients of some batches; asked for only where the optimizer has seen none.

    Returns:
        The divisor with "state" or "gradients"; None for an optimizer that does not divide.
    """
    name = type(optimizer).__name__
    if name not in MEMORY_OF_SQUARES and name not in MEMORY_OF_SIZES:
        return None
    memory, steps = _memory(optimizer, {**MEMORY_OF_SQUARES, **MEMORY_OF_SIZES}[name]), int(optimizer.iterations)
    epsilon = float(optimizer.epsilon)
    seen = steps > 0 and memory is not None and memory.size == sizes
    if not seen:
        memory = np.mean(np.square(gradients(), dtype=np.float64), axis=0)
        memory = np.sqrt(memory) if name in MEMORY_OF_SIZES else memory
        memory += float(getattr(optimizer, "initial_accumulator_value", 0.0))
    elif hasattr(optimizer, "beta_2") and name not in MEMORY_OF_SIZES:
        grown = 1.0 - float(optimizer.beta_2) ** steps
        memory = memory / grown
        epsilon /= 1.0 if name == "Nadam" else np.sqrt(grown)  # Adam adds it before the correction of the bias
    if name in MEMORY_OF_SIZES:
        scale = memory + epsilon
    elif name in ("RMSprop", "Adagrad"):  # they add it under the root
        scale = np.sqrt(memory + epsilon)
    else:
        scale = np.sqrt(memory) + epsilon
    return scale.astype(np.float32), "state" if seen else "gradients"


def _memory(optimizer: keras.optimizers.Optimizer, ending: str) -> np.ndarray | None:
    """Return the slots of this name, one after the other, float64 `[weights]`."""
    ending = f"{ending}_hat" if getattr(optimizer, "amsgrad", False) else ending
    slots = [variable for variable in optimizer.variables if variable.name.endswith(f"_{ending}")]
    values = [np.asarray(tf.convert_to_tensor(slot), np.float64).ravel() for slot in slots]
    if getattr(optimizer, "centered", False):
        means = [variable for variable in optimizer.variables if variable.name.endswith("_average_gradient")]
        pairs = zip(values, means, strict=True)
        values = [
            np.maximum(v - np.square(np.asarray(tf.convert_to_tensor(m), np.float64).ravel()), 0) for v, m in pairs
        ]
    return np.concatenate(values) if values else None


def _flat(gradients: Sequence[Any]) -> tf.Tensor:
    return tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(g), tf.float32), [-1]) for g in gradients], axis=0)


def _fixed(variable: Any, seed: int) -> Any:
    """Return the value of a variable that a pass may change; a state of random numbers begins at the seed."""
    value = tf.identity(tf.convert_to_tensor(variable))
    is_seed = value.dtype == tf.uint32 and value.shape == (2,)
    return tf.constant([seed % 2**32, 0], tf.uint32) if is_seed else value


def _tensor(part: Any) -> tf.Tensor | None:
    return None if part is None else tf.convert_to_tensor(part)
