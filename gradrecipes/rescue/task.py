"""What a model is to learn, read from its targets, and how well it does, in one number that any loss leaves alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from gradrecipes.core.trace.description import OutputDescription
from gradrecipes.rescue.edits import OWN
from gradrecipes.rescue.feed import is_marked
from gradrecipes.rescue.original import Setup
from gradrecipes.rescue.own_loss import OwnLoss

_LOG = logging.getLogger(__name__)

CLASSES, ONE_HOT, BINARY, NUMBERS = "classes", "one_hot", "binary", "numbers"
SEVERAL, OWN_LOSS = "several", "own_loss"
WORDS = {
    CLASSES: "balanced accuracy",
    ONE_HOT: "balanced accuracy",
    BINARY: "balanced accuracy",
    NUMBERS: "R squared",
    SEVERAL: "mean over the outputs of the score above a constant prediction",
    OWN_LOSS: "relative fall of the loss",
}
MAX_CLASSES = 1000  # distinct whole numbers that are taken for labels
LABELS_SHARE = 0.2  # distinct labels over samples; more of them are numbers
WORST = -1.0  # score of predictions that are not finite, or worse than any constant prediction
PREDICTED_AT_ONCE = 500  # samples


@dataclass(frozen=True, eq=False)
class Score:
    """Say how well a model does on what is held back.

    Args:
        value: 1 is perfect, 0 no better than a constant prediction for numbers; between `WORST` and 1, but above 1
            for a loss of the user's own that falls below 0.
        samples: float64 `[samples]`, the part of each sample, whose mean is the value; None where only the mean
            is known.
        error: Standard error of the value, where it is known without samples.
    """

    value: float
    samples: np.ndarray | None = None
    error: float | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """Hold what is to be learned, and score models at it.

    Args:
        kind: `"classes"`, `"one_hot"`, `"binary"`, `"numbers"`, `"several"` or `"own_loss"`.
        units: Entries of the last axis that the output needs, or None.
        baseline_score: Score of the best constant prediction.
        x: Validation inputs.
        y: Validation targets.
        reference: For `"own_loss"`, the loss of the best constant prediction, or the one before training.
        start: The loss before training, where it is above that of the best constant prediction.
        outputs: What each output is to learn, for `"several"`.
        shares: Whether all targets lie between 0 and 1.
        counts: bool `[samples]` or `[samples, places]`: which of the validation targets weigh anything in the loss;
            None for all of them.
        own: Judges the answers of a model that is trained with another loss than the user's, where that one says what
            an answer means; None where it does not.
    """

    kind: str
    units: int | None
    baseline_score: float
    x: Any
    y: Any
    reference: float = math.nan
    start: float = math.nan
    outputs: tuple[OutputTask, ...] = ()
    shares: bool = False
    counts: np.ndarray | None = None
    own: OwnLoss | None = None

    def score(self, model: keras.Model, setup: Setup, *, logged: float = math.nan) -> Score:
        """Return the score of a model.

        Args:
            model: The model.
            setup: How it was built: it says which activation the output left through.
            logged: Mean training loss of the last steps, for a model that cannot be evaluated.
        """
        if self.kind == OWN_LOSS:
            return self._by_loss(model, logged)
        predicted, targets = self._predicted(model), keras.tree.flatten(self.y)
        if self.kind == SEVERAL:
            scores = [one.score(predicted, targets, setup) for one in self.outputs]
            value = float(np.mean([one.value for one in scores]))
            parts = [one.samples for one in scores]
            complete = all(part is not None and len(part) == len(parts[0]) for part in parts)
            return Score(value, np.mean(parts, axis=0) if complete else None)
        samples = self._samples(predicted[0], np.asarray(targets[0]), setup)
        if samples is None:
            return Score(WORST, None)
        value = float(np.clip(samples.mean(), WORST, 1.0))
        if self.exchanged(setup) and not self.own.accepts(predicted[0], from_logits=bool(setup.from_logits)):
            return Score(min(value, self.baseline_score))
        return Score(value, samples)

    def exchanged(self, setup: Setup) -> bool:
        """Return whether a setup has another loss than the user's own."""
        return self.own is not None and (setup.loss, setup.from_logits) != self.own.name

    @property
    def measured(self) -> str:
        """What the scores are, in words."""
        many = self.kind in (CLASSES, ONE_HOT, BINARY) and _many_a_sample(_labels(self.kind, self.y))
        return "accuracy" if many else WORDS[self.kind]

    @property
    def numbers(self) -> dict[int, tuple[int, str]] | None:
        """By the position of an output that is to predict numbers, its target's position and its loss's name."""
        if self.kind != SEVERAL:
            return None
        return {one.place: (one.target, one.loss) for one in self.outputs if one.task.kind == NUMBERS}

    def loss_of(self, model: keras.Model, logged: float = math.nan) -> float:
        """Return the loss on what is held back, or, where it cannot be evaluated, the given one."""
        try:
            logs = model.evaluate(self.x, self.y, batch_size=PREDICTED_AT_ONCE, verbose=0, return_dict=True)
            value = logs["loss"] if "loss" in logs else next(iter(logs.values()))
            return float(np.mean(value))
        except Exception:  # a train step without a test step
            _LOG.debug("The model cannot be evaluated.", exc_info=True)
            return logged

    def _predicted(self, model: keras.Model) -> list[np.ndarray]:
        """Return what each output predicts, without a trace, which would cost more than the few batches asked for."""
        count = len(keras.tree.flatten(self.x)[0])
        parts = []
        for start in range(0, count, PREDICTED_AT_ONCE):
            rows = slice(start, start + PREDICTED_AT_ONCE)
            part = keras.tree.map_structure(lambda array, rows=rows: keras.ops.convert_to_tensor(array[rows]), self.x)
            parts.append([keras.ops.convert_to_numpy(one) for one in keras.tree.flatten(model(part, training=False))])
        return [np.concatenate(one).astype(np.float64) for one in zip(*parts, strict=True)]

    def _by_loss(self, model: keras.Model, logged: float) -> Score:
        loss = self.loss_of(model, logged)
        if not (math.isfinite(loss) and math.isfinite(self.reference)):
            return Score(WORST)
        size = abs(self.reference) or 1.0
        fall = (self.reference - loss) / size
        if self._is_above(loss):  # tells which of two is nearer to a constant prediction
            fall = -math.log1p(-fall) / math.log1p((self.start - self.reference) / size)
        return Score(max(float(fall), WORST))

    def unit_of_loss(self, loss: float) -> float:
        """Return by how much a loss of the user's own differs, near one, where its score differs by 1."""
        size = abs(self.reference) or 1.0
        if not self._is_above(loss):
            return size
        return (size + loss - self.reference) * math.log1p((self.start - self.reference) / size)

    def _is_above(self, loss: float) -> bool:
        """Return whether a loss is above that of a constant prediction, where its logarithm is the score."""
        return loss > self.reference and self.start > self.reference

    def _samples(self, predicted: np.ndarray, y: np.ndarray, setup: Setup) -> np.ndarray | None:
        finite = np.isfinite(predicted.reshape(len(predicted), -1)).all(axis=1)
        known = np.isfinite(y.reshape(len(y), -1).astype(np.float64)).all(axis=1)
        counts = np.ones(len(y), bool) if self.counts is None else self.counts
        known &= counts.reshape(len(y), -1).any(axis=1)
        if self.kind == NUMBERS:
            return _explained(predicted, y.astype(np.float64), finite, known)
        if self.kind == BINARY:
            signed = y.min() < 0 and setup.target_values == OWN
            bound = 0.0 if setup.head in ("linear", "tanh", "softsign") or signed else 0.5
            right = (predicted > bound).reshape(len(y), -1) == is_marked(y).reshape(len(y), -1)
            labels = y.reshape(len(y), -1)
        else:
            labels = _labels(self.kind, y)
            labels = labels.reshape(predicted.shape[:-1]) if labels.size == predicted[..., 0].size else labels
            chosen = np.where(np.isfinite(predicted), predicted, -np.inf).argmax(-1)
            if chosen.shape != labels.shape:
                return None
            right = chosen == labels
        right = right & finite.reshape(-1, *[1] * (right.ndim - 1))
        return _balanced(right[known], labels[known], counts[known])


