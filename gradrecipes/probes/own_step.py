"""What only a user's train step can show: its loss of a constant prediction, and what its cross-entropies get."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

from gradrecipes.compat.keras_private import replaced
from gradrecipes.compat.random_state import random_numbers_kept
from gradrecipes.compat.tensorflow_private import binary_cross_entropies_reported, inlined, targets_reported
from gradrecipes.core.trace.data_reading import DataReading, LinearReading
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import CrossEntropyCall
from gradrecipes.probes.held_back import CalledLoss
from gradrecipes.probes.predictions import simple_readings, usual_error
from gradrecipes.training.trial import Trial

logger = logging.getLogger(__name__)

MAX_CONSTANTS = 64  # of all outputs together
FIT_EVALUATIONS = 60  # of the loss, for each start
STARTED_AT_MEAN = 4  # constants that a start has at the mean of the targets, one after the other
FITTED_STARTS = 2  # of all starts, those of the least loss, that the fit goes on from
SAME_LOSS = 1e-4  # relative difference up to which the step repeats its loss
SEED_STATE = "seed_generator_state"  # how the paths of such variables of Keras end
MIN_CHANGE = 0.1  # relative change of the loss where all targets rise by their root mean square: they are its main part
ROUNDED = 1e-6  # relative difference of a loss from itself, in float32
ROUNDING = 1e-3  # by which a probability may lie outside of [0, 1]
HOMOGENEOUS, EXACT = (2.0, 4.0), 1e-3  # what doubled weights multiply a penalty on magnitudes, or on squares, by
PASSING = {"Identity", "Cast", "Squeeze", "Reshape", "ExpandDims", "Split", "SplitV", "Unpack", "StridedSlice"}
LINEAR = {"BiasAdd", "MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum", "Conv1D", "Conv2D"}
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "Sigmoid": tf.sigmoid,
    "Softmax": tf.nn.softmax,
    "Softplus": tf.nn.softplus,
    "Exp": tf.exp,
    "Tanh": tf.tanh,
}


class OwnStepLoss:
    """Evaluate the loss of a user's train step where the model answers with constants, equal for all samples.

    Args:
        trial: One that was entered; it is left at its start.
        first_loss: Of the first step of the trial, which the evaluation has to repeat.

    Attributes:
        name: What a finding calls the output.
    """

    name = "loss"

    def __init__(self, trial: Trial, first_loss: float):
        self._trial, self._model, self._answering = trial, trial.model, trial.model
        self._step = inlined(self._model.train_step)
        self._sizes: list[int] | None = None
        self._first_loss = first_loss

    @classmethod
    def of(cls, trial: Trial, first_loss: float) -> OwnStepLoss | None:
        """Return what evaluates the loss of a step; None where that cannot be done, or says nothing.

        It is asked of a step with numbers or classes as targets on which most of its loss depends, that calls the
        model or the only model in it, and draws no random numbers: elsewhere a constant may be the best answer.
        """
        inner = [layer for layer in trial.model.layers if isinstance(layer, keras.Model)]
        try:
            found = cls(trial, first_loss)
            known = found._is_known()
            if known is None and len(inner) == 1:
                found._answering = inner[0]
                known = found._is_known()
            return found if known else None
        except Exception:  # a step that does something of its own
            logger.debug("The loss of the train step of %r could not be evaluated.", trial.model, exc_info=True)
            return None
        finally:
            trial.restart()

    def best(self, batches: Sequence[Any]) -> float | None:
        """Return the mean loss over batches of the constant prediction that fits them best.

        Args:
            batches: What `train_step` gets.
        """
        if self._sizes is None:
            return None
        try:
            whole = keras.tree.map_structure(
                lambda *arrays: None if arrays[0] is None else tf.concat(arrays, axis=0), *batches
            )
            how: dict[str, Any] = {"jac": True, "method": "L-BFGS-B", "options": {"maxfun": FIT_EVALUATIONS}}
            starts = sorted(self._starts(batches), key=lambda start: self._loss(start, whole)[0])
            ended = [minimize(self._loss, start, args=(whole,), **how) for start in starts[:FITTED_STARTS]]
            found = min(ended, key=lambda one: one.fun)
            loss = float(np.mean([self._loss(found.x, batch)[0] for batch in batches]))
            return loss if math.isfinite(loss) else None
        except Exception:  # batches that do not join
            logger.debug("No constant prediction could be fitted to %r.", self._model, exc_info=True)
            return None
        finally:
            self._trial.restart()

    def _is_known(self) -> bool | None:
        """Return whether constant answers can be judged by the loss; None where the step calls another model."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(self._trial.batches[0])
        targets = [] if y is None else _targets(self._trial.batches)
        if not all(one.dtype.kind in "fiub" and np.isfinite(one).all() for one in targets):
            return False
        if not any(one.min() < one.max() for one in targets):
            return False
        others = [_other(np.asarray(part), whole) for part, whole in zip(keras.tree.flatten(y), targets, strict=True)]
        self._trial.restart()
        self._traced = tf.function(self._evaluated, autograph=False)
        first, _ = self._traced(self._trial.batches[0], tf.zeros(MAX_CONSTANTS), own=True)
        if self._sizes is None:
            return None
        same = abs(float(first) - self._first_loss) <= SAME_LOSS * abs(self._first_loss)
        if not same or not 0 < sum(self._sizes) <= MAX_CONSTANTS:
            return False
        # An untrained net may find all classes equally likely; answers that differ tell one class from another.
        numbers = all(one.dtype.kind == "f" for one in targets)
        unlike = np.zeros(MAX_CONSTANTS, np.float32)
        unlike[: sum(self._sizes)] = np.concatenate([np.linspace(-2.0, 2.0, size) for size in self._sizes])
        changed = keras.utils.pack_x_y_sample_weight(x, keras.tree.pack_sequence_as(y, others), weight)
        before, after = (
            float(self._traced(batch, tf.constant(unlike), own=numbers)[0])
            for batch in (self._trial.batches[0], changed)
        )
        return abs(after - before) > MIN_CHANGE * abs(before) and not self._draws(tf.constant(unlike))

    def _draws(self, constants: tf.Tensor) -> bool:
        """Return whether the loss of constant answers changes with the states of the model's random numbers."""
        losses = []
        for shift in (0, 1):
            self._trial.restart()
            for variable in self._model.non_trainable_variables:
                if variable.path.endswith(SEED_STATE):
                    variable.assign_add(keras.ops.full(variable.shape, shift, variable.dtype))
            losses.append(float(self._traced(self._trial.batches[0], constants, own=False)[0]))
        return abs(losses[1] - losses[0]) > SAME_LOSS * abs(losses[0])

    def _starts(self, batches: Sequence[Any]) -> Iterator[np.ndarray]:
        """Yield constants to start at: zeros, the mean of the targets, and the logarithm of their variance."""
        sizes = self._sizes or []
        count, targets = sum(sizes), _targets(batches)
        yield np.zeros(count)
        if len(targets) == len(sizes):
            yield np.concatenate([_middle(one, size) for one, size in zip(targets, sizes, strict=True)])
        if len(targets) > 1 or targets[0].dtype.kind != "f":
            return
        mean, variance = float(np.mean(targets[0], dtype=np.float64)), float(np.var(targets[0], dtype=np.float64))
        yield np.full(count, mean)
        for one in np.eye(count)[:STARTED_AT_MEAN]:
            yield mean * one
            yield np.where(one == 1, mean, math.log(variance))

    def _loss(self, constants: np.ndarray, batch: Any) -> tuple[float, np.ndarray]:
        """Return (loss, its gradient); infinity where one of them is not finite."""
        padded = np.zeros(MAX_CONSTANTS, np.float32)
        padded[: len(constants)] = constants
        loss, slope = self._traced(batch, tf.constant(padded), own=False)
        slopes = np.asarray(slope, np.float64)[: len(constants)]
        finite = math.isfinite(float(loss)) and bool(np.isfinite(slopes).all())
        return (float(loss), slopes) if finite else (math.inf, np.zeros(len(constants)))

    def _evaluated(self, batch: Any, constants: tf.Tensor, *, own: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the loss of a step, and its gradient, with the model's own answers or with constants."""
        targets: list[Any] = []
        answer = self._answering.call

        @functools.wraps(answer)
        def answering(*args: Any, **kwargs: Any) -> Any:
            given = answer(*args, **kwargs)
            flat = [tf.convert_to_tensor(one) for one in keras.tree.flatten(given)]
            self._sizes = [int(one.shape[-1]) if len(one.shape) > 1 else 1 for one in flat]
            first, changed = 0, []
            for size, one in zip(self._sizes, flat, strict=True):
                part = _activation(one)(constants[first : first + size])
                part = tf.cast(part if len(one.shape) > 1 else part[0], one.dtype)
                changed.append(tf.where(own, one, part))  # connected to the weights, for the step to apply gradients
                first += size
            return keras.tree.pack_sequence_as(given, changed)

        with tf.GradientTape() as tape, replaced(self._answering, "call", answering):
            tape.watch(constants)
            with targets_reported(lambda target, _: targets.append(target)):
                self._step(batch)
        loss = targets[-1]
        slope = tape.gradient(loss, constants, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return tf.reduce_mean(tf.cast(loss, tf.float32)), slope


def _targets(batches: Sequence[Any]) -> list[np.ndarray]:
    """Return each of the flattened targets, of all batches."""
    ys = [keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(batch)[1]) for batch in batches]
    return [np.concatenate([np.asarray(one) for one in column]) for column in zip(*ys, strict=True)]


def _other(part: np.ndarray, whole: np.ndarray) -> tf.Tensor:
    """Return other targets: numbers raised by their root mean square, or the first class for all samples."""
    if part.dtype.kind == "f":
        part = part + np.sqrt(np.mean(np.square(whole, dtype=np.float64)))
    else:
        part = np.broadcast_to(part[:1], part.shape)
    return tf.convert_to_tensor(part.astype(whole.dtype))


def _middle(targets: np.ndarray, size: int) -> np.ndarray:
    """Return the mean of each column of numbers, or of all where there are others; zeros for classes."""
    if targets.dtype.kind != "f":
        return np.zeros(size)
    columns = targets.reshape(-1, targets.shape[-1] if targets.ndim > 1 else 1).mean(axis=0, dtype=np.float64)
    return columns if len(columns) == size else np.full(size, columns.mean())


def _activation(tensor: tf.Tensor) -> Callable[[Any], Any]:
    """Return the last activation that a tensor comes from.

    Raises:
        ValueError: It is none of those whose constant predictions are known.
    """
    made = tensor.op
    while made.type in PASSING:
        made = made.inputs[0].op
    biased = made.type in ("Add", "AddV2") and any(part.op.type == "ReadVariableOp" for part in made.inputs)
    if made.type in LINEAR or biased:
        return tf.identity
    if made.type not in ACTIVATIONS:
        raise ValueError(f"Constant predictions of {made.type} are not known.")
    return ACTIVATIONS[made.type]


def run_eagerly(trial: Trial, watched: contextlib.AbstractContextManager[Any]) -> None:
    """Run the user's train step eagerly, once, while something watches it; a step that raises is left at that.

    Args:
        trial: One that was entered; it is left at its start.
        watched: Entered around the step.
    """
    trial.restart()
    try:
        with (
            random_numbers_kept(trial.model),
            watched,
            warnings.catch_warnings(action="ignore"),  # Keras says of a sigmoid behind what is no mistake here
        ):
            inlined(trial.model.train_step)(trial.batches[0])
    except Exception:  # a step that runs in a graph alone
        logger.debug("The train step of %r could not be run eagerly.", trial.model, exc_info=True)
    finally:
        trial.restart()


def misread_cross_entropies(trial: Trial) -> tuple[CrossEntropyCall, ...]:
    """Return which binary cross-entropies of a step take logits for probabilities, or probabilities for logits.

    A GAN computes several in one step, of nets that the model itself does not call: only what they get is looked at, in
    one eager step. Logits are told by values that no probability has; probabilities by the sigmoid they come from.

    Args:
        trial: One that was entered; it is left at its start.
    """
    found: list[tuple[bool, float, float]] = []

    def note(answers: Any, from_logits: bool, are_probabilities: bool) -> None:
        if isinstance(answers, tf.Tensor) and hasattr(answers, "numpy") and len(answers):
            values = np.asarray(tf.cast(answers, tf.float32))
            low, high = float(values.min()), float(values.max())
            outside = low < -ROUNDING or high > 1.0 + ROUNDING
            if np.isfinite(values).all() and (are_probabilities if from_logits else outside):
                found.append((from_logits, low, high))

    run_eagerly(trial, binary_cross_entropies_reported(note))
    return tuple(
        CrossEntropyCall(
            taken,
            min(low for kind, low, _ in found if kind is taken),
            max(high for kind, _, high in found if kind is taken),
            sum(kind is taken for kind, *_ in found),
        )
        for taken in (False, True)
        if any(kind is taken for kind, *_ in found)
    )


def learned_simply(
    trial: Trial, description: Description, data: DataReading | None, losses: Sequence[CalledLoss] = ()
) -> tuple[LinearReading, ...]:
    """Return what a simple function learns of the targets, where the loss of the step compares samples with them.

    Args:
        trial: One that was entered. The net answers with the weights that it has.
        description: Of the model.
        data: What was read of the data, or None.
        losses: Of each row, of the outputs whose answers are compared with the function's. A step of its own has none:
            there the usual errors are compared.
    """
    if description.own_train_step or description.own_loss:
        ended = trial.save()
        reads = reads_targets(trial)
        trial.load(ended)
        if not reads:
            return ()
        alone = description.optimizer is not None and description.optimizer.count == 1
        losses = [(0, 0, usual_error)] if alone else []
    if data is not None and data.sample_weight:
        losses = []  # what counts more is another question
    tokens = {place for place, one in enumerate((data or DataReading()).inputs) if one.feeds_embedding}
    return simple_readings(trial.batches, tokens=tokens, model=trial.model, losses=losses)


def weight_penalties(trial: Trial, logs: Mapping[str, Sequence[float | None]]) -> tuple[str, ...]:
    """Return the names of what a step returns that depends on the weights alone, as penalties do.

    Args:
        trial: One that was entered; it is left after a step from its start.
        logs: What its steps returned, by name.
    """
    trial.restart()
    doubled = {variable.path: 2.0 * np.array(variable) for variable in trial.model.trainable_variables}
    first = trial.varied(1, weights=doubled).logs
    before = {name: values[0] for name, values in logs.items() if values and values[0]}
    grown = {name: first[name][0] / value for name, value in before.items() if first.get(name)}
    return tuple(name for name, factor in grown.items() if any(abs(factor - one) < EXACT for one in HOMOGENEOUS))


def reads_targets(trial: Trial) -> bool:
    """Return whether the loss of a step changes where each sample gets the targets of another one.

    Args:
        trial: One that was entered; it is left at its start.
    """
    x, y, weight = keras.utils.unpack_x_y_sample_weight(trial.batches[0])
    if y is None:
        return False
    turned = keras.tree.map_structure(lambda one: tf.roll(one, 1, axis=0), y)
    losses = []
    try:
        for targets in (y, turned):
            run = trial.varied(1, batches=[keras.utils.pack_x_y_sample_weight(x, targets, weight)])
            losses.append(run.loss[0] if len(run.loss) else math.nan)
    except Exception:
        logger.debug("The train step of %r takes no other targets.", trial.model, exc_info=True)
        return False
    finally:
        trial.restart()
    return bool(abs(losses[1] - losses[0]) > ROUNDED * abs(losses[0]))
