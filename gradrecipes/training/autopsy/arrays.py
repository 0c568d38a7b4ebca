"""What an autopsy reads from one array: what is not finite, in which samples, how large the rest, who stands out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.trace.autopsy import in_words

ENTRIES_KEPT = 8  # positions that are named
OUTLIER_FACTOR = 1e3  # times the largest of all others; no scaling of valid data leaves one sample so far out


@dataclass(frozen=True)
class Numbers:
    """The few numbers that stand for one array.

    Args:
        found: `"nan"`, `"inf"` or `"-inf"`, of the first entry that is not finite, or None.
        samples: Indices along the first axis of what is not finite, if that axis counts the samples.
        entries: The first few positions that are not finite; among the values alone if it is sparse or ragged.
        size: Entries.
        bad: Entries that are not finite.
        squares: Sum of the squares of the finite entries, float64.
        largest: Largest magnitude of the finite entries; 0 without any.
        dtype: Its name.
    """

    found: str | None
    samples: tuple[int, ...]
    entries: tuple[tuple[int, ...], ...]
    size: int
    bad: int
    squares: float
    largest: float
    dtype: str

    @property
    def words(self) -> str:
        """What was found, for a sentence: "NaN", "infinity"."""
        return in_words(self.found or "")


@dataclass(frozen=True)
class Outlier:
    """One entry that is far beyond all others: where, its value, and how many times larger it is."""

    entry: tuple[int, ...]
    value: float
    factor: float


def numbers_of(tensor: Any, batch_size: int) -> Numbers | None:
    """Read an array; None for what is no floating-point array."""
    array = dense(tensor)
    if array is None or not is_float(array.dtype):
        return None
    dtype = array.dtype.name
    wide = array.astype(np.float64)
    finite = np.isfinite(wide)
    bad = np.argwhere(~finite) if not finite.all() else np.zeros((0, wide.ndim), int)
    found, samples = None, ()
    if len(bad):
        found = str(wide[tuple(bad[0])])
        rows = _rows(tensor)
        if rows is not None:
            samples = tuple(int(row) for row in np.unique(rows[bad[:, 0]]))
        elif wide.ndim and wide.shape[0] == batch_size:
            samples = tuple(int(index) for index in np.unique(bad[:, 0]))
    kept = wide if found is None else wide[finite]
    return Numbers(
        found=found,
        samples=samples,
        entries=tuple(tuple(int(index) for index in entry) for entry in bad[:ENTRIES_KEPT]),
        size=wide.size,
        bad=len(bad),
        squares=float(np.sum(np.square(kept))),
        largest=float(np.max(np.abs(kept), initial=0.0)),
        dtype=dtype,
    )


def dense(tensor: Any) -> np.ndarray | None:
    """Return the numbers of a tensor, those it holds if it is sparse or ragged; None for what has no numbers."""
    if tensor is None:
        return None
    if isinstance(tensor, tf.IndexedSlices):
        tensor = tf.convert_to_tensor(tensor)  # repeated indices are added up
    if isinstance(tensor, (tf.SparseTensor, tf.RaggedTensor)):
        tensor = tensor.flat_values if isinstance(tensor, tf.RaggedTensor) else tensor.values
    try:
        array = tensor.numpy() if hasattr(tensor, "numpy") else np.asarray(tensor)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return array if isinstance(array, (np.ndarray, np.generic)) else np.asarray(array)


def _rows(tensor: Any) -> np.ndarray | None:
    """Return which sample each value of a sparse or ragged tensor belongs to; None for a plain one."""
    if isinstance(tensor, tf.SparseTensor):
        return tensor.indices.numpy()[:, 0]
    if isinstance(tensor, tf.RaggedTensor):
        rows = np.arange(int(tensor.nrows()))
        for splits in tensor.nested_row_splits:
            rows = np.repeat(rows, np.diff(splits.numpy()))
        return rows
    return None


def is_float(dtype: Any) -> bool:
    """Return whether a dtype holds real fractions; bfloat16 does, though numpy calls it a raw one."""
    return np.issubdtype(dtype, np.floating) or dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def leaves(name: str, structure: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, array) of a nested structure: `x`, `x[0]`, `x['pixels']`, in the order of `keras.tree.flatten`."""
    if isinstance(structure, dict):
        for key in sorted(structure) if type(structure) is dict else structure:
            yield from leaves(f"{name}[{key!r}]", structure[key])
    elif isinstance(structure, (list, tuple)):
        for place, part in enumerate(structure):
            yield from leaves(f"{name}[{place}]", part)
    elif structure is not None:
        yield name, structure


