"""The loss of the best constant prediction, which a net must beat, and of a simple one, which shows that it can."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

_SQUARED = {"mse", "mean_squared_error"}
_ABSOLUTE = {"mae", "mean_absolute_error"}


def constant_baseline_loss(
    loss: str | None, *targets: Any, sample_weights: Sequence[Any] | None = None, summed: bool = False
) -> float | None:
    """Return the loss of the best constant prediction, or None where the loss or the targets do not tell it.

    For a cross-entropy that is the entropy of the labels, in nats; for a squared error their variance; for an
    absolute one their mean distance from the median. Sample weights weigh the samples in all of these.

    Args:
        loss: Keras' name of the loss, such as `"mse"` or `"sparse_categorical_crossentropy"`.
        targets: Arrays `[samples, ...]`, one for each batch. None, or arrays that hold no numbers or do not fit each
            other, give None.
        sample_weights: For each batch `[samples]` or `[samples, places]`; None where samples have none.
        summed: Whether the loss of a batch is the sum over its samples and places, not their mean.

    Example:
        >>> round(constant_baseline_loss("sparse_categorical_crossentropy", np.array([0, 1, 0, 1])), 4)
        0.6931
        >>> constant_baseline_loss("mse", np.array([1.0, 3.0]))
        1.0
        >>> constant_baseline_loss("mse", np.array([1.0, 3.0]), summed=True)
        2.0
    """
    if loss is None or any(batch is None for batch in targets):
        return None
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", str(loss)).lower()
    try:
        values = np.concatenate([np.asarray(batch, dtype=np.float64) for batch in targets])
        weights = np.ones(values.shape) if sample_weights is None else _like(values, sample_weights)
    except (TypeError, ValueError):
        return None
    if not len(values):
        return None
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    values, weights = values[finite], weights[finite]
    if not len(values) or not (weights.min() >= 0 and weights.sum() > 0):
        return None
    found = _least(name, values, weights)
    if found is None or not summed:
        return found
    columns = 1 if name == "sparse_categorical_crossentropy" or values.ndim < 2 else values.shape[-1]
    return found * values.size / columns / len(targets)


def _like(values: np.ndarray, sample_weights: Sequence[Any]) -> np.ndarray:
    """Return the weights of samples, or of places, for each entry of the targets."""
    weights = np.concatenate([np.asarray(batch, dtype=np.float64) for batch in sample_weights])
    if weights.ndim > values.ndim and weights.shape[-1] == 1:
        weights = weights[..., 0]
    return np.broadcast_to(weights.reshape(*weights.shape, *(1,) * (values.ndim - weights.ndim)), values.shape)


def _least(name: str, values: np.ndarray, weights: np.ndarray) -> float | None:
    """Return the mean loss of the best constant prediction to values, each of which has a weight."""
    if name == "sparse_categorical_crossentropy":
        _, places = np.unique(values, return_inverse=True)
        counts = np.bincount(places.ravel(), weights.ravel())
        return _entropy(counts / counts.sum()) * float(weights.mean())
    if name == "categorical_crossentropy" and values.ndim > 1:
        rows = (values * weights).reshape(-1, values.shape[-1])
        return _entropy(rows.sum(axis=0) / weights[..., 0].sum()) * float(weights.mean())
    flat, weights = values.reshape(len(values), -1), weights.reshape(len(values), -1)
    shares = weights / np.maximum(weights.sum(axis=0), np.finfo(float).tiny)
    sizes = weights.mean(axis=0)
    means = (shares * flat).sum(axis=0)
    if name == "binary_crossentropy":
        if means.min() < 0 or means.max() > 1:
            return None
        return float(np.mean(sizes * [_entropy(np.array([share, 1.0 - share])) for share in means]))
    if name in _SQUARED:
        return float(np.mean(sizes * (shares * (flat - means) ** 2).sum(axis=0)))
    if name in _ABSOLUTE:
        medians = np.array([_median(*pair) for pair in zip(flat.T, shares.T, strict=True)])
        return float(np.mean(sizes * (shares * np.abs(flat - medians)).sum(axis=0)))
    return None


def _median(values: np.ndarray, shares: np.ndarray) -> float:
    order = np.argsort(values)
    return float(values[order][min(len(values) - 1, int(np.searchsorted(np.cumsum(shares[order]), 0.5)))])


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(max(0.0, -np.sum(shares * np.log(shares)))) if math.isfinite(shares.sum()) else 0.0


MAX_CLASSES, ROWS_OF_A_CLASS = 100, 5  # different whole numbers that count as classes, and rows of each in the mean
MAX_COLUMNS = 1024  # of targets that are numbers
PENALTIES = (0.03, 1.0)  # on squared weights of standardized columns, over the mean loss of the rows
ITERATIONS = 60  # of a fit of classes
FAR_OUT = 10.0  # standard deviations at which a column is clipped
RANDOM_UNITS = 300  # of a layer that is not trained: its kernel is that of a ReLU net, arXiv 1011.5395


class Fit(NamedTuple):
    """A simple function of the inputs beside a constant, both fitted to some rows and judged on others.

    Args:
        constant: Loss of the constant prediction, float64 `[judged rows]`.
        fitted: The same of the function.
        answers: Of the function, float64 `[judged rows, columns]`: shares of the classes, or numbers.
        constants: The same of the constant prediction, `[columns]`.
        labels: The value of each class; None of numbers.
        rows: Places of the judged rows.
        of: What the function is linear in.
    """

    constant: np.ndarray
    fitted: np.ndarray
    answers: np.ndarray
    constants: np.ndarray
    labels: np.ndarray | None
    rows: np.ndarray
    of: str


def simple_fit(features: Mapping[str, np.ndarray], y: np.ndarray, judged: np.ndarray) -> Fit | None:
    """Return what a simple function learns of the targets, on rows that it was not fitted to.

    It is linear in one of several kinds of features, whichever is best. Classes are predicted by a logistic regression
    and compared by cross-entropy, in nats; numbers by a ridge regression, and compared by squared error over the
    variance.

    Args:
        features: Of each kind, by its name, `[rows, columns]`.
        y: Targets, `[rows, ...]`: classes, rows with a single 1, or numbers.
        judged: bool `[rows]`, the rows that are judged; the others are fitted.

    Returns:
        None where the targets are neither, or all the same.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> found = simple_fit({"x": x}, x[:, 0] > 0, np.arange(200) % 2 == 0)
        >>> float(found.constant.mean()) > 0.6, float(found.fitted.mean()) < 0.4
        (True, True)
    """
    usable = np.isfinite(y.reshape(len(y), -1).astype(np.float64)).all(axis=1)
    y, judged, places = y[usable], judged[usable], np.flatnonzero(usable)
    if not judged.any() or judged.all():
        return None
    classes, labels = _labels(y)
    values = np.eye(len(classes))[labels] if classes is not None else _columns(y)
    if values is None or not (values[~judged].std(axis=0) > 0).any():
        return None
    mean = values[~judged].mean(axis=0)
    size = max(float(np.square(values[~judged] - mean).mean()), np.finfo(float).tiny)
    constant = np.square(values[judged] - mean).mean(axis=1) / size
    if classes is not None:
        counts = values[~judged].sum(axis=0) + 1.0
        mean = counts / counts.sum()
        constant = -np.log(mean)[values[judged].argmax(axis=1)]
    fits = []
    for of, columns in features.items():
        x = _standardized(np.nan_to_num(columns[usable].astype(np.float64)), ~judged)
        x = np.c_[x, np.ones(len(x))]
        for penalty in PENALTIES:
            if classes is None:
                answers = x[judged] @ _ridge(x[~judged], values[~judged] - mean, penalty) + mean
                losses = np.square(values[judged] - answers).mean(axis=1) / size
            else:
                logs = _log_shares(x[judged] @ _logistic(x[~judged], values[~judged], penalty))
                answers, losses = np.exp(logs), -(logs * values[judged]).sum(axis=1)
            fits.append(Fit(constant, losses, answers, mean, classes, places[judged], of))
    return min(fits, key=lambda one: float(one.fitted.mean()))


def _standardized(x: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    spread = x[fitted].std(axis=0)
    return np.clip((x - x[fitted].mean(axis=0)) / np.where(spread > 0, spread, 1.0), -FAR_OUT, FAR_OUT)


def random_units(x: np.ndarray) -> np.ndarray:
    """Return ReLU units of standardized columns, float64 `[rows, RANDOM_UNITS]`, with weights drawn at random.

    Args:
        x: `[rows, columns]`.
    """
    x = _standardized(np.nan_to_num(x.astype(np.float64)), np.ones(len(x), bool))
    random = np.random.default_rng(0)
    kernel = random.normal(size=(x.shape[1], RANDOM_UNITS)) / math.sqrt(x.shape[1])
    return np.maximum(x @ kernel + random.normal(size=RANDOM_UNITS), 0.0)


def _labels(y: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Return (values of the classes, place of each row's class among them); (None, nothing) of targets of numbers."""
    flat = y.reshape(len(y), -1)
    none = (None, np.zeros(0, int))
    if flat.shape[1] > 1:
        hot = bool(np.isin(flat, (0, 1)).all() and (flat.sum(axis=1) == 1).all())
        return (np.arange(flat.shape[1]), flat.argmax(axis=1)) if hot else none
    found, labels = np.unique(flat[:, 0], return_inverse=True)
    few = len(found) <= min(MAX_CLASSES, len(y) / ROWS_OF_A_CLASS)
    return (found, labels.ravel()) if few and np.array_equal(found, np.round(found)) else none


