"""Say what the user's own loss makes of answers: of constant ones, of the targets, of a model with another loss."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import has_own_train_step, sublayers
from gradrecipes.compat.random_state import global_tensorflow_seed_kept, random_numbers_kept
from gradrecipes.core.analysis.baseline import constant_baseline_loss
from gradrecipes.core.trace.description import OutputDescription
from gradrecipes.probes.predictions import best_constant_loss
from gradrecipes.rescue.feed import FEW_SAMPLES

_LOG = logging.getLogger(__name__)

MOST_COLUMNS = 16  # of an output that are tried below 0, one after the other
TOLERANCE = 1e-3  # of a loss, below which two are the same
COMPARED_ROWS = 32  # on which a loss is asked whether it wants the targets
INWARD = 1e-3  # share of the way to their mean by which targets are moved: a domain may not include its bounds
SURE = 1e-7  # distance of a share from 0 and 1 at which Keras cuts it off before a logarithm
LIKELIHOODS = ("poisson", "kl_divergence")  # losses of Keras' that say what an answer means, as those of a user do


def has_plain_loss(model: keras.Model) -> bool:
    """Return whether the loss of a step is the one that the model is compiled with."""
    return not has_own_train_step(model) and type(model).compute_loss is keras.Model.compute_loss


@dataclass(frozen=True, eq=False)
class OwnLoss:
    """Judge the answers of a model that is trained with another loss by the loss that its user has chosen.

    Args:
        name: Of the loss, as the user's setup has it, and whether it is given logits.
        build: Returns a model that is compiled with it.
        x: Inputs that are held back.
        y: Their targets.
        shape: Of the output, without samples.
        shares: Of the classes, or of what is marked, float `[units]`; None for numbers.
    """

    name: tuple[str, bool | None]
    build: Callable[[], keras.Model]
    x: Any
    y: Any
    shape: tuple[int | None, ...]
    shares: np.ndarray | None = None

    def accepts(self, predicted: np.ndarray, *, from_logits: bool) -> bool:
        """Return whether the loss of some answers is finite, and below that of the best constant answer.

        Args:
            predicted: Answers, float `[samples, ...]`.
            from_logits: Whether they are logarithms of shares, or of odds.
        """
        try:
            with random_numbers_kept(), global_tensorflow_seed_kept():
                return any(self._loss(one) < least for one, least in self._forms(predicted, from_logits))
        except Exception:  # a loss that does not take such answers
            _LOG.debug("Answers could not be judged by the user's own loss.", exc_info=True)
            return False

    def _forms(self, predicted: np.ndarray, from_logits: bool) -> list[tuple[np.ndarray, float]]:
        """Return the answers as shares and as they are, each with the loss of the best constant of that form."""
        if self.shares is None:
            return [(predicted, self._least)]
        activation = keras.activations.softmax if self.shares.size > 1 else keras.activations.sigmoid
        logits = np.log(self.shares) if self.shares.size > 1 else np.log(self.shares / (1.0 - self.shares))
        shares = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(predicted, "float32")))
        bounded = np.clip(shares if from_logits else predicted, SURE, 1.0 - SURE)
        forms = [(bounded, self._loss_of_constant(self.shares))]
        return [*forms, (predicted, self._loss_of_constant(logits))] if from_logits else forms

    @functools.cached_property
    def _least(self) -> float:
        """Least loss of a constant; of the mean and the median where it is found by no search."""
        known = constant_loss(self._model, self.x, self.y, self.shape)
        targets = np.asarray(self.y, np.float64).reshape(-1, *self.shape)
        middles = (np.nanmean(targets, axis=0), np.nanmedian(targets, axis=0))
        return known if known is not None else min(map(self._loss_of_constant, middles))

    @functools.cached_property
    def _model(self) -> keras.Model:
        return self.build()

    def _loss_of_constant(self, constant: np.ndarray) -> float:
        return self._loss(np.broadcast_to(constant, (len(self.y), *self.shape)))

    def _loss(self, predicted: np.ndarray) -> float:
        """Return the loss on rows with known targets; infinity where it is not finite."""
        known = np.isfinite(np.asarray(self.y, np.float64).reshape(len(self.y), -1)).all(axis=1)
        rows = np.flatnonzero(known)[:FEW_SAMPLES]
        x, y = keras.tree.map_structure(lambda a: keras.ops.convert_to_tensor(np.asarray(a)[rows]), (self.x, self.y))
        given = keras.ops.convert_to_tensor(np.asarray(predicted)[rows], "float32")
        loss = float(self._model.compute_loss(x=x, y=y, y_pred=given, training=False))
        return loss if math.isfinite(loss) else math.inf


def masks(model: keras.Model) -> bool:
    """Return whether a layer masks time steps, which then count in no loss."""
    return any(isinstance(one, keras.layers.Masking) or getattr(one, "mask_zero", False) for one in sublayers(model))


def usual_baseline(output: OutputDescription, y: Any) -> float | None:
    """Return the loss of the best constant prediction for a loss of Keras' on the only output, by its formula."""
    changed = output.config.get("label_smoothing") or output.config.get("ignore_class") is not None
    if output.custom or changed or keras.tree.is_nested(y):
        return None
    known = constant_baseline_loss(output.loss, np.asarray(y))
    return None if known is None else output.factor * known


def sum_of_baselines(outputs: Sequence[OutputDescription], targets: Sequence[Any]) -> float | None:
    """Return the sum over the outputs of the losses of their best constant predictions, or None if one is not known."""
    judged = [one for one in outputs if one.loss is not None]
    if not judged or any(one.target is None or one.target >= len(targets) for one in judged):
        return None
    parts = [usual_baseline(one, targets[one.target]) for one in judged]
    return None if None in parts else float(sum(parts))


