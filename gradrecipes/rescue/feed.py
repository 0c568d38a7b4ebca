"""The data of a rescue: read once, divided once, and given to every arm in the same order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.trace import Trace
from gradrecipes.training.trial_data import labels_of, trial_data

HELD_BACK = 0.2  # share of the samples that is kept for validation where the user gives none
MAX_BYTES = 2**29  # of a dataset that are read into memory; the rest is not used
FEW_SAMPLES = 500  # on which a constant prediction is fitted, and compared with what was learned
RARE = 2.0  # an equal share of the samples over that of the rarest class
MAX_VALIDATION = 4000  # samples that a score is measured on; the standard error of an accuracy is then below 0.008


@dataclass(frozen=True, eq=False)
class Feed:
    """Hold the rows to train on and those held back.

    Args:
        x: Training inputs, nested as the model takes them.
        y: Targets, or None.
        sample_weight: Weights, or None.
        x_val: Validation inputs.
        y_val: Their targets, or None.
        samples: Training samples.
        complete: Whether all of the user's data were read.
        in_order: Whether `fit` takes the samples in the order in which they are, as those of a dataset.
        weight_val: Weights of the validation samples, or None.
        corrected: What is given instead where a setup has other `samples` and `gaps`, by these two.
    """

    x: Any
    y: Any
    sample_weight: Any
    x_val: Any
    y_val: Any
    samples: int
    complete: bool
    in_order: bool = False
    weight_val: Any = None
    corrected: Mapping[tuple[str, str], Feed] = field(default_factory=dict)

    def under(self, samples: str, gaps: str) -> Feed:
        """Return the data without what a setup leaves out or fills; these where there is nothing of the kind."""
        return self.corrected.get((samples, gaps), self)

    def batches(
        self, *, batch_size: int, seed: int, skip: int, count: int, shuffled: bool = True
    ) -> Iterator[tuple[Any, ...]]:
        """Yield `count` batches after the first `skip`, epoch after epoch, each in an order fixed by the seed.

        Args:
            batch_size: Samples in a batch.
            seed: Of the order.
            skip: Batches before the first.
            count: Batches.
            shuffled: False for the samples of a dataset in its own order.
        """
        per_epoch = self.steps_per_epoch(batch_size)
        for step in range(skip, skip + count):
            epoch, place = divmod(step, per_epoch)
            order = _order(seed, epoch, self.samples) if shuffled or not self.in_order else np.arange(self.samples)
            yield self.take(order[place * batch_size : (place + 1) * batch_size])

    def as_user_gave(self, batch_size: int) -> tuple[Any, Any, Any]:
        """Return inputs, targets and weights of all samples: as arrays, or as a dataset in its own order."""
        if not self.in_order:
            return self.x, self.y, self.sample_weight
        parts = self.take(np.arange(self.samples))
        return tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(parts)).batch(batch_size), None, None

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the steps of an epoch, the last of which may be smaller."""
        return -(-self.samples // batch_size)

    def few_rows(self) -> tuple[Any, Any]:
        """Return inputs and targets of a few training samples, always the same, from all parts of the data."""
        rows = np.linspace(0, self.samples - 1, min(FEW_SAMPLES, self.samples)).round().astype(int)
        return _rows(self.x, rows), _rows(self.y, rows)

    def take(self, index: np.ndarray) -> tuple[Any, ...]:
        """Return some samples as `train_step` takes them."""
        parts = (self.x, self.y, self.sample_weight)
        parts = tuple(keras.tree.map_structure(lambda a: a[index], one) for one in parts if one is not None)
        return parts if len(parts) > 1 else (parts[0],)


def looked_up_inputs(trace: Trace) -> tuple[bool, ...]:
    """Return for each flattened input whether its numbers are only looked up in a table."""
    data = trace.probes.data
    return tuple(bool(one.feeds_embedding) for one in data.inputs) if data is not None else ()


def is_flat(y: Any) -> bool:
    """Return whether targets are one number a sample, in no column."""
    return not keras.tree.is_nested(y) and np.ndim(y) == 1


def with_columns(y: Any) -> np.ndarray:
    """Return flat targets as one column."""
    return np.asarray(y)[:, None]


def is_marked(y: np.ndarray) -> np.ndarray:
    """Return which of the targets have the higher one of two values: of -1 and 1, 0 and 1, 0 and 255, or 1 and 2."""
    return y > (0.0 if y.min() < 0 else 0.5 * max(1.0, float(y.max())))


def balanced_weights(y: Any) -> dict[str, float]:
    """Return the weights with which each class counts as much as the others; empty where none is rare."""
    y = np.asarray(y)
    if not np.isfinite(y.astype(np.float64)).all():
        return {}
    if y.ndim > 2 or (y.ndim == 2 and (y.sum(axis=1) != 1).any() and y.shape[1] > 1):  # several labels a sample
        return {}
    labels, counts = np.unique(labels_of(y), return_counts=True)
    weights = counts.sum() / (len(counts) * counts)
    named = {str(label): round(float(weight), 4) for label, weight in zip(labels, weights, strict=True)}
    return named if weights.max() >= RARE else {}


def is_padded(x: Any) -> bool:
    """Return whether most rows of the only input are sequences of whole numbers that end in zeros, and only there."""
    if keras.tree.is_nested(x) or np.ndim(x) != 2:
        return False
    x = np.asarray(x)
    ends = np.where(x != 0, np.arange(1, x.shape[1] + 1), 0).max(axis=1)  # behind the last one that is not 0
    within = (x == 0).sum(axis=1) == x.shape[1] - ends
    return bool((within & (ends < x.shape[1])).mean() > 0.5)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, samples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(samples)


def read_feed(
    x: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    batch_size: int,
    validation_data: Any = None,
    seed: int = 0,
    trained: Callable[[Any, Any], np.ndarray] | None = None,
) -> tuple[Feed, int]:
    """Return the feed of what `model.fit` takes, and the batch size, which a dataset brings itself.

    Args:
        x: Arrays (nested), a `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator.
        y: Targets; None where `x` brings them.
        sample_weight: Weights of the samples, or None.
        batch_size: Samples in a batch of arrays.
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a dataset; without it a fifth is held back, drawn by
            the seed.
        seed: Of that draw.
        trained: Returns which samples, of inputs and targets, are not held back; None for any.

    Raises:
        TypeError: Data that hold no numbers, or batches that cannot be joined.
        ValueError: Data that are empty or do not belong together.
    """
    x, y, weights, size, complete, in_order = _arrays(x, y, sample_weight, batch_size)
    samples = len(keras.tree.flatten(x)[0])
    if validation_data is not None:
        given = tuple(validation_data) if isinstance(validation_data, tuple | list) else (validation_data,)
        x_val, y_val, weight_val = _arrays(*given, *[None] * (3 - len(given)), size)[:3]
        kept = np.arange(samples)
    else:
        order = np.random.default_rng(seed).permutation(samples)
        if trained is not None:
            last = np.isin(order, trained(x, y))
            order = np.concatenate([order[~last], order[last]])
        held = min(max(1, round(HELD_BACK * samples)), samples - 1) if samples > 1 else 0
        if held == 0:
            raise ValueError("A rescue needs at least two samples, one to train on and one held back. Received: 1.")
        x_val, y_val, weight_val = (_rows(part, np.sort(order[:held])) for part in (x, y, weights))
        kept = np.sort(order[held:])
        x, y, weights = (_rows(part, kept) for part in (x, y, weights))
    few = np.random.default_rng(seed).permutation(len(keras.tree.flatten(x_val)[0]))[:MAX_VALIDATION]
    x_val, y_val, weight_val = (_rows(part, np.sort(few)) for part in (x_val, y_val, weight_val))
    return Feed(x, y, weights, x_val, y_val, len(kept), complete, in_order, weight_val), size


def _rows(part: Any, index: np.ndarray | slice) -> Any:
    return None if part is None else keras.tree.map_structure(lambda array: np.asarray(array)[index], part)


def _arrays(x: Any, y: Any, sample_weight: Any, batch_size: int) -> tuple[Any, Any, Any, int, bool, bool]:
    if isinstance(x, tf.data.Dataset):
        _require_batches(x)
    read = trial_data(x, y, sample_weight=sample_weight, batch_size=batch_size)  # refuses what cannot be used
    if read.batches is None:
        return read.x, read.y, read.sample_weight, read.batch_size, True, False
    if read.complete or not isinstance(x, tf.data.Dataset | keras.utils.PyDataset):
        batches, complete = list(read.batches), read.complete
    else:
        batches, complete = _all_batches(x)
    parts = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
    joined = []
    for place in range(3):
        held = [part[place] for part in parts]
        try:
            joined.append(None if held[0] is None else keras.tree.map_structure(_concatenated, *held))
        except ValueError as error:
            raise TypeError(
                f"The batches of the {type(x).__name__} have samples of different shapes, so a part cannot be held "
                "back. Pad them to one shape."
            ) from error
    return (*joined, read.batch_size, complete, True)


def _require_batches(dataset: tf.data.Dataset) -> None:
    specs = [getattr(one, "shape", None) for one in keras.tree.flatten(dataset.element_spec)]
    shapes = [tuple(shape) for shape in specs if shape is not None and shape.rank is not None]
    if () in shapes or len({shape[0] for shape in shapes} - {None}) > 1:
        raise ValueError(
            "All parts of a batch must have one number of samples. Received: a dataset with elements of shapes "
            f"{', '.join(map(str, shapes))}. If these are single samples, call dataset.batch(32)."
        )


def _concatenated(*arrays: Any) -> np.ndarray:
    return np.concatenate([np.asarray(array) for array in arrays])


def _all_batches(source: Any) -> tuple[list[Any], bool]:
    if isinstance(source, keras.utils.PyDataset):
        count = len(source) if source.num_batches is None else source.num_batches
        stream = (source[index] for index in range(count))
    else:
        stream = iter(source)
    found, held = [], 0
    for batch in stream:
        found.append(tuple(batch) if isinstance(batch, list) else batch)
        held += sum(int(np.asarray(part).nbytes) for part in keras.tree.flatten(batch) if part is not None)
        if held > MAX_BYTES:
            return found, next(iter(itertools.islice(stream, 1)), None) is None
    return found, True