@dataclass(frozen=True, eq=False)
class OutputTask:
    """Score one of several outputs.

    Args:
        task: What it is to learn.
        place: Its position among the flattened outputs.
        target: Position of its target among the flattened targets.
        head: Its activation.
        loss: Keras' name of its loss.
    """

    task: Task
    place: int
    target: int
    head: str
    loss: str

    def score(self, predicted: list[np.ndarray], targets: list[Any], setup: Setup) -> Score:
        """Return how far its score is above the best constant prediction: 1 is perfect, 0 as good as that, or worse.

        An output that begins far off must not hide in the mean that another one has learned.
        """
        setup = replace(setup, head=self.head)
        samples = self.task._samples(predicted[self.place], np.asarray(targets[self.target]), setup)
        if samples is None:
            return Score(WORST)
        baseline = self.task.baseline_score
        samples = (samples - baseline) / (1.0 - baseline)
        if samples.mean() < 0 and np.isfinite(predicted[self.place]).all():
            samples = np.zeros_like(samples)
        return Score(float(np.clip(samples.mean(), WORST, 1.0)), samples)


def task_of(feed: Any, setup: Setup, outputs: Sequence[OutputDescription] = ()) -> Task:
    """Read from the targets, the losses and the outputs what is to be learned.

    Args:
        feed: The data.
        setup: The user's setup.
        outputs: What is known of the outputs; nothing for a single one that the setup describes.
    """
    targets = [] if feed.y is None else keras.tree.flatten(feed.y)
    if len(outputs) > 1:
        parts = tuple(_output_tasks(targets, setup, outputs, feed))
        if parts:
            return Task(SEVERAL, None, 0.0, feed.x_val, feed.y_val, outputs=parts)
    if len(targets) != 1 or len(outputs) > 1 or setup.units is None:
        return Task(OWN_LOSS, None, 0.0, feed.x_val, feed.y_val)
    y = np.asarray(targets[0])
    kind, units = _kind(y, setup)
    known = y[np.isfinite(y.astype(np.float64))]
    shares = bool(known.size and known.min() >= 0 and known.max() <= 1)
    task = Task(kind, units, 0.0, feed.x_val, feed.y_val, shares=shares, counts=_counted(feed.weight_val))
    counts = _counted(feed.sample_weight)
    return replace(task, baseline_score=_baseline_score(kind, y, units, counts))


