"""The batches of a trial, cut from arrays, datasets or generators, and what the errors of their sources say."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.analysis.learning_rates import MOST_BATCHES
from gradrecipes.core.arguments import require_whole


def is_arrays(x: Any) -> bool:
    """Return whether the data are arrays or tensors, and not a dataset or a generator that makes batches itself."""
    parts = keras.tree.flatten(x)
    return bool(parts) and all(hasattr(part, "shape") and hasattr(part, "dtype") for part in parts)


def first_samples(part: Any, samples: int) -> Any:
    """Return the first samples of every array of a structure; None stays None."""
    return keras.tree.map_structure(lambda array: None if array is None else array[:samples], part)


def draw_batches(data: tuple[Any, ...], *, batch_size: int, batches: int, seed: int) -> tuple[Any, ...]:
    """Return so many batches of samples, one after the other; every sample once before any comes again.

    Args:
        data: Arrays or nested structures of them, samples first; None stays None.
        batch_size: Samples in a batch; of fewer samples than that, all.
        batches: How many batches.
        seed: Fixes the order.

    Raises:
        ValueError: No samples, different numbers of them, or a number out of range.
    """
    parts = [part for part in keras.tree.flatten(data) if part is not None]
    strangers = [part for part in parts if not len(getattr(part, "shape", ()))]
    strangers += [part for part in data if part is not None and not keras.tree.flatten(part)]
    if strangers or data[0] is None:
        raise ValueError(
            "The data must be arrays, samples first. Received: "
            f"{f'{strangers[0]!r:.80}' if strangers else 'none'}. Turn lists into arrays with numpy.asarray."
        )
    counts = {len(part) for part in parts}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"All data must have one number of samples, at least 1. Received: {sorted(counts)}.")
    samples = counts.pop()
    require_whole("seed", seed, least=0, remedy="Another seed draws other samples.")
    require_whole("batches", batches, least=1, remedy="20 suit most measurements.")
    if batches > MOST_BATCHES:
        raise ValueError(
            f"`batches` may be at most {MOST_BATCHES:,}. Received: batches={batches!r}. 20 suit most nets."
        )
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= samples:
        raise ValueError(
            f"`batch_size` must be a whole number from 1 to the number of samples, {samples}. "
            f"Received: batch_size={batch_size!r}."
        )
    random = np.random.default_rng(seed)
    # Of every round, what does not fill a batch is left out: no batch holds a sample twice.
    rounds = -(-batches // (samples // batch_size))
    whole = samples // batch_size * batch_size
    order = np.concatenate([random.permutation(samples)[:whole] for _ in range(rounds)])[: batches * batch_size]
    return keras.tree.map_structure(lambda part: None if part is None else np.asarray(part)[order], data)


LONGEST = 600  # characters that are kept
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WRAPPING = re.compile(
    r"^\s*$|^Graph execution error:|^Detected at node|^\s+File \"|^ {4,}|^\s*\[\[\{\{node|^Traceback \(most recent"
    r"|^Stack trace for op definition|^\t|^\d+ root error\(s\)|^\s*\(\d+\) "
)
_ARGUMENTS = re.compile(r"\n\s*Arguments received by .*", re.DOTALL)
_NAMED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Iteration)\b")
_IN_USER_CODE = "in user code:\n"
_FRAME = re.compile(r"^ +File \".*\", line \d+, in .*\n(?: {8,}.*\n)?", re.MULTILINE)
_PLACE = re.compile(r"\{\{(?:function_)?node [^}]*\}\}\s*|\s*\[Op:[^\]]*\](?:\s*name:\s*\S*)?")


def essence(error: BaseException) -> str:
    """Return what an error says in one line, the frames and graph nodes around it left out.

    Example:
        >>> essence(ValueError("Graph execution error:\\n\\nReceived a label value of 7\\n\\t [[{{node loss}}]]"))
        'Received a label value of 7'
    """
    text = _ARGUMENTS.sub("", _COLOUR.sub("", str(error)))
    if text.startswith(_IN_USER_CODE):  # of AutoGraph: frames, each with its line of code, then the error, indented
        text = textwrap.dedent(_FRAME.sub("", text.removeprefix(_IN_USER_CODE)))
    kept = [line for line in text.splitlines() if not _WRAPPING.match(line)]
    if "Traceback (most recent call last)" in text:  # Python within TensorFlow: the last line names the error itself
        kept = [line for line in kept if _NAMED.match(line)][-1:] or kept
    said = " ".join(_PLACE.sub(" ", " ".join(kept)).split()) or " ".join(text.split())
    return said[:LONGEST]


def named(error: BaseException) -> str:
    """Return the class of an error and what it says: "RuntimeError: the disk is gone"."""
    said = essence(error)
    if _NAMED.match(said):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


NUMBERS = "biuf"  # kinds of numpy dtypes that a train step can take
BATCHES_READ = 32  # of a dataset or a generator, whose end is not known: a trial's, and some that it leaves out
SUSPECTS_SHOWN = 4  # suspicious samples that a trial is made to meet, early and in one batch


@dataclass(frozen=True)
class TrialData:
    """What a trial runs on, and what the data probe reads.

    Args:
        x: Arrays, nested as the model takes them.
        y: Targets, or None.
        sample_weight: Weights of the samples, or None.
        samples: How many samples were seen.
        complete: Whether these are all the data.
        batch_size: Samples in a batch.
        batches: The batches of a dataset or a generator as they came; None for arrays, which are cut by `cut`.
        by_class: Whether samples weigh what their classes do.
    """

    x: Any
    y: Any
    sample_weight: Any
    samples: int
    complete: bool
    batch_size: int
    batches: tuple[Any, ...] | None = None
    by_class: bool = False

    def cut(self, limit: int, *, seed: int = 0, suspects: Sequence[int] = (), whole: Sequence[int] = ()) -> list[Any]:
        """Return up to `limit` batches as `train_step` takes them, drawn by a seed; suspects come in the third.

        Args:
            limit: How many batches at the most.
            seed: Fixes which samples.
            suspects: Samples that are looked for trouble in, so that the trial meets them.
            whole: A batch of them.
        """
        if self.batches is not None:
            return list(self.batches[:limit])
        size = min(self.batch_size, self.samples)
        order = np.random.default_rng(seed).permutation(self.samples)
        order = order[: min(limit, self.samples // size) * size]
        batches = [batch for batch in order.reshape(-1, size)]
        odd = [sample for sample in suspects[:SUSPECTS_SHOWN] if not np.isin(sample, order)]
        for found in (odd[:size], whole):
            batches[min(2, len(batches) - 1)][: len(found)] = found
        return [self.take(index) for index in batches]

    @property
    def places(self) -> int:
        """Steps of a series, tokens of a text or pixels of an image in a sample, of the largest input; 1 for rows."""
        first = self.x if self.batches is None else keras.utils.unpack_x_y_sample_weight(self.batches[0])[0]
        sizes = [
            one.shape[1:] if len(one.shape) == 2 and "int" in one.dtype.name else one.shape[1:-1]
            for one in keras.tree.flatten(first)
        ]
        return max(math.prod(size or 1 for size in shape) for shape in sizes)

    def held_back(self, limit: int, *, batches: int, seed: int = 0) -> list[Any]:
        """Return up to `limit` batches of samples that `cut(batches, seed=seed)` does not hold; none of all data.

        Args:
            limit: How many at the most.
            batches: How many were cut.
            seed: That they were cut with.
        """
        if self.batches is not None:
            return list(self.batches[batches:][:limit])
        size = min(self.batch_size, self.samples)
        order = np.random.default_rng(seed).permutation(self.samples)[batches * size :]
        return [self.take(order[at : at + size]) for at in range(0, min(len(order), limit * size), size)]

    def take(self, index: np.ndarray) -> Any:
        """Return some samples of arrays as `train_step` takes them."""

        def take(part: Any) -> Any:
            return keras.tree.map_structure(lambda array: tf.convert_to_tensor(array[index]), part)

        parts = (None if part is None else take(part) for part in (self.x, self.y, self.sample_weight))
        return keras.utils.pack_x_y_sample_weight(*parts)


def trial_data(
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    batch_size: int = 32,
) -> TrialData:
    """Read the data of a training as arrays.

    Args:
        x: What `model.fit` takes: arrays (nested), a `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator.
        y: Targets; None where `x` brings them.
        sample_weight: Weights of the samples, or None.
        class_weight: What the samples of each class weigh besides, or None.
        batch_size: Samples in a batch of arrays.

    Raises:
        TypeError: Data that hold no numbers, such as objects or strings.
        ValueError: No samples, different numbers of them, a batch size below 1, or a source that raised.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(
            f"`batch_size` must be a whole number of samples, at least 1. Received: batch_size={batch_size!r}."
        )
    if x is None:
        raise ValueError("There are no data to look at. Received: x=None. Pass x and y as you pass them to model.fit.")
    if not _brings_batches(x):
        return _of_arrays(x, y, sample_weight, class_weight, int(batch_size))
    if y is not None:
        raise ValueError(
            f"A {type(x).__name__} brings its targets itself, batch by batch. Received: y as well. Leave y out."
        )
    return _of_batches(x, class_weight)


def weighted(batch: tuple[Any, ...], class_weight: Mapping[int, float]) -> tuple[Any, ...]:
    """Return `(x, y)` or `(x, y, sample_weight)` whose samples weigh as much as their classes besides, as in `fit`.

    Raises:
        ValueError: There are several targets, or none: no class is that of a sample.
    """
    y = batch[1] if len(batch) > 1 else None
    if y is None or keras.tree.is_nested(y) or np.ndim(y) > 2:
        what = "no targets" if y is None else f"targets in a {type(y).__name__}"
        what += "" if y is None or keras.tree.is_nested(y) else f" of shape {tuple(y.shape)}"
        raise ValueError(f"`class_weight` needs one class a sample. Received: {what}. Pass sample_weight instead.")
    weights = np.array([class_weight.get(int(label), 1.0) for label in labels_of(y)], np.float32)
    given = batch[2] if len(batch) > 2 else None
    return batch[0], y, weights if given is None else weights * np.asarray(given)


def labels_of(y: Any) -> np.ndarray:
    """Return the class of each sample, of one-hot targets too."""
    y = np.asarray(y)
    return (y.argmax(-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(len(y))).astype(int)


def _brings_batches(x: Any) -> bool:
    if isinstance(x, tf.data.Dataset | keras.utils.PyDataset):
        return True
    return not is_arrays(x) and hasattr(x, "__next__")


def _of_arrays(
    x: Any, y: Any, sample_weight: Any, class_weight: Mapping[int, float] | None, batch_size: int
) -> TrialData:
    x, y = _arrays("x", x), None if y is None else _arrays("y", y)
    sample_weight = None if sample_weight is None else _arrays("sample_weight", sample_weight)
    named = {"x": x, "y": y, "sample_weight": sample_weight}
    counts = {
        name: sorted({len(array) for array in keras.tree.flatten(part)})
        for name, part in named.items()
        if part is not None
    }
    lengths = {count for of_part in counts.values() for count in of_part}
    if lengths == {0} or not lengths:
        raise ValueError("The data are empty: x holds no sample. Pass the arrays that you train on.")
    if len(lengths) > 1:
        listed = ", ".join(f"{name}: {', '.join(map(str, of_part))}" for name, of_part in counts.items())
        raise ValueError(f"All data must have one number of samples. Received: {listed}. Each x needs its own y.")
    samples = lengths.pop()
    if class_weight:
        *_, sample_weight = weighted((x, y, sample_weight), class_weight)
    size, by_class = min(batch_size, samples), bool(class_weight)
    return TrialData(x, y, sample_weight, samples, complete=True, batch_size=size, by_class=by_class)


def _arrays(name: str, structure: Any) -> Any:
    if isinstance(structure, list | tuple) and structure and all(isinstance(part, int | float) for part in structure):
        return _array(name, structure)
    first = next(iter(keras.tree.flatten(structure)), None)
    if isinstance(structure, list | tuple) and isinstance(first, int | float):
        raise TypeError(
            f"`{name}` must be arrays of numbers. Received: a {type(structure).__name__} of {len(structure)} "
            f"{type(structure[0]).__name__}s of numbers, which model.fit does not take either. "
            f"Turn it into an array: numpy.asarray({name})."
        )
    return keras.tree.map_structure(lambda part: _array(name, part), structure)


def _array(name: str, part: Any) -> np.ndarray:
    if hasattr(part, "to_numpy"):  # a table or a column of pandas
        part = part.to_numpy()
    try:
        array = np.asarray(part)
    except (ValueError, TypeError) as error:
        raise TypeError(f"`{name}` must be arrays of numbers. Received: {type(part).__name__}, {error}.") from error
    if array.dtype.kind not in NUMBERS and array.dtype.name != "bfloat16":
        shown = np.ravel(array)[:1].tolist()
        raise TypeError(
            f"`{name}` must be arrays of numbers. Received: dtype {array.dtype}, the first value {shown!r:.60}. "
            "Turn objects and strings into numbers first: x.astype('float32'), or keras.layers.StringLookup."
        )
    if array.ndim == 0:
        raise ValueError(f"`{name}` must have one row for each sample. Received: the single number {array}.")
    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array


def _of_batches(source: Iterable[Any], class_weight: Mapping[int, float] | None) -> TrialData:
    batches, complete = _read_batches(source)
    if not batches:
        raise ValueError(f"The data are empty: the {type(source).__name__} gave no batch.")
    packed = tuple(_tensors(batch) for batch in batches)
    for number, batch in enumerate(packed):
        _require_batch(batch, number, source)
    if class_weight:
        packed = tuple(_tensors(weighted(batch, class_weight)) for batch in packed)
    parts = [keras.utils.unpack_x_y_sample_weight(batch) for batch in packed]
    whole = [_joined([part[place] for part in parts]) for place in range(3)]
    first = keras.tree.flatten(parts[0][0])[0]
    size = int(first.shape[0]) if len(first.shape) else 1
    samples = sum(int(keras.tree.flatten(part[0])[0].shape[0]) for part in parts)
    how: dict[str, Any] = {"complete": complete, "batch_size": size, "batches": packed, "by_class": bool(class_weight)}
    return TrialData(*whole, samples=samples, **how)


def _read_batches(source: Iterable[Any]) -> tuple[list[Any], bool]:
    """Return the first batches of a source, and whether they are all.

    Raises:
        ValueError: The source raised; what it raised is the cause of it.
    """
    batches: list[Any] = []
    try:
        if isinstance(source, keras.utils.PyDataset):
            count = source.num_batches
            count = len(source) if count is None else count
            for index in range(min(count, BATCHES_READ)):
                batches.append(source[index])
            return batches, count <= BATCHES_READ
        for batch in itertools.islice(iter(source), BATCHES_READ + 1):
            batches.append(batch)
    except Exception as error:
        raise ValueError(
            f"The data could not be read. Received: {len(batches)} batches of the {type(source).__name__}, then "
            f"{named(error)}. model.fit would end there too; fix the source, or leave the sample out."
        ) from (None if isinstance(error, tf.errors.OpError) else error)
    return batches[:BATCHES_READ], len(batches) <= BATCHES_READ


def _require_batch(batch: Any, number: int, source: Any) -> None:
    """Refuse what is no batch: not x, (x, y) or (x, y, sample_weight), samples first."""
    fits = not isinstance(batch, tuple) or len(batch) <= 3
    x = keras.tree.flatten(batch[0] if isinstance(batch, tuple) and batch else batch) if fits else []
    if x and all(part is not None for part in x):
        if all(len(part.shape) for part in x):
            return
        what = "numbers without a samples axis. Is a .batch(32) missing"
    else:
        what = f"a tuple of {len(batch)} parts" if isinstance(batch, tuple) else f"a {type(batch).__name__}"
        what = "None" if batch is None else what
    raise ValueError(
        f"A batch must be (x, y) or (x, y, sample_weight), arrays with the samples first. Received: {what}, "
        f"as batch {number} of the {type(source).__name__}."
    )


def _tensors(batch: Any) -> Any:
    def tensor(part: Any) -> Any:
        if isinstance(part, tf.RaggedTensor | tf.SparseTensor) or tf.is_tensor(part):
            return part
        return tf.convert_to_tensor(_array("x", part))

    batch = tuple(batch) if isinstance(batch, list) else batch
    return keras.tree.map_structure(lambda part: None if part is None else tensor(part), batch)


def _joined(parts: list[Any]) -> Any:
    """Return the batches one after the other; None where they are missing or cannot be joined."""
    if any(part is None for part in parts):
        return None
    structures = [keras.tree.flatten(part) for part in parts]
    joined = []
    for arrays in zip(*structures, strict=True):
        if not all(
            tf.is_tensor(array) and not isinstance(array, tf.RaggedTensor | tf.SparseTensor) for array in arrays
        ):
            return None
        arrays = [np.asarray(array) for array in arrays]
        if len({array.shape[1:] for array in arrays}) > 1:
            return None
        joined.append(np.concatenate(arrays))
    return keras.tree.pack_sequence_as(parts[0], joined)
