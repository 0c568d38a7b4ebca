"""What each output of a net is to learn, and the standard loss of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.analysis.baseline import squares_left, wrong_classes
from gradrecipes.core.trace.description import OutputDescription
from gradrecipes.core.trace.probes import OutputReading
from gradrecipes.probes.loss import as_loss
from gradrecipes.probes.varied.variations import Context
from gradrecipes.training.description.output_head import losses_of

FAR_TARGET = 3.0  # root mean square of targets, or one over their spread, that is far from 1
LEAST, CERTAIN = 1e-6, 0.96  # of a probability that is taken for a logit; distance of two that are right
CLASSES, YES_OR_NO, NUMBERS = "classes", "yes or no", "numbers"
FITTING = {CLASSES: ("sparse_categorical_crossentropy", "categorical_crossentropy")}
FITTING |= {YES_OR_NO: ("binary_crossentropy",), NUMBERS: ("mean_squared_error",)}
BOUNDED = {CLASSES: "softmax", YES_OR_NO: "sigmoid"}


@dataclass(frozen=True)
class Task:
    """What one output is to learn.

    Args:
        output: Its place.
        target: Place of its target.
        kind: `CLASSES`, `YES_OR_NO` or `NUMBERS`.
        low: Of the two values that stand for no and yes, the lower; of numbers the mean of each column.
        size: Difference of the two values; of numbers the standard deviations.
        far: Whether numbers are far from unit size.
    """

    output: int
    target: int
    kind: str
    low: Any = 0.0
    size: Any = 1.0
    far: bool = False

    def scaled(self, target: tf.Tensor, shape: Any) -> tf.Tensor:
        """Return the target as the standard loss takes it: shares of classes, 0 and 1, or standardized numbers."""
        if self.kind == CLASSES and tuple(target.shape) != tuple(shape):
            return tf.one_hot(tf.cast(tf.reshape(target, shape[:-1]), tf.int32), shape[-1])
        return tf.reshape((tf.cast(target, tf.float32) - self.low) / self.size, shape)

    def loss(self, target: tf.Tensor, answer: tf.Tensor) -> tf.Tensor:
        """Return the mean standard loss of answers that are logits, or standardized numbers."""
        answer, wanted = tf.cast(answer, tf.float32), self.scaled(target, answer.shape)
        if self.kind == CLASSES:
            return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(wanted, answer))
        if self.kind == YES_OR_NO:
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(wanted, answer))
        return tf.reduce_mean(tf.square(wanted - answer))

    def errors(self, target: np.ndarray, answer: np.ndarray) -> list[np.ndarray]:
        """Return the error of each row over that of the best constant, by each measure that fits the kind."""
        wanted = np.asarray(self.scaled(tf.constant(target), answer.shape), np.float64)
        if self.kind == CLASSES:
            return [wrong_classes(wanted, answer)]
        ordered = self.kind == NUMBERS and np.ndim(self.low) == 0
        return [squares_left(wanted, answer, ranks=ranks) for ranks in ((False, True) if ordered else (False,))]


def tasks_of(context: Context, batches: Sequence[Any]) -> list[Task]:
    """Return what each output is to learn; nothing where one of them cannot be told."""
    description, read = context.description, context.probes.loss
    parts = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
    alone = read is not None and description.optimizer is not None and description.optimizer.count == 1
    if not alone or any(y is None or weight is not None for _, y, weight in parts):
        return []  # what counts more is another question
    targets = [keras.tree.flatten(y) for _, y, _ in parts]
    own = description.own_train_step or description.own_loss
    losses = {one.output: as_loss(one.loss) for one in losses_of(context.trial.model, len(read.outputs)) if not own}
    found = []
    for place, output in enumerate(read.outputs):
        about = description.outputs[place] if place < len(description.outputs) else OutputDescription()
        target = 0 if own and len(read.outputs) == len(targets[0]) == 1 else about.target
        y = None if target is None else np.concatenate([np.asarray(row[target]) for row in targets])
        task = None if y is None else _task(place, target, y, tuple(output.shape or ()))
        several = len(output.shape or ()) > 1
        if task is None or (several and (description.masked or own or about.custom or "ignore_class" in about.config)):
            return []  # places that are padded are not to be learned
        if not _compares(task, y, about, output, losses.get(place)):
            return []
        found.append(task)
    return found


def _compares(task: Task, y: np.ndarray, about: OutputDescription, output: OutputReading, loss: Any) -> bool:
    """Return whether a loss compares answers with targets: a user's own is lower at right ones than at other samples'.

    Codes of another kind, such as those of a contrastive loss, have more entries than there are classes.
    """
    if output.acts_like is not None or (about.loss is not None and not about.custom):
        return True
    if loss is None or (task.kind == CLASSES and len(np.unique(y)) != output.shape[-1]):
        return False
    wanted = task.scaled(tf.constant(y), (len(y), *output.shape))
    beside = task.size * tf.sign(tf.random.stateless_normal(wanted.shape, [0, 0])) / 3.0
    numbers = wanted * task.size + task.low
    shares = [(one, tf.roll(one, 1, axis=0)) for one in (CERTAIN * wanted + (1.0 - CERTAIN) / 2.0, wanted * 12.0 - 6.0)]
    around = [(numbers, tf.roll(numbers, 1, axis=0), numbers + beside, numbers - beside)]
    tried = around if task.kind == NUMBERS else shares
    values = ([float(tf.reduce_mean(loss(tf.constant(y), one))) for one in answers] for answers in tried)
    return any(right < min(wrong) for right, *wrong in values)


def _task(place: int, target: int, y: np.ndarray, shape: tuple[int, ...]) -> Task | None:
    if y.dtype.kind not in "biuf" or not np.isfinite(y.astype(np.float64)).all() or y.min() == y.max():
        return None
    values, rest, several = y.astype(np.float64), y.shape[1:], shape[-1] if shape else 1
    whole = np.array_equal(values, np.round(values))
    if several > 1 and rest in (shape[:-1], (*shape[:-1], 1)):
        known = whole and values.min() >= 0 and values.max() < several
        return Task(place, target, CLASSES) if known else None
    if rest != shape and not (several == 1 and rest == shape[:-1]):
        return None
    if several > 1 and values.min() >= 0 and np.allclose(values.sum(axis=-1), 1.0, atol=1e-3):
        return Task(place, target, CLASSES)
    found = np.unique(values)
    if len(found) == 2:
        return Task(place, target, YES_OR_NO, np.float32(found[0]), np.float32(found[1] - found[0]))
    axes = tuple(range(values.ndim - 1)) if several > 1 else None
    mean, size = values.mean(axis=axes), values.std(axis=axes)
    size = np.where(size > LEAST * np.abs(mean), size, 1.0)
    rms, spread = math.sqrt(float(np.square(values).mean())), float(np.median(size))
    far = not spread > 1.0 / FAR_TARGET or rms > FAR_TARGET
    return Task(place, target, NUMBERS, np.float32(mean), np.float32(size), far)


def fits(task: Task, about: OutputDescription) -> bool:
    """Return whether the program's loss and last activation are the standard ones."""
    bounded = BOUNDED.get(task.kind)
    wanted = bounded if bounded is not None and not about.from_logits else "linear"
    usual = about.loss in FITTING[task.kind] and not about.custom and about.loss_weight in (None, 1.0)
    return usual and about.activation in (wanted, None)
