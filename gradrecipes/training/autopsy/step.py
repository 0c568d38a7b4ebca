"""One training step, run eagerly for an autopsy: captured layer by layer, with the loss of every sample."""

from __future__ import annotations

import inspect
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.compat.tensorflow_private import variable_of
from gradrecipes.training.autopsy.arrays import Numbers, dense, leaves, numbers_of, taken
from gradrecipes.training.autopsy.call_recorder import CallRecorder
from gradrecipes.training.recovery.model_state import preserve_state

SAMPLES_AT_MOST = 4096  # samples whose loss is computed alone, about a millisecond each
RUNS_AT_MOST = 64  # steps on parts of a batch while the samples behind a gradient are sought
SECONDS_AT_MOST = 30.0  # for the gradients of single samples


@dataclass(frozen=True)
class Batch:
    """What a train step gets: inputs, targets and sample weights, each possibly nested, and how many samples."""

    x: Any
    y: Any
    sample_weight: Any
    size: int

    @classmethod
    def of(cls, data: Any) -> Batch:
        """Take the batch apart as `keras.Model.train_step` does."""
        data = tuple(data) if isinstance(data, list) else data
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, y, sample_weight = (keras.tree.map_structure(_tensor, part) for part in (x, y, sample_weight))
        sizes = [part.shape[0] for _, part in leaves("x", x) if getattr(part, "shape", None)]
        return cls(x, y, sample_weight, int(sizes[0] or 0) if sizes else 0)

    def take(self, samples: Any) -> Batch:
        """Return some of the samples."""
        samples = np.asarray(samples)
        parts = (taken(part, samples, self.size) for part in (self.x, self.y, self.sample_weight))
        return Batch(*parts, len(samples))


@dataclass
class Step:
    """What one step showed.

    Args:
        model: The model.
        batch: The batch.
        recorder: The calls of all layers, and the tensors there.
        loss: The loss, unscaled; None where it could not be computed.
        named_losses: The loss of each output, where there are several.
        additional_losses: What layers add to the loss, by the names of the layers.
        sample_losses: The loss of each sample alone, NaN for those that raised; empty where it could not be had.
        raised: The error that each sample raised, by its index.
        gradients: Of each trainable weight, still multiplied by the loss scale; None where the loss does not depend
            on it.
        scale: What the loss was multiplied by.
        failed: The part that could not be run, `"forward"`, `"loss"` or `"backward"`, or an empty string.
        error: Why not.
    """

    model: keras.Model
    batch: Batch
    recorder: CallRecorder
    y_pred: Any = None
    loss: float | None = None
    named_losses: dict[str, float] = field(default_factory=dict)
    additional_losses: dict[str, float] = field(default_factory=dict)
    sample_losses: list[float] = field(default_factory=list)
    raised: dict[int, str] = field(default_factory=dict)
    gradients: list[Any] = field(default_factory=list)
    numbers: list[Numbers | None] = field(default_factory=list)
    scale: float = 1.0
    failed: str = ""
    error: str = ""
    tape: Any = None
    loss_tensor: Any = None
    sample_tensors: list[Any] = field(default_factory=list)

    @property
    def variables(self) -> list[Any]:
        """The trainable weights, in the order of the gradients."""
        return list(self.model.trainable_weights)

    @property
    def broken_gradients(self) -> list[int]:
        """Places of the trainable weights whose gradient is not finite."""
        return [place for place, numbers in enumerate(self.numbers) if numbers is not None and numbers.found]


def run_step(model: keras.Model, batch: Batch, *, each_sample: bool) -> Step:
    """Run forward pass, loss and backward pass; within `preserve_state` only, for the state moves on.

    Args:
        model: The model.
        batch: The batch.
        each_sample: Whether the loss of every sample alone is wanted.
    """
    step = Step(model, batch, CallRecorder(model, batch.size))
    step.tape = tf.GradientTape(persistent=True)
    stage = "forward"
    try:
        with step.tape:
            with step.recorder.installed():
                step.y_pred = _call(model, batch.x)
                stage = "loss"
                step.additional_losses = _additional_losses(model)
                for metric in _loss_metrics(model):
                    metric.reset_state()
                step.loss_tensor = _loss(model, batch, step.y_pred)
            step.loss = _mean(step.loss_tensor)
            step.named_losses = {metric.name: float(metric.result()) for metric in _loss_metrics(model)}
            scaled = _scaled(model, step.loss_tensor)
            if each_sample:
                _add_sample_losses(step)
        stage = "backward"
        step.scale = float(_scaled(model, tf.constant(1.0)))
        step.gradients = step.tape.gradient(scaled, [variable_of(variable) for variable in step.variables])
        step.numbers = [None if part is None else numbers_of(part, -1) for part in step.gradients]
    except Exception as error:  # the models that come here are broken in ways that nobody foresaw
        step.failed, step.error = stage, _first_lines(error)
        if stage == "loss" and step.y_pred is not None and each_sample:
            _add_sample_losses(step)
    return step


