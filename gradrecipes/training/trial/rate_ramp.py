"""Train for a few batches while the learning rate rises, with the model's own train step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat import keras_private
from gradrecipes.core.analysis.range_test import has_diverged


class RateRamp:
    """Run the train step of a model once for each rate, and note the loss of each batch on its own.

    The rate is put where the optimizer reads it, so that constants and schedules are left alone.

    Args:
        model: A compiled model.
        rates: float64 `[batches]`, from small to large.

    Attributes:
        losses: The loss of each batch so far.
        diverged: Whether the loss went beyond use, which ends the ramp.

    Raises:
        ValueError: The model is not compiled.
    """

    def __init__(self, model: keras.Model, rates: np.ndarray):
        if not model.compiled or not keras_private.optimizers_of(model):
            raise ValueError(
                f"The model {model.name!r} has no optimizer whose rate could be varied. Compile it first: "
                "model.compile(optimizer=..., loss=...)."
            )
        self._model = model
        self._rates = rates
        self._rate = tf.Variable(rates[0], dtype=tf.float32, trainable=False)
        self.losses: list[float] = []
        self.diverged = False

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.diverged or len(self.losses) >= len(self._rates)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put the ramp in the place of the model's train function within the `with` block."""
        model = self._model
        before, stopped = model.train_function, model.stop_training
        model.train_function = self.train_function()
        try:
            yield
        finally:
            model.train_function, model.stop_training = before, stopped

    def train_function(self) -> Callable[[Any], dict[str, Any]]:
        """Return a function that `fit` can call in the place of the model's own."""
        one_step = keras_private.compile_train_step(self._model, self._model.train_step)

        def train_function(iterator: Any) -> dict[str, Any]:
            self._rate.assign(self._rates[min(len(self.losses), len(self._rates) - 1)])
            self._model.reset_metrics()  # else the loss in the logs is the mean over the epoch so far
            with self._rate_in_place():
                logs = one_step(iterator)
            self._note(logs)
            return logs

        return train_function

    def _note(self, logs: dict[str, Any]) -> None:
        if "loss" not in logs:
            raise ValueError(
                f"The train step of {self._model.name!r} does not return its loss. Received: {', '.join(logs)}. "
                'Let it return {"loss": ...} for each batch.'
            )
        self.losses.append(float(logs["loss"]))
        self.diverged = has_diverged(np.array(self.losses))
        if self.over:
            self._model.stop_training = True

    @contextlib.contextmanager
    def _rate_in_place(self) -> Iterator[None]:
        leaves = [leaf for whole in keras_private.optimizers_of(self._model) for leaf in keras_private.leaves(whole)]
        with contextlib.ExitStack() as stack:
            for leaf in leaves:
                stack.enter_context(keras_private.replaced(leaf, "_get_current_learning_rate", self._read))
            yield

    def _read(self) -> tf.Tensor:
        return tf.convert_to_tensor(self._rate)
