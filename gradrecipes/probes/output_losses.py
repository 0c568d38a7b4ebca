"""What the trial shows of single outputs: their losses, and whether a step compares each with its own target."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.analysis.baseline import constant_baseline_loss
from gradrecipes.core.trace.data_reading import DataReading
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import LossEquivalent, LossReading, OutputReading
from gradrecipes.core.trace.trial_reading import OutputTrial
from gradrecipes.probes.answers import Answers
from gradrecipes.probes.loss import as_loss, candidates
from gradrecipes.probes.own_step import OwnStepLoss
from gradrecipes.probes.predictions import SAME, best_constant_loss
from gradrecipes.probes.varied.variations import standardized
from gradrecipes.training.description.output_head import losses_of
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial import Trial

logger = logging.getLogger(__name__)
BY_NUMBER = {"mean_squared_error", "mean_absolute_error", "mse", "mae"}  # losses that are means over columns
COLUMNS_APART = 30.0  # largest over smallest standard deviation of a column: a thousand in a squared error
EQUAL = 1e-5  # relative difference of two losses that are one, summed in another order
FITTED_ENTRIES = 200_000  # of the targets to which a constant prediction is fitted
FITTED_COLUMNS = 64  # of the last axis of such a prediction
# What a constant prediction of a bounded head is made by.
ACTIVATIONS = {
    "linear": tf.identity,
    "sigmoid": tf.sigmoid,
    "softmax": tf.nn.softmax,
    "softplus": tf.nn.softplus,
    "exponential": tf.exp,
    "tanh": tf.tanh,
}


class Baselines:
    """The loss of the best constant predictions to the targets of some batches; None where it is not known.

    Of Keras' usual losses a formula tells it. To a loss of the user's own it is fitted, where the model has one output
    of which the last activation was read from the graph, and the loss is a mean over samples: one that compares samples
    with each other says nothing of a constant prediction.

    Args:
        model: A compiled, built model.
        description: Of the model.
        read: What the loss probe read of it.
        batches: Those of the trial.
        corrupt: Whether samples were left out of them, which a trial's batches hold.

    Attributes:
        answers: What says in place of a baseline whether a variation has learned: if its answers depend on the inputs.
    """

    def __init__(
        self,
        model: keras.Model,
        description: Description,
        read: LossReading | None,
        batches: list[Any],
        *,
        corrupt: bool = False,
    ):
        self.corrupt = corrupt
        self.answers: Answers | None = None
        weighted = any(one.loss_weight is not None for one in description.outputs)
        own = description.own_train_step or description.own_loss
        several = len(description.outputs) > 1
        self._outputs = () if several and (weighted or own) else description.outputs
        self._description, self._loss = description, description.loss
        self._batches = batches
        self.of_trial = self.of(batches)
        self._fits = None if own or several or weighted or model.losses else _OwnLoss.of(model, description, read)
        self._step: OwnStepLoss | None = None
        self.fitted = self.fit(batches)

    def ask_step(self, trial: Trial, first_loss: float) -> None:
        """Fit constant predictions to the loss that a train step of the user's own computes.

        Args:
            trial: One that was entered; it is left at its start.
            first_loss: Of its first step.
        """
        self._step = OwnStepLoss.of(trial, first_loss)
        self.fitted = self.fit(self._batches)

    def of(self, batches: list[Any]) -> float | None:
        """Return the sum over the outputs of the loss of their best constant prediction."""
        parts = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
        ys, weights = ([keras.tree.flatten(part[place]) for part in parts] for place in (1, 2))
        if any(len(y) != len(ys[0]) for y in ys) or not ys[0]:
            return None
        alone = len(ys[0]) == 1
        judged = [(0, self._loss, self._description.outputs[:1])] if alone else []
        for one in self._outputs if not alone else ():
            judged += [] if one.loss is None else [(one.target, one.loss, (one,))]
        found = []
        for place, loss, about in judged:
            own = None if place is None else [w[place if len(w) == len(ys[0]) else 0] for w in weights if w]
            how = {
                "sample_weights": own if own and all(one is not None for one in own) else None,
                "summed": any(one.config.get("reduction") == "sum" for one in about),
            }
            found.append(None if place is None else constant_baseline_loss(loss, *(y[place] for y in ys), **how))
        known = [part for part in found if part is not None]
        return sum(known) if known and len(known) == len(found) else None

    def fit(self, batches: list[Any]) -> float | None:
        """Return the loss of the constant prediction that fits batches best to a loss of the user's own."""
        if self._step is not None:
            return self._step.best(batches)
        parts = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
        plain = all(y is not None and not keras.tree.is_nested(y) and weight is None for _, y, weight in parts)
        if self._fits is None or not parts or not plain:
            return None
        try:
            targets = np.concatenate([np.asarray(y) for _, y, _ in parts])
            size = max(1, int(np.prod(targets.shape[1:])), int(np.prod(self._fits.shape)))
            return self._fits.best(tf.constant(targets[: max(2, FITTED_ENTRIES // size)]))
        except Exception:  # a loss that needs more than targets and predictions, targets of several shapes
            logger.debug("No constant prediction could be fitted.", exc_info=True)
            return None

    def compared(self, loss: np.ndarray) -> tuple[OutputTrial, ...]:
        """Return how the only output did with a loss of the user's own, by its first and its last pass.

        Args:
            loss: Of each step, `[steps]`.
        """
        first, last = loss[: len(self._batches)], loss[-len(self._batches) :]
        fits = self._fits or self._step
        if self.fitted is None or fits is None or len(last) < 2 or not np.isfinite(loss).all():
            return ()
        noise = float(last.std(ddof=1) / math.sqrt(len(last)))
        return (OutputTrial(0, fits.name, float(first.mean()), float(last.mean()), self.fitted, noise),)


class _OwnLoss:
    """Evaluate a user's loss at constant predictions `activation(constants)`, equal for all samples and places."""

    def __init__(self, name: str, loss: Any, activation: Any, shape: tuple[int, ...]):
        self.name, self.shape = name, shape
        self._loss, self._activation = loss, activation

    @classmethod
    def of(cls, model: keras.Model, description: Description, read: LossReading | None) -> _OwnLoss | None:
        about = description.outputs[0] if description.outputs else None
        shape = read.outputs[0].shape if read is not None and read.outputs else None
        if about is None or not (about.custom and about.certain and about.target == 0) or not shape:
            return None
        loss, activation = as_loss(losses_of(model, 1)[0].loss), ACTIVATIONS.get(about.activation or "linear")
        known = loss is not None and activation is not None and shape[-1] <= FITTED_COLUMNS
        return cls(about.name, loss, activation, shape) if known else None

    def best(self, targets: tf.Tensor) -> float | None:
        """Return the least loss of a constant prediction that was found; None where samples are compared."""

        def loss(constants: tf.Tensor, rows: slice) -> tf.Tensor:
            part = targets[rows]
            return tf.reduce_mean(
                self._loss(part, tf.broadcast_to(self._activation(constants), (len(part), *self.shape)))
            )

        middle = float(np.mean(np.asarray(targets, np.float64)))
        return best_constant_loss(loss, samples=len(targets), columns=self.shape[-1], middle=middle)


class OutputLosses:
    """Measure the loss of every output of a model with several, over some batches, without dropout and noise.

    A model with one output, to whose loss no layer adds anything, and without dropout, has no losses here: those of its
    steps say as much. Nor has one with a train step of its own. Of one output that is compared with columns of
    different size, number by number, each column counts.

    Args:
        model: A compiled, built model. It is left as it was.
        description: Of the model.
        batches: What `train_step` gets.
        data: What was read of the data, or None.
    """

    def __init__(
        self,
        model: keras.Model,
        description: Description,
        batches: Sequence[Any],
        data: DataReading | None = None,
    ):
        self._model, self._description = model, description
        self._penalties: list[float] = []
        self._columns = _columns_apart(description, data)
        usual = not (description.own_train_step or description.own_loss)
        drops = any(one.kind in ("dropout", "noise") for one in description.regularization)
        several = len(description.outputs) > 1 or self._columns > 0
        asked = usual and bool(batches) and (several or drops or self._has_penalties(batches[0]))
        self._batches = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches] if asked else []

    @property
    def penalty(self) -> float:
        """What layers added to the loss in the last measurement, the mean over the batches."""
        return float(np.mean(self._penalties)) if self._penalties else 0.0

    def _has_penalties(self, batch: Any) -> bool:
        try:
            with preserve_state(self._model):
                self._model(keras.utils.unpack_x_y_sample_weight(batch)[0], training=False)
                return bool(self._model.losses)
        except Exception:  # a model that is not called as a whole
            return False

    def measured(self) -> list[np.ndarray]:
        """Return for each output float64 `[batches]`, its loss on each batch; empty where it cannot be measured."""
        self._penalties = []
        if not self._batches:
            return []
        try:
            with preserve_state(self._model):
                rows = [self._of_batch(x, y) for x, y, _ in self._batches]
        except Exception:  # a model whose targets do not match its outputs one by one
            logger.debug("The losses of the outputs could not be measured.", exc_info=True)
            return []
        return [np.array(column, np.float64) for column in zip(*rows, strict=True)]

    def on(self, batches: Sequence[Any]) -> OutputLosses:
        """Return what measures the same losses on other batches."""
        other = copy.copy(self)
        other._batches = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
        return other

    def compared(self, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> tuple[OutputTrial, ...]:
        """Return how each output did between two measurements."""
        if not before or len(before) != len(after):
            return ()
        found = []
        for place, (start, end) in enumerate(zip(before, after, strict=True)):
            output = 0 if self._columns else place
            about = self._description.outputs[output]
            if about.loss is None or not (np.isfinite(start).all() and np.isfinite(end).all()) or self._is_rare(place):
                continue
            several = len(end) > 1 and not self._columns  # of many columns some are within any noise
            noise = float(end.std(ddof=1) / np.sqrt(len(end))) if several else 0.0
            baseline = self._baseline(place)
            name = f"{about.name}, column {place}" if self._columns else about.name
            found.append(OutputTrial(output, name, float(start.mean()), float(end.mean()), baseline, noise))
        return tuple(found)

    def _of_batch(self, x: Any, y: Any) -> list[float]:
        outputs = keras.tree.flatten(self._model(x, training=False))
        self._penalties.append(float(sum(float(tf.reduce_sum(one)) for one in self._model.losses)))
        targets = keras.tree.flatten(y)
        if self._columns:
            target, loss = tf.convert_to_tensor(targets[0]), as_loss(losses_of(self._model, 1)[0].loss)
            pairs = [(target[:, place : place + 1], outputs[0][:, place : place + 1]) for place in range(self._columns)]
            return [float(tf.reduce_mean(loss(*pair))) for pair in pairs]
        row = []
        for one in losses_of(self._model, len(outputs)):
            loss = None if one.loss is None or one.target is None else as_loss(one.loss)
            target = None if loss is None else tf.convert_to_tensor(targets[one.target])
            row.append(float("nan") if loss is None else float(tf.reduce_mean(loss(target, outputs[one.output]))))
        return row

    def _column(self, place: int) -> list[np.ndarray]:
        return [np.asarray(keras.tree.flatten(y)[0])[:, place] for _, y, _ in self._batches]

    def _is_rare(self, place: int) -> bool:
        """Return whether a column has one value in more than half of the samples, as a pixel at the edge has."""
        low, high = np.percentile(np.concatenate(self._column(place)), [25, 75]) if self._columns else (0.0, 1.0)
        return bool(low == high)

    def _baseline(self, place: int) -> float | None:
        if self._columns:
            return constant_baseline_loss(self._description.outputs[0].loss, *self._column(place))
        about = self._description.outputs[place]
        if about.target is None:
            return None
        parts = [np.asarray(keras.tree.flatten(y)[about.target]) for _, y, _ in self._batches]
        return constant_baseline_loss(about.loss, *parts)

    def balanced(self, before: Sequence[np.ndarray], penalty: float) -> list[Any] | None:
        """Return the batches with sample weights by which all terms of the loss begin equally large.

        Of columns, the targets are standardized instead.

        Args:
            before: What `measured` returned before the first step.
            penalty: What layers added to the loss then.

        Returns:
            None where the samples have weights of the user's already, or a term is not a positive number.
        """
        if self._columns:
            return standardized([keras.utils.pack_x_y_sample_weight(*batch) for batch in self._batches], targets=[0])
        pairs = zip(self._description.outputs, before, strict=False)
        terms = [output.factor * float(np.mean(part)) for output, part in pairs]
        if (
            not terms
            or (len(terms) == 1 and not penalty)
            or any(sample_weight is not None for _, _, sample_weight in self._batches)
        ):
            return None
        if not all(0 < term < np.inf for term in terms):
            return None
        wanted = penalty if len(terms) == 1 else 1.0  # a mean would follow a tiny weight, and so shorten the steps
        factors = [wanted / term for term in terms]
        return [self._weighted(x, y, factors) for x, y, _ in self._batches]

    def _weighted(self, x: Any, y: Any, factors: Sequence[float]) -> Any:
        flat = keras.tree.flatten(y)
        known = losses_of(self._model, len(factors))
        by_target = {one.target: factor for one, factor in zip(known, factors, strict=False)}
        parts = [tf.fill((len(part),), tf.constant(by_target.get(place, 1.0))) for place, part in enumerate(flat)]
        return x, y, keras.tree.pack_sequence_as(y, parts)


def _columns_apart(description: Description, data: DataReading | None) -> int:
    """Return how many columns the only targets have, where their sizes differ and each is a number of its own."""
    targets, about = (data or DataReading()).targets, description.outputs
    if len(targets) != 1 or len(about) != 1 or about[0].loss not in BY_NUMBER or about[0].custom:
        return 0
    columns, shape = targets[0].columns, targets[0].shape or ()
    apart = columns is not None and columns.std_min and (columns.std_max or 0.0) > COLUMNS_APART * columns.std_min
    return shape[0] if apart and len(shape) == 1 and 1 < shape[0] <= FITTED_COLUMNS else 0


LEAST_SPREAD = 0.01  # of the predictions, over that of the targets; below it no order of them makes a difference


def pairs_samples(trial: Trial, outputs: Sequence[OutputReading]) -> bool | None:
    """Say whether the loss of a step changes when the targets of a batch change places.

    In arithmetic of one's own, predictions `[n, 1]` minus targets `[n]` are `[n, n]`: all is compared with all, and it
    no longer matters what belongs to what. Targets of another shape, labels, and steps that use none are no question.

    Args:
        trial: One that was entered; it is left at its start.
        outputs: What the loss probe read of the model's outputs.

    Returns:
        False where the order does not matter and the values do; None where that is no question.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(trial.batches[0])
    arrays = [] if y is None else keras.tree.flatten(y)
    if len(arrays) != 1 or len(outputs) != 1 or outputs[0].shape != (1,) or len(arrays[0].shape) != 1:
        return None
    target = np.asarray(arrays[0])
    spread = outputs[0].std or 0.0
    if target.dtype.kind != "f" or not np.isfinite(target).all() or not spread > LEAST_SPREAD * target.std() > 0:
        return None

    def loss(values: np.ndarray) -> float:
        changed = keras.tree.pack_sequence_as(y, [tf.convert_to_tensor(values.astype(target.dtype))])
        measured = trial.varied(1, batches=[keras.utils.pack_x_y_sample_weight(x, changed, sample_weight)]).loss
        return float(measured[0]) if len(measured) else math.nan

    as_it_is, in_other_order, other = loss(target), loss(np.roll(target, 1)), loss(target + target.std())
    trial.restart()
    if not all(map(math.isfinite, (as_it_is, in_other_order, other))):
        return None
    matter = abs(other - as_it_is) > 10 * SAME * abs(as_it_is)
    return abs(in_other_order - as_it_is) > SAME * abs(as_it_is) if matter else None


def step_acts_like(trial: Trial, outputs: Sequence[OutputReading], first_loss: float) -> LossEquivalent | None:
    """Return the Keras loss that the loss of a user's train step equals in value; None for any other.

    It is told by the first batch, on which the cross-entropies of probabilities and of logits differ. A step that drops
    units at random, or adds a penalty, equals none.

    Args:
        trial: One that was entered; it is left at its start.
        outputs: What the loss probe read of the model's outputs.
        first_loss: Of the first step.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(trial.batches[0])
    if len(outputs) != 1 or y is None or keras.tree.is_nested(y) or sample_weight is not None:
        return None
    trial.restart()
    try:
        with preserve_state(trial.model):
            output = tf.identity(tf.convert_to_tensor(trial.model(x, training=False)))  # without Keras' note of logits
        target = tf.convert_to_tensor(y)
        values = [(name, logits, float(loss(target, output))) for name, logits, loss in candidates(target, output)]
    except Exception:  # a train step that does what the call alone cannot, targets that fit no loss
        logger.debug("The loss of the train step of %r could not be compared.", trial.model, exc_info=True)
        return None
    same = [one for one in values if abs(one[2] - first_loss) <= EQUAL * abs(first_loss)]
    near = [one for one in values if abs(one[2] - first_loss) <= 10 * EQUAL * abs(first_loss)]
    return LossEquivalent(*same[0][:2]) if len(same) == len(near) == 1 else None