def _columns(y: np.ndarray) -> np.ndarray | None:
    """Return numbers `[rows, columns]`, some of many columns; None of whole ones with many columns."""
    flat = y.reshape(len(y), -1).astype(np.float64)
    if flat.shape[1] > 1 and y.dtype.kind in "iu":
        return None  # tokens, or the classes of many places
    return flat[:, np.unique(np.linspace(0, flat.shape[1] - 1, MAX_COLUMNS).astype(int))]


def _ridge(x: np.ndarray, values: np.ndarray, penalty: float) -> np.ndarray:
    return np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T @ values)


def _logistic(x: np.ndarray, hot: np.ndarray, penalty: float) -> np.ndarray:
    shape = (x.shape[1], hot.shape[1])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logs = _log_shares(x @ weights)
        slope = x.T @ (np.exp(logs) - hot) / len(x) + penalty * weights
        return float(-(logs * hot).sum() / len(x) + 0.5 * penalty * np.square(weights).sum()), slope.ravel()

    how: dict[str, Any] = {"jac": True, "method": "L-BFGS-B", "options": {"maxiter": ITERATIONS}}
    return minimize(loss, np.zeros(shape).ravel(), **how).x.reshape(shape)


def _log_shares(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


LEAST_ERROR = 1e-6  # of the best constant, by which errors are divided


def wrong_classes(shares: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Return the share of wrong classes of each row over that of the commonest class, float64 `[rows]`.

    Args:
        shares: What is right, `[rows, ..., classes]`: a single 1 at each place, or shares.
        answers: Of a net, of the same shape; the largest counts.

    Example:
        >>> right = np.eye(2)[[0, 1, 0, 0]]
        >>> wrong_classes(right, np.array([[2.0, 1.0]] * 4)).tolist()
        [0.0, 4.0, 0.0, 0.0]
    """
    flat = shares.reshape(len(shares), -1, shares.shape[-1])
    commonest = np.broadcast_to(flat.mean(axis=0).argmax(axis=-1), flat.shape[:2])
    chosen = answers.reshape(flat.shape).argmax(axis=-1)
    wrong, constant = (
        1.0 - np.take_along_axis(flat, one[..., None], axis=-1).reshape(len(flat), -1).mean(axis=1)
        for one in (chosen, commonest)
    )
    return wrong / max(float(constant.mean()), LEAST_ERROR)


def squares_left(targets: np.ndarray, answers: np.ndarray, *, ranks: bool = False) -> np.ndarray:
    """Return the squares that the best scale and shift of each column of answers leave, over those of a constant.

    Args:
        targets: Numbers, `[rows, ...]`.
        answers: Of a net, of the same shape.
        ranks: Whether places in the order of the rows are compared, which any rising function keeps.

    Returns:
        float64 `[rows]`.

    Example:
        >>> squares_left(np.array([[1.0], [2.0], [3.0]]), np.array([[10.0], [30.0], [50.0]])).round(6).tolist()
        [0.0, 0.0, 0.0]
    """
    wanted, given = (one.reshape(len(one), -1).astype(np.float64) for one in (targets, answers))
    if ranks:
        wanted, given = (one.argsort(axis=0).argsort(axis=0).astype(np.float64) for one in (wanted, given))
    wanted, given = wanted - wanted.mean(axis=0), given - given.mean(axis=0)
    slope = (wanted * given).mean(axis=0) / np.maximum(np.square(given).mean(axis=0), np.finfo(float).tiny)
    left = np.square(wanted - np.maximum(slope, 0.0) * given).mean(axis=1)
    return left / max(float(np.square(wanted).mean()), np.finfo(float).tiny)
