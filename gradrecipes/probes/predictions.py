"""Other predictions than the net's: the best constant one, right ones, those of other samples, and a simple fit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

from gradrecipes.core.analysis.baseline import Fit, random_units, simple_fit
from gradrecipes.core.trace.data_reading import INPUTS, LinearReading
from gradrecipes.probes.held_back import MIN_JUDGED, CalledLoss, answers_to, standard_error

logger = logging.getLogger(__name__)

SAME = 1e-4  # relative difference up to which two losses are one
STARTS = 4  # columns that the fit starts at the mean of the targets, one after the other
EVALUATIONS = 60  # of the loss, for each start
LEVEL = 0.1  # slope at the end of a fit over the steepest at a start; a loss without a bottom falls on as steeply
PROBABILITIES = {"sigmoid", "softmax"}
ALMOST_CERTAIN = 0.96  # of a probability: far enough from 0 and 1 for a loss that takes its logarithm
CERTAIN_LOGIT = 6.0  # of the right class over the others
MANY_VALUES = 20  # of targets that are numbers, not labels


def best_constant_loss(
    loss: Callable[[tf.Tensor, slice], tf.Tensor], *, samples: int, columns: int, middle: float
) -> float | None:
    """Return the least loss of a prediction that is the same for all samples.

    Args:
        loss: Called with constants, float32 `[columns]`, and the rows to predict them for; returns the mean loss of
            these rows, a scalar.
        samples: How many rows there are.
        columns: How many constants.
        middle: Mean of the targets, where the fit starts, too.

    Returns:
        None where the loss compares samples with each other, has no lower bound, or is finite nowhere near a start.

    Example:
        >>> targets = tf.constant([1.0, 2.0, 6.0])
        >>> squares = lambda constants, rows: tf.reduce_mean((targets[rows] - constants) ** 2)
        >>> round(best_constant_loss(squares, samples=3, columns=1, middle=3.0), 3)
        4.667
    """
    at, half = np.linspace(0.1, 0.2, columns), samples // 2
    parts = (slice(None), slice(None, half), slice(half, None))
    whole, *halves = (_loss_and_slope(at, loss, rows)[0] for rows in parts)
    together = (half * halves[0] + (samples - half) * halves[1]) / samples
    if not abs(whole - together) <= SAME * max(abs(whole), abs(together)):
        return None
    starts = [
        np.zeros(columns),
        np.ones(columns),
        np.full(columns, middle),
        *(middle * one for one in np.eye(columns)[:STARTS]),
    ]
    slopes = [_loss_and_slope(start, loss, slice(None))[1] for start in (at, *starts)]
    level = LEVEL * max(float(np.abs(slope).max()) for slope in slopes)
    how: dict[str, Any] = {"jac": True, "method": "L-BFGS-B", "options": {"maxfun": EVALUATIONS}}
    ends = [minimize(_loss_and_slope, start, args=(loss, slice(None)), **how) for start in starts]
    bottoms = [float(end.fun) for end in ends if math.isfinite(end.fun) and np.abs(end.jac).max() <= level]
    return min(bottoms, default=None)


def _loss_and_slope(
    constants: np.ndarray, loss: Callable[[tf.Tensor, slice], tf.Tensor], rows: slice
) -> tuple[float, np.ndarray]:
    """Return (loss, its gradient); infinity where one of them is not finite."""
    variables = tf.constant(constants, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(variables)
        value = loss(variables, rows)
    slope = tape.gradient(value, variables)
    slopes = np.zeros(len(constants)) if slope is None else np.asarray(slope, np.float64)
    finite = math.isfinite(float(value)) and bool(np.isfinite(slopes).all())
    return (float(value), slopes) if finite else (math.inf, np.zeros(len(constants)))


def pairs_samples(loss: Any, target: tf.Tensor, output: Any) -> bool | None:
    """Say whether it matters to a loss which target belongs to which sample; not if it compares all with all."""
    own = np.asarray(output)
    around = tf.constant(0.5 * own + np.random.default_rng(0).uniform(0.2, 0.8, own.shape).astype(own.dtype))
    values = np.asarray(target)
    others = 0.5 * values if values.dtype.kind == "f" else np.broadcast_to(values[:1], values.shape)
    try:
        as_it_is, turned, other = (
            float(tf.reduce_mean(loss(one, around)))
            for one in (target, tf.roll(target, 1, axis=0), tf.constant(others, target.dtype))
        )
    except Exception:  # a loss that needs more than targets and predictions
        return None
    if not all(map(math.isfinite, (as_it_is, turned, other))):
        return None
    matters = abs(as_it_is - other) > 10 * SAME * abs(as_it_is)
    return abs(as_it_is - turned) > SAME * abs(as_it_is) if matters else None


def mispaired(loss: Any, target: tf.Tensor, output: Any, activation: str | None) -> tuple[float, ...] | None:
    """Return the loss at the net's own answers, at right ones, and at those that belong to other samples.

    It is asked where right answers are known: classes and shares of a sigmoid or softmax, numbers of a linear output.
    """
    values, shape = np.asarray(target), tuple(output.shape)
    classes = shape[-1] if len(shape) > 1 else 1
    if classes > 1 and values.dtype.kind in "iu" and values.shape in (shape[:-1], (*shape[:-1], 1)):
        values = np.eye(classes)[values.reshape(shape[:-1]) % classes]
        values = values if activation in PROBABILITIES else CERTAIN_LOGIT * values
    elif values.shape not in (shape, shape[:-1] if classes == 1 else shape):
        return None
    elif activation in PROBABILITIES:
        if values.min() < 0 or values.max() > 1:
            return None
    elif values.dtype.kind != "f" or len(np.unique(values)) < MANY_VALUES:
        return None  # labels of -1 and 1 mean what the loss makes of them
    if np.array_equal(values, np.roll(values, 1, axis=0)):
        return None
    if activation in PROBABILITIES:
        values = (1.0 - ALMOST_CERTAIN) / classes + ALMOST_CERTAIN * values
    right = tf.constant(values.reshape(shape), output.dtype)
    try:
        found = tuple(
            float(tf.reduce_mean(loss(target, at))) for at in (tf.identity(output), right, tf.roll(right, 1, axis=0))
        )
    except Exception:  # a loss that needs more than targets and predictions
        return None
    return found if all(map(math.isfinite, found)) else None


MAX_FEATURES = 400  # columns of a fit; more are projected at random to as many
TOKENS = 512  # columns that the counts of tokens are spread over
LEAST_SHARE = 1e-3  # of a class, in an answer that a loss takes the logarithm of


def simple_readings(
    batches: Sequence[Any],
    *,
    tokens: Collection[int] = (),
    model: keras.Model | None = None,
    losses: Sequence[CalledLoss] = (),
) -> tuple[LinearReading, ...]:
    """Return what a simple function of the inputs learns of each target, by every other batch.

    Args:
        batches: What `train_step` gets.
        tokens: Places of the flattened inputs whose numbers the model looks up in a table: they are counted.
        model: The net whose answers are compared with the targets of the same rows, or None. It is left as it was.
        losses: Of its outputs, each as (place of the output, of its target, loss of each row of both).
    """
    try:
        parts = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
        inputs, targets = ([keras.tree.flatten(part[place]) for part in parts] for place in (0, 1))
        sizes = [len(row[0]) for row in inputs]
        number = np.repeat(np.arange(len(sizes)), sizes) if len(sizes) > 1 else np.arange(sizes[0])
        columns = [np.concatenate([np.asarray(row[place]) for row in inputs]) for place in range(len(inputs[0]))]
        features = _kinds_of_features(columns, tokens)
        found = []
        for place in range(len(targets[0])):
            y = np.concatenate([np.asarray(row[place]) for row in targets])
            copied = next((one for one in columns if _same(one, y)), None)
            kinds = features if copied is None else {"their first principal component": _main_direction(copied)}
            usable = y.dtype.kind in "biuf" and len(y) == len(number)
            fit = simple_fit(kinds, y, number % 2 == 1) if usable else None
            if fit is None or len(fit.rows) < MIN_JUDGED:
                continue
            gain = fit.constant - fit.fitted
            ends = float(fit.constant.mean()), float(fit.fitted.mean())
            reading = LinearReading(place, *ends, standard_error(gain), len(gain), fit.of)
            judged = [(output, loss) for output, target, loss in losses if target == place]
            one = len(judged) == 1 and model is not None
            found.append(replace(reading, **_beside(fit, y, model, batches, *judged[0])) if one else reading)
        return tuple(found)
    except Exception:  # ragged or sparse inputs, steps without targets, batches of several shapes
        logger.debug("No simple function could be fitted.", exc_info=True)
        return ()


def _kinds_of_features(inputs: Sequence[np.ndarray], tokens: Collection[int]) -> dict[str, np.ndarray]:
    """Return by what they are: the numbers and counts of tokens, random units of them, and counts of whole numbers."""
    x = _projected(np.concatenate([_features(one, place in tokens) for place, one in enumerate(inputs)], axis=1))
    found = {INPUTS: x, "random ReLU units of the inputs": random_units(x)}
    whole = [one for place, one in enumerate(inputs) if place not in tokens and one.size and _is_whole(one)]
    if whole:
        counts = np.concatenate([_features(one - one.min(), counted=True) for one in whole], axis=1)
        found["how often each number occurs in the inputs"] = _projected(counts)
    return found


def _is_whole(one: np.ndarray) -> bool:
    """Return whether an input holds many whole numbers, such as the places of words in a list."""
    flat = one.reshape(len(one), -1)
    return bool(flat.shape[1] > 1 and np.isfinite(flat).all() and (flat == np.round(flat)).all())


def _beside(
    fit: Fit, y: np.ndarray, model: keras.Model, batches: Sequence[Any], output: int, loss: Callable[..., Any]
) -> dict[str, float]:
    """Return the losses of the net, of the function and of a constant on the judged rows; nothing if they have none.

    The loss is the net's own. Shares of classes are given to it as probabilities, as logits, or as their mean number,
    whichever suits it.
    """
    constants, target = np.broadcast_to(fit.constants, fit.answers.shape), tf.constant(y[fit.rows])
    try:
        own = answers_to(model, batches)[output][fit.rows]
        rows = [_by_row(loss, target, own)]
        for shares in (fit.answers, constants):
            tried = [_by_row(loss, target, one) for one in _as_answers(fit, shares, own)]
            rows.append(min((one for one in tried if one is not None), key=lambda one: float(one.mean()), default=None))
    except Exception:  # a model that is not called as a whole, answers of another shape than the targets
        logger.debug("The answers of %r could not be compared with those of a simple function.", model, exc_info=True)
        return {}
    if any(one is None for one in rows):
        return {}
    own_rows, fitted, constant = (one for one in rows if one is not None)
    means = {"own": own_rows, "own_linear": fitted, "own_constant": constant}
    return {name: float(one.mean()) for name, one in means.items()} | {"own_noise": standard_error(own_rows - fitted)}


def _as_answers(fit: Fit, shares: np.ndarray, own: np.ndarray) -> list[np.ndarray]:
    """Return what a fit answers, as a net might: numbers, or probabilities, logits and mean numbers of classes."""
    if fit.labels is None:
        return [shares.reshape(own.shape)] if shares.size == own.size else []
    several = own.shape[-1] if own.ndim > 1 else 1
    shares = np.clip(shares, LEAST_SHARE, 1.0 - LEAST_SHARE)
    if several == 1:
        second = shares[:, -1].reshape(own.shape)
        mean = (shares @ fit.labels).reshape(own.shape)
        return [mean, *((second, np.log(second / (1.0 - second))) if len(fit.labels) == 2 else ())]
    places = fit.labels.astype(int)
    if own.ndim != 2 or places.min() < 0 or places.max() >= several:
        return []
    full = np.full(own.shape, LEAST_SHARE)
    full[:, places] = shares
    full /= full.sum(axis=1, keepdims=True)
    return [full, np.log(full)]


def _by_row(loss: Callable[..., tf.Tensor], target: tf.Tensor, answers: np.ndarray) -> np.ndarray | None:
    """Return the loss of each row, float64 `[rows]`; None where it has none, or one that is not finite."""
    values = np.asarray(loss(target, tf.constant(answers.astype(np.float32))), np.float64)
    if not values.ndim or len(values) != len(answers) or not np.isfinite(values).all():
        return None
    return values.reshape(len(values), -1).mean(axis=1)


def usual_error(target: Any, answers: Any) -> np.ndarray:
    """Return the error of each row: whether the class is wrong, or the squared error after the best scale and shift.

    Args:
        target: Classes `[rows]`, all that there are, rows with a single 1, or numbers.
        answers: `[rows, ...]`; of classes a column each, which tells them from codes of another kind.

    Raises:
        ValueError: The answers are neither.

    Example:
        >>> usual_error([1.0, 2.0, 3.0], [[30.0], [20.0], [10.0]]).round(6).tolist()
        [0.0, 0.0, 0.0]
        >>> usual_error([1, 0], [[0.3, 0.7], [0.2, 0.8]]).tolist()
        [0.0, 1.0]
    """
    y, given = np.asarray(target), np.asarray(answers, np.float64)
    columns = given.reshape(len(given), -1)
    if y.size == len(given) and np.array_equal(np.unique(y), np.arange(columns.shape[1])) and columns.shape[1] > 1:
        return (columns.argmax(axis=1) != y.reshape(-1)).astype(np.float64)
    flat = y.reshape(len(y), -1).astype(np.float64)
    if flat.shape != columns.shape:
        raise ValueError(f"Answers must fit the targets. Received: {given.shape} for {y.shape}.")
    if flat.shape[1] > 1 and np.isin(flat, (0, 1)).all() and (flat.sum(axis=1) == 1).all():
        return (columns.argmax(axis=1) != flat.argmax(axis=1)).astype(np.float64)
    flat, columns = flat - flat.mean(axis=0), columns - columns.mean(axis=0)
    slope = (flat * columns).mean(axis=0) / np.maximum(np.square(columns).mean(axis=0), np.finfo(float).tiny)
    return np.square(flat - slope * columns).mean(axis=1)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether a target is an input: to copy it is no witness that a code of it can be learned."""
    return one.size == other.size and np.array_equal(one.reshape(len(one), -1), other.reshape(len(other), -1))


def _main_direction(x: np.ndarray) -> np.ndarray:
    """Return the first principal component, `[rows, 1]`: a code of a single number, which any net has room for."""
    x = _projected(_features(x, counted=False))
    centred = np.nan_to_num(x - np.nanmean(x, axis=0))
    *_, directions = np.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:1].T


def _features(one: np.ndarray, counted: bool) -> np.ndarray:
    """Return an input as columns: its numbers, or how often each token comes."""
    flat = one.reshape(len(one), -1)
    if not counted:
        return flat.astype(np.float64)
    counts = np.zeros((len(flat), TOKENS))
    np.add.at(counts, (np.arange(len(flat))[:, None], flat.astype(np.int64) % TOKENS), 1.0)
    return counts


def _projected(x: np.ndarray) -> np.ndarray:
    if x.shape[1] <= MAX_FEATURES:
        return x
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return x @ np.random.default_rng(0).normal(size=(x.shape[1], MAX_FEATURES)) / math.sqrt(x.shape[1])