def taken(structure: Any, samples: np.ndarray, batch_size: int) -> Any:
    """Return some samples of a nested structure; what has no axis of samples stays whole."""

    def take(tensor):
        if not tf.is_tensor(tensor) or tensor.shape.rank == 0 or tensor.shape[0] != batch_size:
            return tensor
        if isinstance(tensor, tf.SparseTensor):
            return _sparse_rows(tensor, samples)
        part = tf.gather(tensor, samples)
        for name, value in vars(tensor).items():
            if name.startswith("_keras"):  # logits and masks, for Keras' losses look for them
                setattr(part, name, take(value))
        return part

    return keras.tree.map_structure(take, structure)


def _sparse_rows(tensor: tf.SparseTensor, samples: np.ndarray) -> tf.SparseTensor:
    indices = tensor.indices.numpy()
    places = np.full(tensor.shape[0], -1)
    places[samples] = np.arange(len(samples))
    kept = places[indices[:, 0]] >= 0
    rows = np.concatenate([places[indices[kept, :1]], indices[kept, 1:]], axis=1)
    shape = [len(samples), *tensor.shape[1:]]
    return tf.sparse.reorder(tf.SparseTensor(rows, tf.boolean_mask(tensor.values, kept), shape))


def sample_outlier(array: np.ndarray) -> Outlier | None:
    """Return the entry that stands furthest out of its feature, if it is `OUTLIER_FACTOR` times beyond the others.

    An entry is compared with the largest of the same feature in all other samples, and where those are small,
    with what is usual over the features, so that a feature that is mostly 0 is no outlier when it is not.

    Args:
        array: float `[samples, ...]`.
    """
    if array.ndim == 0 or len(array) < 3 or not is_float(array.dtype):
        return None
    flat = np.abs(array.astype(np.float64)).reshape(len(array), -1)
    flat[~np.isfinite(flat)] = 0.0
    if not flat.size:
        return None
    others = np.sort(flat, axis=0)[-2]
    usual = np.maximum(others, np.median(others[others > 0])) if (others > 0).any() else others
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(usual > 0, flat / usual, 0.0)
    sample, feature = np.unravel_index(int(np.argmax(factors)), factors.shape)
    if factors[sample, feature] < OUTLIER_FACTOR:
        return None
    entry = (int(sample), *(int(i) for i in np.unravel_index(feature, array.shape[1:])))
    return Outlier(entry, float(array[entry]), float(factors[sample, feature]))


def weight_outliers(arrays: list[np.ndarray]) -> dict[int, Outlier]:
    """Return the entries of weights that are `OUTLIER_FACTOR` times larger than all other weights, by place."""
    magnitudes = [np.abs(array.astype(np.float64)).ravel() for array in arrays]
    for values in magnitudes:
        values[~np.isfinite(values)] = 0.0
    top = [np.sort(values)[-2:][::-1] for values in magnitudes]
    found = {}
    for place, values in enumerate(magnitudes):
        rest = [pair[0] for other, pair in enumerate(top) if other != place and pair.size]
        rest += [top[place][1]] if top[place].size > 1 else []
        usual = max(rest, default=0.0)
        if values.size and usual > 0 and top[place][0] >= OUTLIER_FACTOR * usual:
            entry = np.unravel_index(int(np.argmax(values)), arrays[place].shape)
            entry = tuple(int(index) for index in entry)
            found[place] = Outlier(entry, float(arrays[place][entry]), float(top[place][0] / usual))
    return found