def _counted(weights: Any) -> np.ndarray | None:
    """Return which samples, or places in them, weigh anything; None for all, or where it cannot be told."""
    if weights is None or keras.tree.is_nested(weights):
        return None
    weights = np.asarray(weights)
    return None if (weights > 0).all() else weights > 0


def _output_tasks(
    targets: list[Any], setup: Setup, outputs: Sequence[OutputDescription], feed: Any
) -> Iterator[OutputTask]:
    """Yield a task for each output with a loss whose target can be told; those without one are not judged."""
    for place, one in enumerate(outputs):
        if one.target is None or one.loss is None or one.units is None or one.target >= len(targets):
            continue
        y, loss, head = np.asarray(targets[one.target]), one.loss, one.activation or "linear"
        if y.dtype.kind not in "fiub":
            continue
        kind, units = _kind(y, replace(setup, units=one.units, loss=loss, head=head))
        if kind != OWN_LOSS:
            task = Task(kind, units, _baseline_score(kind, y, units), feed.x_val, feed.y_val)
            yield OutputTask(task, place, one.target, head, loss)


def fitted(task: Task, setup: Setup) -> Setup | None:
    """Return the setup with head and loss made to fit the targets; None where they do, or no such fit is known."""
    wanted: dict[str, Any] = {}
    linear = setup.head == "linear"
    if task.kind in (CLASSES, ONE_HOT):
        name = "sparse_categorical_crossentropy" if task.kind == CLASSES else "categorical_crossentropy"
        head = setup.head if setup.head in ("softmax", "linear") else "softmax"
        wanted = {"loss": name, "head": head, "from_logits": linear, "units": max(task.units or 0, setup.units or 0)}
    elif task.kind == BINARY:
        wanted = {"loss": "binary_crossentropy", "head": "linear" if linear else "sigmoid", "from_logits": linear}
    elif task.kind == NUMBERS:
        plain = setup.loss in ("mse", "mean_squared_error", "mae", "mean_absolute_error", "huber", "log_cosh")
        other = "mae" if setup.loss in ("mape", "mean_absolute_percentage_error") else "mse"  # it wants a median, too
        wanted = {"loss": setup.loss if plain else other, "head": "linear", "from_logits": None}
        if setup.loss == "binary_crossentropy" and task.shares:  # as an autoencoder of pixels has them
            return None
    changed = replace(setup, **wanted)
    if task.kind in (CLASSES, ONE_HOT, BINARY):
        proper = changed.loss == setup.loss and changed.head == setup.head and changed.units == setup.units
        if proper and bool(setup.from_logits) == linear:
            return None
    return None if changed == setup or setup.head in (OWN, "unknown") else changed