def unscaled_is_finite(step: Step) -> bool:
    """Return whether the gradients of all weights are finite without the loss scale."""
    with step.recorder.paused():
        gradients = step.tape.gradient(step.loss_tensor, [variable_of(variable) for variable in step.variables])
    read = [numbers_of(part, -1) for part in gradients if part is not None]
    return all(numbers is None or numbers.found is None for numbers in read)


def sample_gradient_norms(step: Step) -> list[float]:
    """Return the L2 norm of each sample's own gradient, through the batch's own forward pass.

    The samples of the largest loss come first; NaN for those that the time did not suffice for.
    """
    norms = [math.nan] * step.batch.size
    variables = [variable_of(variable) for variable in step.variables]
    start = time.monotonic()
    losses = [loss if math.isfinite(loss) else math.inf for loss in step.sample_losses]
    with step.recorder.paused():
        for sample in sorted(range(len(losses)), key=lambda sample: -abs(losses[sample])):
            if time.monotonic() - start > SECONDS_AT_MOST:
                break
            if step.sample_tensors[sample] is None:
                continue
            gradients = step.tape.gradient(step.sample_tensors[sample], variables)
            read = [numbers_of(part, -1) for part in gradients if part is not None]
            read = [numbers for numbers in read if numbers is not None]
            broken = any(numbers.found for numbers in read)
            norms[sample] = math.inf if broken else math.sqrt(sum(numbers.squares for numbers in read))
    return norms


def guilty_samples(model: keras.Model, batch: Batch, broken: Callable[[Step], bool]) -> list[int]:
    """Return the samples that break a step by themselves, found by halving the batch; at most `RUNS_AT_MOST` steps.

    A part of the batch that could not be looked into any more is returned whole.
    """
    guilty: list[int] = []
    runs = 0
    parts = [half for half in _halves(np.arange(batch.size)) if len(half)]
    while parts:
        part = parts.pop(0)
        if runs >= RUNS_AT_MOST:
            guilty.extend(int(sample) for sample in part)
            continue
        runs += 1
        with preserve_state(model):
            if not broken(run_step(model, batch.take(part), each_sample=False)):
                continue
        if len(part) == 1:
            guilty.append(int(part[0]))
        else:
            parts += _halves(part)
    return sorted(guilty)


def _halves(samples: np.ndarray) -> list[np.ndarray]:
    return [samples[: len(samples) // 2], samples[len(samples) // 2 :]]


def _call(model: keras.Model, x: Any) -> Any:
    parameters = inspect.signature(type(model).call).parameters.values()
    takes = any(one.name == "training" or one.kind is one.VAR_KEYWORD for one in parameters)
    return model(x, training=True) if takes else model(x)


def _loss(model: keras.Model, batch: Batch, y_pred: Any) -> tf.Tensor:
    arguments = {"x": batch.x, "y": batch.y, "y_pred": y_pred, "sample_weight": batch.sample_weight}
    if "training" in inspect.signature(model.compute_loss).parameters:  # an override from before Keras 3.3 lacks it
        arguments["training"] = True
    return tf.convert_to_tensor(model.compute_loss(**arguments))


def _mean(loss: tf.Tensor) -> float:
    if not tf.size(loss):
        raise ValueError("The batch holds no samples.")
    return float(tf.reduce_mean(loss))  # a loss of each sample is logged as its mean


def _scaled(model: keras.Model, loss: tf.Tensor) -> tf.Tensor:
    optimizer = getattr(model, "optimizer", None)
    return loss if optimizer is None else tf.convert_to_tensor(optimizer.scale_loss(loss))


def _add_sample_losses(step: Step) -> None:
    batch = step.batch
    if not 0 < batch.size <= SAMPLES_AT_MOST:
        return
    for sample in range(batch.size):
        one = np.array([sample])
        try:
            value = _loss(step.model, batch.take(one), taken(step.y_pred, one, batch.size))
        except Exception as error:
            step.raised[sample], value = _first_lines(error), None
        step.sample_tensors.append(value)
        step.sample_losses.append(math.nan if value is None else _mean(value))


def _additional_losses(model: keras.Model) -> dict[str, float]:
    found = {}
    for layer in sublayers(model):
        if not sublayers(layer) and layer.losses:  # a layer that holds others repeats theirs
            found[layer.name] = float(sum(float(dense(loss)) for loss in layer.losses))
    total = sum(float(dense(loss)) for loss in model.losses)
    if not math.isfinite(total) and all(map(math.isfinite, found.values())):
        found[model.name] = total
    return found


def _loss_metrics(model: keras.Model) -> list[Any]:
    return [metric for metric in model.metrics if metric.name.endswith("_loss") and hasattr(metric, "result")]


def _tensor(value: Any) -> Any:
    if value is None or isinstance(value, (tf.Tensor, tf.SparseTensor, tf.RaggedTensor)):
        return value
    return tf.convert_to_tensor(value)


def _first_lines(error: Exception) -> str:
    text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())  # Keras writes parts of its errors in bold
    return f"{type(error).__name__}: {text[:300]}"
