"""Find a learning rate in a hundred batches, before any training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat import keras_private
from gradrecipes.compat.keras_private import optimizers_of, replaced
from gradrecipes.core.analysis.learning_rates import has_diverged, range_of_rates
from gradrecipes.plots.measured import LearningRateRange
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial_data import draw_batches, is_arrays


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


def learning_rate_range(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 32,
    lowest: float = 1e-7,
    highest: float = 10.0,
    batches: int = 100,
    seed: int = 0,
) -> LearningRateRange:
    """Raise the learning rate from batch to batch until the loss explodes, and say which rates suit the training.

    The model is trained by its own train step, with whatever optimizer, loss and clipping it is compiled with, and
    put back afterwards to the bit: weights, moving statistics, seeds, metrics, optimizer. A schedule in the
    optimizer stays out of the way meanwhile. The loss of each batch is read on its own, not as the running mean
    that the logs show.

    Args:
        model: A compiled model.
        x: Arrays as `model.fit` takes them, or a `tf.data.Dataset`, generator or `keras.utils.PyDataset`.
        y: Targets; None with a dataset.
        batch_size: Samples in a batch; of arrays only.
        lowest: First learning rate.
        highest: Last one; the test stops earlier when the loss is not finite or four times its best.
        batches: How many, which sets how finely the rates are scanned.
        seed: Order of the samples; of arrays only.

    Returns:
        `LearningRateRange`, with `valley`, `steepest`, `minimum_tenth` and a plot.

    Raises:
        ValueError: A model that is not compiled, or arguments out of range.

    Example:
        >>> curve = gr.probes.learning_rate_range(model, x, y, batch_size=64, batches=40)
        >>> bool(1e-7 < curve.valley < 10)
        True

    References:
        Smith 2015, arXiv 1506.01186; the suggestions as in fastai's `lr_find`.
    """
    rates = range_of_rates(lowest, highest, batches)
    ramp = RateRamp(model, rates)
    fit: dict[str, Any] = {"verbose": 0, "shuffle": False}
    if is_arrays(x):
        x, y = draw_batches((x, y), batch_size=batch_size, batches=batches, seed=seed)
        fit |= {"batch_size": batch_size}
        first = keras.tree.map_structure(lambda part: part[:1], x)
        if not model.built:
            model(first)
    elif isinstance(x, tf.data.Dataset):
        x = x.repeat()
        fit |= {"steps_per_epoch": batches}
    else:
        fit |= {"epochs": batches}  # as often as it takes; the ramp ends it
    _build(model)
    history = getattr(model, "history", None)
    try:
        with preserve_state(model), replaced(model, "steps_per_execution", 1), ramp.installed():
            model.fit(x, y, **fit)
    finally:
        model.history = history
    return LearningRateRange(rates[: len(ramp.losses)], np.array(ramp.losses))


def _build(model: keras.Model) -> None:
    """Let the optimizer make its slots before they are copied, so that they can be put back."""
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built, and a dataset cannot build it without losing a batch. "
            "Call it on one batch first, or give it a keras.Input."
        )
    for optimizer in optimizers_of(model):
        if not optimizer.built and len(optimizers_of(model)) == 1:
            optimizer.build(model.trainable_variables)