def _kind(y: np.ndarray, setup: Setup) -> tuple[str, int | None]:
    units, loss = setup.units, setup.loss
    values = y[np.isfinite(y.astype(np.float64))] if y.dtype.kind == "f" else y
    if not values.size or values.min() == values.max():  # the loss alone says what is wanted, as in a ranking
        return OWN_LOSS, None
    whole = bool((values == np.round(values.astype(np.float64))).all())
    distinct = np.unique(values) if whole else ()
    wide = y.ndim > 1 and y.shape[-1] > 1
    if whole and len(distinct) <= 2 and wide and y.shape[-1] == units and set(distinct) <= {0, 1}:
        return (ONE_HOT, units) if (y.sum(-1) == 1).all() else (BINARY, units)
    marks = set(np.asarray(distinct).tolist())
    if whole and units == 1 and (marks in ({0, 1}, {-1, 1}) or (len(marks) == 2 and loss.startswith("binary"))):
        return BINARY, 1
    labels = whole and 2 <= len(distinct) <= min(MAX_CLASSES, max(2, LABELS_SHARE * y.size)) and values.min() >= 0
    classifies = "crossentropy" in loss or setup.head == "softmax" or (units or 0) > 1
    if labels and classifies and not (wide and y.shape[-1] == units):
        return CLASSES, int(values.max()) + 1
    same = (y.ndim == 1 and units == 1) or (y.ndim > 1 and y.shape[-1] == units)
    if "crossentropy" in loss and labels:
        return CLASSES, int(values.max()) + 1
    return (NUMBERS, units) if same else (OWN_LOSS, None)


def shares_of(kind: str, y: Any, units: int) -> np.ndarray:
    """Return the share of each class, or of what is marked, among targets, float `[units]`, none of them 0 or 1."""
    y = np.asarray(keras.tree.flatten(y)[0])
    if kind == CLASSES:
        counts = np.bincount(y.astype(int).ravel(), minlength=units)[:units]
    else:
        counts = (is_marked(y) if kind == BINARY else y).reshape(-1, units).sum(axis=0)
    shares = (counts + 1.0) / (y.size / (units if kind != CLASSES else 1) + 2.0)
    return shares if kind == BINARY else shares / shares.sum()


def _baseline_score(kind: str, y: np.ndarray, units: int | None, counts: np.ndarray | None = None) -> float:
    labels = _labels(kind, y)
    if kind in (CLASSES, ONE_HOT, BINARY) and _many_a_sample(labels):
        if counts is not None and counts.shape == labels.shape:
            return _most_frequent(labels[counts], by_column=False)
        return _most_frequent(labels, by_column=kind == BINARY)
    if kind in (CLASSES, BINARY):
        return 1.0 / max(2, len(np.unique(y))) if kind == CLASSES else 0.5
    return 1.0 / max(2, units or 2) if kind == ONE_HOT else 0.0


def _labels(kind: str, y: Any) -> np.ndarray:
    labels = np.asarray(keras.tree.flatten(y)[0])
    return labels.argmax(-1) if kind == ONE_HOT else labels


def _many_a_sample(labels: np.ndarray) -> bool:
    return labels.ndim > 1 and labels[0].size > 1


def _most_frequent(labels: np.ndarray, *, by_column: bool) -> float:
    """Return the share of the labels that the most frequent one has, of many labels a sample."""
    columns = labels.reshape(-1, labels.shape[-1] if by_column else 1)
    known = [column[np.isfinite(column.astype(np.float64))] for column in columns.T]
    return float(np.mean([np.unique(one, return_counts=True)[1].max() / len(one) for one in known if len(one)]))


def _balanced(right: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the part of each sample in the mean of the classes' own accuracies; of sequences the plain share."""
    if _many_a_sample(right):
        counts = (counts if counts.shape == right.shape else np.ones(right.shape)).reshape(len(right), -1)
        return np.average(right.reshape(len(right), -1), axis=1, weights=counts)
    right, labels = right.reshape(len(right)), labels.reshape(len(right))
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return right * (len(labels) / (len(counts) * counts))[place]


def _explained(predicted: np.ndarray, y: np.ndarray, finite: np.ndarray, known: np.ndarray) -> np.ndarray | None:
    if predicted.size != y.size:
        return None
    predicted, y = predicted.reshape(len(y), -1)[known], y.reshape(len(y), -1)[known]
    if len(y) == 0:
        return None
    low, high = np.percentile(y, [1, 99], axis=0)
    y = np.clip(y, low - 3 * (high - low), high + 3 * (high - low))  # one outlier must not be all there is
    variance = max(float(y.var(axis=0).mean()), float(np.finfo(np.float32).tiny))
    with np.errstate(all="ignore"):
        parts = 1.0 - ((predicted - y) ** 2).mean(axis=1) / variance
    parts = np.where(finite[known], parts, WORST)
    return np.clip(np.nan_to_num(parts, nan=WORST, posinf=1.0, neginf=10 * WORST), 10 * WORST, 1.0)
