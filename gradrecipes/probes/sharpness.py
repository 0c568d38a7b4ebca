"""Find out whether the learning rate fits the curvature of the loss, without a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import leaves
from gradrecipes.core.analysis.learning_rates import (
    KNOWN,
    MEMORY_OF_SIZES,
    MEMORY_OF_SQUARES,
    StabilityLimit,
    stability_limit,
)
from gradrecipes.core.trace.trial_reading import Sharpness
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial_data import draw_batches, is_arrays, named

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


EXHAUSTED = 1e-6  # size of the next direction over that of the product: what is left of it is float32 rounding


@dataclass(frozen=True)
class Extremes:
    """Hold the ends of a spectrum.

    Args:
        largest: Largest eigenvalue (algebraically); never above the true one, but for rounding.
        smallest: Smallest one.
        error: Norm of the residual of the largest: an eigenvalue lies within this distance.
        iterations: Products that were taken.
        converged: Whether the error is within the tolerance.
    """

    largest: float
    smallest: float
    error: float
    iterations: int
    converged: bool


def extreme_eigenvalues(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, *, iterations: int = 20, tolerance: float = 0.01
) -> Extremes | None:
    """Return the ends of the spectrum by the Lanczos recurrence, in about 20 products and with three vectors in memory.

    `scipy.sparse.linalg.eigsh` counts restarts rather than products, and raises on a product that is not finite.

    Nothing is made orthogonal anew: that would need every vector, and lets only copies of eigenvalues appear that
    were found already, which the ends do not mind.

    Args:
        product: v to A v, float `[n]` both, A symmetric.
        start: Random vector, float `[n]`, not 0.
        iterations: Products at most, at least 1.
        tolerance: Error of the largest eigenvalue, over its size, at which to stop.

    Returns:
        `Extremes`, or None where a product is not finite.

    Raises:
        ValueError: A start of size 0 or not finite, or fewer than 1 iteration.

    Example:
        >>> spectrum = np.array([5.0, 1.0, -2.0])
        >>> round(extreme_eigenvalues(lambda v: spectrum * v, np.ones(3)).largest, 6)
        5.0
    """
    size = _norm(start)
    if not (math.isfinite(size) and size > 0):
        raise ValueError(f"`start` must be a finite vector that is not 0. Received a norm of {size}.")
    if iterations < 1:
        raise ValueError(f"`iterations` must be at least 1. Received: iterations={iterations}.")
    vector, before = start / size, np.zeros_like(start)
    diagonal: list[float] = []
    beside: list[float] = [0.0]
    while True:
        image = product(vector)
        scale = _norm(image)
        if not math.isfinite(scale):
            return None
        diagonal.append(float(np.dot(image, vector)))
        image = image - diagonal[-1] * vector - beside[-1] * before
        rest = _norm(image)
        values, vectors = _eigen(diagonal, beside[1:])
        error = rest * abs(float(vectors[-1, -1]))
        exhausted = rest <= EXHAUSTED * max(scale, abs(float(values[-1])))
        enough = len(diagonal) > 1 and error <= tolerance * abs(float(values[-1]))
        if exhausted or enough or len(diagonal) == iterations:
            break
        before, vector = vector, image / rest
        beside.append(rest)
    return Extremes(float(values[-1]), float(values[0]), error, len(diagonal), bool(exhausted or enough))


def _eigen(diagonal: list[float], beside: list[float]) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    return np.linalg.eigh(matrix)


def _norm(vector: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(float(np.sum(np.square(vector, dtype=np.float64))))


GRADIENTS = 8  # batches whose squared gradients stand for the memory of an optimizer that has none yet


def sharpness(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 32,
    batches: int = 1,
    iterations: int = 20,
    seed: int = 0,
) -> Sharpness:
    r"""Measure the curvature of the loss, and compare it with the stability limit of the optimizer.

    The largest eigenvalue lambda of the Hessian is found by the Lanczos recurrence on Hessian-vector products. A
    gradient step of rate eta along that direction grows from step to step where `eta * lambda > 2`; with momentum
    beta where it is above 2 (1 + beta); under Adam the Hessian is first divided by the size of past gradients, and
    the bound is 38 at beta_1 = 0.9. The model is left as it was.

    Read it before training, or to cap a rate. In the middle of a healthy training lambda sits at the limit by itself,
    and small batches curve more steeply than the whole data do. Before the first step an adaptive optimizer knows no
    sizes of gradients: those of a few batches stand in, and the figure is then a guess that may be far too high.

    Args:
        model: A compiled model.
        x: Arrays as `model.fit` takes them.
        y: Targets.
        batch_size: Samples in a batch; of fewer samples than that, all.
        batches: Batches over whose mean loss the curvature is taken.
        iterations: Hessian-vector products at most, each of the cost of about two gradients.
        seed: Which samples, which direction first, and what dropout leaves out.

    Returns:
        `Sharpness`, with `ratio` and words; what could not be had is None in it, with the reason.

    Raises:
        ValueError: A model that is not compiled or has no trainable weights, or arguments out of range.
        TypeError: Data that are no arrays.

    Example:
        >>> found = gr.probes.sharpness(model, x, y)
        >>> round(found.limit, 3), found.ratio > 0
        (200.0, True)

    References:
        Cohen et al. 2021, arXiv 2103.00065; Cohen et al. 2022, arXiv 2207.14484.
    """
    if not model.compiled:
        raise ValueError(f"The model {model.name!r} has no loss yet. Compile it first: model.compile(loss=...).")
    if not is_arrays(x):
        raise TypeError(f"`x` must be arrays, of which samples can be drawn. Received: {type(x).__name__}.")
    for name, value in (("batch_size", batch_size), ("batches", batches), ("iterations", iterations)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a whole number, at least 1. Received: {name}={value!r}.")
    batch_size = min(batch_size, len(keras.tree.flatten(x)[0]))
    data = draw_batches((x, y), batch_size=batch_size, batches=max(batches, GRADIENTS), seed=seed)
    cut = [_batch(data, start, batch_size) for start in range(0, max(batches, GRADIENTS) * batch_size, batch_size)]
    if not model.built:
        model(_batch(data, 0, 1)[0])
    if not model.trainable_variables:
        raise ValueError(f"The model {model.name!r} has no trainable weights, and so no curvature.")
    optimizers = leaves(model.optimizer)
    limit, rate, reason = _limit(optimizers)
    with preserve_state(model):
        curvature = Curvature(model, cut[:batches], seed=seed)
        try:
            scale = divisor(optimizers[0], curvature.size, lambda: curvature.gradients(cut[:GRADIENTS]))
            found = _measured(curvature, None if scale is None else 1 / np.sqrt(scale[0]), iterations, seed)
        except Exception as error:  # the user's own layers and loss run here, and may fail in any way
            return Sharpness(reason=f"The loss has no gradient that could be derived again: {named(error)}")
    reason = "A gradient, or its derivative, is not finite." if found is None else reason
    return Sharpness(
        lambda_max=None if found is None else found.largest,
        lambda_min=None if found is None else found.smallest,
        limit=None if limit is None else limit.limit,
        learning_rate=rate,
        iterations=0 if found is None else found.iterations,
        converged=found is not None and found.converged,
        preconditioned=scale is not None,
        preconditioner=None if scale is None else scale[1],
        method=curvature.method,
        formula="" if limit is None else limit.formula,
        reason=reason,
    )


def _measured(curvature: Curvature, scale: np.ndarray | None, iterations: int, seed: int) -> Extremes | None:
    start = np.random.default_rng(seed).standard_normal(curvature.size, dtype=np.float32)
    if scale is None:
        return extreme_eigenvalues(curvature.product, start, iterations=iterations)
    # P^-1/2 H P^-1/2 is symmetric and has the eigenvalues of P^-1 H.
    return extreme_eigenvalues(lambda v: scale * curvature.product(scale * v), start, iterations=iterations)


def _limit(optimizers: Sequence[Any]) -> tuple[StabilityLimit | None, float | None, str | None]:
    if len(optimizers) > 1:
        return None, None, "The model has several optimizers, each with a limit of its own."
    optimizer = optimizers[0]
    rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    if not (math.isfinite(rate) and rate >= 0):
        return None, None, f"The learning rate is {rate}."
    limit = stability_limit({**optimizer.get_config(), "name": type(optimizer).__name__}, rate)
    known = f"No limit is known for {type(optimizer).__name__}, only for {', '.join(KNOWN)}."
    return limit, rate, None if limit else known


def _batch(data: tuple[Any, ...], start: int, size: int) -> tuple[Any, ...]:
    return keras.tree.map_structure(lambda part: None if part is None else part[start : start + size], data)
