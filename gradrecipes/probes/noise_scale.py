"""Measure the noise of the gradient, to see which batch size suits a model and its data, without training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.analysis.noise_scale import estimate_signal_and_noise
from gradrecipes.plots.measured import NoiseScale
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial_data import draw_batches, is_arrays

PARTS = 8  # micro-batches in a batch when nothing is said: more tell the noise better, and cost more passes


class MicroBatches:
    """Cut batches into parts and estimate the true gradient's size and its noise, batch by batch.

    The forward passes run in training mode: put them within `preserve_state`.

    Args:
        model: A compiled model.
        batch_size: Samples in a batch, at least 2.
        micro_batch_size: Samples in a part, a divisor of the batch size. Defaults to the largest one that makes at
            least 8 parts.

    Raises:
        ValueError: A model that is not compiled, or sizes that do not fit.
    """

    def __init__(self, model: keras.Model, *, batch_size: int, micro_batch_size: int | None = None):
        if not model.compiled:
            raise ValueError(f"The model {model.name!r} has no loss yet. Compile it first: model.compile(loss=...).")
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 2:
            raise ValueError(
                f"`batch_size` must be at least 2, to be cut into parts. Received: batch_size={batch_size!r}."
            )
        small = _divisor(batch_size) if micro_batch_size is None else micro_batch_size
        if not isinstance(small, int) or not 1 <= small < batch_size or batch_size % small:
            raise ValueError(
                "`micro_batch_size` must divide `batch_size` and be smaller. "
                f"Received: micro_batch_size={small!r}, batch_size={batch_size}."
            )
        self._model, self._large, self._small = model, batch_size, small
        self._gradient = tf.function(self._gradients, reduce_retracing=True)

    def measure(self, data: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return |G|^2 and S of each batch, float64 `[batches]` both.

        Args:
            data: Inputs and targets, arrays whose samples lie batch after batch.

        Raises:
            ValueError: The model has no trainable weights.
        """
        if not self._model.trainable_variables:
            raise ValueError(f"The model {self._model.name!r} has no trainable weights, and so no gradient.")
        batches = len(keras.tree.flatten(data)[0]) // self._large
        squares = np.array([self._squares(data, batch * self._large) for batch in range(batches)])
        return estimate_signal_and_noise(squares[:, 0], squares[:, 1], large_batch=self._large, small_batch=self._small)

    def _squares(self, data: tuple[Any, ...], start: int) -> tuple[float, float]:
        """Return the squared norm of the gradient of a batch, and the mean over its parts."""
        parts = self._large // self._small
        total: list[np.ndarray] = []
        square = 0.0
        for part in range(parts):
            first = start + part * self._small
            x, y = keras.tree.map_structure(lambda array, first=first: self._slice(array, first), data)
            gradient = [np.asarray(tensor, np.float64) for tensor in self._gradient(x, y)]
            square += _squared_norm(gradient) / parts
            total = [a + b for a, b in zip(total, gradient, strict=True)] if total else gradient
        return _squared_norm(total) / parts**2, square

    def _slice(self, array: Any, first: int) -> tf.Tensor | None:
        return None if array is None else tf.convert_to_tensor(array[first : first + self._small])

    def _gradients(self, x: Any, y: Any) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = self._model.compute_loss(x=x, y=y, y_pred=self._model(x, training=True), training=True)
        found = tape.gradient(loss, self._model.trainable_variables)
        return [tf.convert_to_tensor(part) for part in found if part is not None]


def _divisor(batch_size: int) -> int:
    most = max(1, batch_size // PARTS)
    return max(size for size in range(1, most + 1) if batch_size % size == 0)


def _squared_norm(arrays: list[np.ndarray]) -> float:
    return sum(float(np.sum(np.square(array))) for array in arrays)


def noise_scale(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 32,
    micro_batch_size: int | None = None,
    batches: int = 20,
    seed: int = 0,
) -> NoiseScale:
    """Measure how much of a batch's gradient is noise, and say whether the batch is too small or too large.

    Each batch is cut into micro-batches; from the gradients of both follow the true gradient and its noise. The
    model is left as it was. Measure again after some training: the scale usually grows as the loss falls.
    BatchNormalization ties the samples of a micro-batch together, which biases the figure.

    Args:
        model: A compiled model.
        x: Arrays as `model.fit` takes them.
        y: Targets.
        batch_size: The batch size to judge, at least 2.
        micro_batch_size: Samples in a part, a divisor of the batch size. Defaults to the largest divisor that
            makes at least 8 parts.
        batches: How many batches, at least 2; more make the interval narrower.
        seed: Which samples.

    Returns:
        `NoiseScale`, with `noise_scale` in samples, its interval, `advice` and a plot.

    Raises:
        ValueError: A model that is not compiled, or arguments out of range.
        TypeError: Data that are no arrays.

    Example:
        >>> found = gr.probes.noise_scale(model, x, y, batch_size=16, batches=8)
        >>> found.noise_scale > 0
        True

    References:
        McCandlish et al. 2018, arXiv 1812.06162.
    """
    if not is_arrays(x):
        raise TypeError(f"`x` must be arrays, which can be cut into micro-batches. Received: {type(x).__name__}.")
    if not isinstance(batches, int) or batches < 2:
        raise ValueError(f"`batches` must be a whole number, at least 2. Received: batches={batches!r}.")
    parts = MicroBatches(model, batch_size=batch_size, micro_batch_size=micro_batch_size)
    data = draw_batches((x, y), batch_size=batch_size, batches=batches, seed=seed)
    if not model.built:
        model(keras.tree.map_structure(lambda part: part[:1], data[0]))
    with preserve_state(model):
        signals, noises = parts.measure(data)
    return NoiseScale(signals, noises, batch_size=batch_size)