def constant_loss(model: keras.Model, x: Any, y: Any, shape: tuple[int | None, ...]) -> float | None:
    """Return the loss of the best constant output on the first samples; None where none is found.

    Args:
        model: A compiled model, whose loss is used.
        x: Inputs.
        y: Targets.
        shape: Of its output, without samples.
    """
    first = np.asarray(keras.tree.flatten(y)[0], np.float64)[:FEW_SAMPLES]
    if not has_plain_loss(model) or None in shape or first.min() == first.max():  # else a constant would be perfect
        return None
    x, y = keras.tree.map_structure(lambda a: keras.ops.convert_to_tensor(a[:FEW_SAMPLES]), (x, y))

    def loss(constants: tf.Tensor, rows: slice) -> tf.Tensor:
        some_x, some_y = keras.tree.map_structure(lambda a: a[rows], (x, y))
        predicted = tf.broadcast_to(constants, (len(first[rows]), *shape))
        return model.compute_loss(x=some_x, y=some_y, y_pred=predicted, training=False)

    middle = float(np.nanmean(first))
    how: dict[str, Any] = {"samples": len(first), "columns": shape[-1]}
    try:
        found = best_constant_loss(loss, middle=middle, **how)
        below = tf.fill([shape[-1]], -1.0)
        if found is None and middle > 0 and not math.isfinite(float(loss(below, slice(None)))):  # as of a rate
            found = best_constant_loss(lambda one, rows: loss(tf.exp(one), rows), middle=math.log(middle), **how)
        return found
    except Exception:  # a loss that does not take such an output
        _LOG.debug("The loss of a constant prediction could not be found.", exc_info=True)
        return None


def wants_other_answers(
    model: keras.Model, x: Any, y: Any, shape: tuple[int | None, ...], *, numbers: bool = True
) -> bool:
    """Return whether the loss of a model is lower for other answers than for the targets themselves.

    A score that compares answers with targets misreads it, as of a distance that is to be small for pairs marked 1, or
    of a likelihood whose parameters the answers are. A distance to the targets is at its least where these are. The
    others are their opposite and their mean; of numbers half, twice and none of them, too. What is not finite is above
    what is.

    Args:
        model: A compiled model.
        x: Inputs.
        y: Targets.
        shape: Of its output, without samples.
        numbers: Whether the targets are numbers, and no marks, of which an answer may be the logarithm of the odds.
    """
    if None in shape or np.shape(y)[1:] not in (shape, shape[:-1]) or not has_plain_loss(model):
        return False
    x, targets = keras.tree.map_structure(lambda a: keras.ops.convert_to_tensor(a[:COMPARED_ROWS]), (x, y))
    every = np.asarray(y, np.float32).reshape(-1, *shape)
    every = every[np.isfinite(every.reshape(len(every), -1)).all(axis=1)]
    answers = np.asarray(y, np.float32).reshape(-1, *shape)[:COMPARED_ROWS]
    opposite, mean = every.min() + every.max() - answers, np.broadcast_to(every.mean(axis=0), answers.shape)
    losses, scaled = [], [factor * answers for factor in (0.5, 2.0, 0.0)] if numbers else []
    for one in (answers, opposite, mean, *scaled):
        given = keras.ops.convert_to_tensor(one + INWARD * (mean - one))
        rows = [keras.tree.map_structure(lambda a, k=k: a[k : k + 1], (x, targets, given)) for k in range(len(answers))]
        losses.append([float(model.compute_loss(x=a, y=b, y_pred=c, training=False)) for a, b, c in rows])
    return any(_is_lower(np.array(one), np.array(losses[0])) for one in losses[1:])


def _is_lower(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether losses of some rows are together below others; what is not finite is above what is."""
    finite = np.isfinite(one), np.isfinite(other)
    if (finite[0] & ~finite[1]).sum() > (finite[1] & ~finite[0]).sum():
        return True
    both = finite[0] & finite[1]
    least = TOLERANCE * float(np.abs(other[both]).sum())
    return bool(one[both].sum() < other[both].sum() - least)


def positive_columns(
    model: keras.Model, x: Any, y: Any, shape: tuple[int | None, ...], *, rectified: bool = False
) -> tuple[int, ...]:
    """Return the columns of an output below 0 of which a loss is not finite.

    Args:
        model: A compiled model, whose loss is used.
        x: Inputs.
        y: Targets.
        shape: Of its output, without samples.
        rectified: Whether the output is never below 0, so that 0 itself is asked for.
    """
    if None in shape or shape[-1] > MOST_COLUMNS or not has_plain_loss(model):
        return ()
    x, y = keras.tree.map_structure(keras.ops.convert_to_tensor, (x, y))

    def is_finite(constants: np.ndarray) -> bool:
        predicted = np.broadcast_to(constants, (len(keras.tree.flatten(y)[0]), *shape)).astype(np.float32)
        loss = model.compute_loss(x=x, y=y, y_pred=keras.ops.convert_to_tensor(predicted), training=False)
        return bool(np.isfinite(float(loss)))

    above, below = np.ones(shape[-1]), (1.0 if rectified else 2.0) * np.eye(shape[-1])
    try:
        found = is_finite(above) and [place for place, one in enumerate(below) if not is_finite(above - one)]
        return tuple(found or ())
    except Exception:  # a loss that does not take such an output
        _LOG.debug("The columns that must be positive could not be found.", exc_info=True)
        return ()
