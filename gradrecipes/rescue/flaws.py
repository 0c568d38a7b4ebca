"""Find what in the data no training can use, entries that are not finite or only mark a gap, and take it out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import compile_arguments
from gradrecipes.compat.model_reuse import copied_model
from gradrecipes.core.analysis.gap_marks import gap_marks
from gradrecipes.core.trace.description import OutputDescription
from gradrecipes.rescue.edits import OWN
from gradrecipes.rescue.feed import HELD_BACK, Feed
from gradrecipes.rescue.own_loss import has_plain_loss

_LOG = logging.getLogger(__name__)

# Findings that targets outside of the loss's domain may lead to.
OF_A_DOMAIN = {"unsafe_loss", "loss_output_mismatch", "failing_step", "nonfinite_loss", "nonfinite_data"}
LEFT_OUT, MEDIAN = "left out", "median"
MOST_ENTRIES = 2_000_000  # of an array that is searched for marks; larger ones are no tables
FEWEST_KEPT = 0.5  # share of the samples that must be left
MOST_CALLS = 500  # of a loss, to find the samples on which it is not finite
SHOWN = 6  # numbers or columns in a line


@dataclass(frozen=True, eq=False)
class Flaw:
    """Say which entries of one array are of no use.

    Args:
        name: Of the array in the user's script: `"x"`, `"x[1]"`, `"y"`.
        marks: Numbers that stand for a gap, by the column.
        bound: The greatest number for which the loss is not finite, as for all below; None for no such number.
        nonfinite: Whether entries are not finite.
        medians: Of what is of use in the training data, float `[columns]`; None for an array without flaws.
    """

    name: str
    marks: dict[int, tuple[float, ...]]
    bound: float | None = None
    nonfinite: bool = False
    medians: np.ndarray | None = None

    def entries(self, array: np.ndarray) -> np.ndarray:
        """Return which entries of an array are of no use, bool, of its shape."""
        values = np.asarray(array)
        found = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        columns, marked = _columns(values), _columns(found)
        for column, marks in self.marks.items():
            marked[:, column] |= np.isin(columns[:, column], np.array(marks, values.dtype))
        found = marked.reshape(values.shape)
        return found if self.bound is None else found | (values <= self.bound)

    def samples(self, array: np.ndarray) -> np.ndarray:
        """Return which samples have such an entry."""
        return self.entries(array).reshape(len(array), -1).any(axis=1)

    def __bool__(self) -> bool:
        return self.nonfinite or bool(self.marks) or self.bound is not None

    @property
    def numbers(self) -> list[float]:
        """The marks of all columns, in order."""
        return sorted({mark for marks in self.marks.values() for mark in marks})

    @property
    def words(self) -> str:
        """The flaws, for people."""
        parts = ["not finite"] * self.nonfinite + [f"{number:g}" for number in self.numbers[:SHOWN]]
        parts += [] if self.bound is None else [f"{self.bound:g} or below"]
        return " or ".join(parts)

    @property
    def check(self) -> str:
        """What is True for entries that are of use, as an expression."""
        parts = [f"np.isfinite({self.name})"] * self.nonfinite
        listed = ", ".join(f"{number:g}" for number in self.numbers)
        parts += [f"~np.isin({self.name}, [{listed}])"] * bool(self.numbers)
        parts += [] if self.bound is None else [f"({self.name} > {self.bound:g})"]
        return " & ".join(parts)

    @property
    def lines(self) -> list[str]:
        """What fills the flawed entries of an input, as lines of a script."""
        rows = f"np.where({self.check}, {self.name}, np.nan).reshape(-1, {len(self.medians)})"
        first = f"medians = np.nan_to_num(np.nanmedian({rows}, axis=0))  # of the training samples"
        return [first, f"{self.name} = np.where({self.check}, {self.name}, medians)"]


@dataclass(frozen=True, eq=False)
class Flaws:
    """Hold the flaws of all arrays.

    Args:
        x: Of each flattened input.
        y: Of the only target; one without flaws where there are several.
    """

    x: tuple[Flaw, ...]
    y: Flaw

    @property
    def samples(self) -> str:
        """What is wrong with samples that may be left out, in words; empty for nothing."""
        parts = [f"{one.name} {one.words}" for one in (*self.x, self.y) if one]
        return " or ".join(parts)

    @property
    def gaps(self) -> str:
        """What is wrong with inputs, in words; empty for nothing."""
        return " or ".join(dict.fromkeys(one.words for one in self.x if one))

    def filled(self, x: Any) -> Any:
        """Return inputs whose flawed entries are the median of the others in their column."""
        return keras.tree.pack_sequence_as(
            x, [_filled(a, f) for a, f in zip(keras.tree.flatten(x), self.x, strict=True)]
        )

    def unmarked(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return inputs and targets whose flawed entries are NaN, to be measured."""
        parts = [_blank(array, flaw) for array, flaw in zip(keras.tree.flatten(x), self.x, strict=True)]
        return keras.tree.pack_sequence_as(x, parts), _blank(y, self.y) if self.y else y

    def taken_out(self, feed: Feed) -> Feed:
        """Return a feed that can be given without the flaws, and is judged on targets that have none."""
        if not any((*self.x, self.y)):
            return feed
        if self.y and (known := np.flatnonzero(~self.y.samples(feed.y_val))).size:
            parts = (_rows(part, known) for part in (feed.x_val, feed.y_val, feed.weight_val))
            feed = replace(feed, **dict(zip(("x_val", "y_val", "weight_val"), parts, strict=True)))
        return replace(feed, corrected=dict(self._corrected(feed)))

    def _corrected(self, feed: Feed) -> Iterator[tuple[tuple[str, str], Feed]]:
        """Yield the feeds without the flaws, each with the settings `samples` and `gaps` that ask for it."""
        inputs = keras.tree.flatten(feed.x)
        of_x = np.any([flaw.samples(one) for flaw, one in zip(self.x, inputs, strict=True)], axis=0)
        of_y = self.y.samples(feed.y) if self.y else np.zeros(feed.samples, bool)
        full = replace(feed, x=self.filled(feed.x), x_val=self.filled(feed.x_val)) if any(self.x) else None
        if full is not None:
            yield (OWN, MEDIAN), full
        for gaps, source, flawed in ((OWN, feed, of_x | of_y), (MEDIAN, full, of_y)):
            if source is not None and (of_x | of_y).any() and (~flawed).mean() >= FEWEST_KEPT:
                kept = np.flatnonzero(~flawed)
                x, y, *weights = (*source.take(kept), None)[:3]
                yield (LEFT_OUT, gaps), replace(source, x=x, y=y, sample_weight=weights[0], samples=len(kept))


def flaws_of(
    model: keras.Model,
    feed: Feed,
    outputs: Sequence[OutputDescription],
    looked_up: tuple[bool, ...],
    found: Collection[str],
) -> Flaws:
    """Return the flaws of training data; a loss is asked for its domain where something was found that may come of it.

    Args:
        model: The user's model.
        feed: The data.
        outputs: What is known of its outputs.
        looked_up: For each flattened input whether its numbers are only looked up in a table.
        found: Codes of the findings.
    """
    arrays = [np.asarray(part) for part in keras.tree.flatten(feed.x)]
    names = ["x"] if len(arrays) == 1 else [f"x[{place}]" for place in range(len(arrays))]
    looked = (*looked_up, *[False] * len(arrays))
    x = tuple(_flaw(name, one, measured=not mark) for name, one, mark in zip(names, arrays, looked, strict=False))
    if feed.y is None or keras.tree.is_nested(feed.y) or len(outputs) != 1:
        return Flaws(x, Flaw("y", {}))
    y, shape = np.asarray(feed.y), outputs[0].shape
    flaw = _flaw("y", y, measured="crossentropy" not in str(outputs[0].loss))
    if shape and has_plain_loss(model) and OF_A_DOMAIN & set(found) and y.dtype.kind in "fiu":
        made = copied_model(model)
        made.compile("sgd", (compile_arguments(model) or {}).get("loss"))
        undefined = undefined_samples(made, feed.x, y, shape)
        if undefined is not None and (undefined & ~flaw.samples(y)).any():
            flaw = _with_domain(flaw, y, undefined)
    return Flaws(x, flaw)


def _flaw(name: str, array: np.ndarray, *, measured: bool) -> Flaw:
    if array.dtype.kind not in "fiu":
        return Flaw(name, {})
    nonfinite = array.dtype.kind == "f" and not np.isfinite(array).all()
    columns = _columns(array)
    marks = {}
    for column in range(columns.shape[1]) if measured and columns.size <= MOST_ENTRIES else ():
        if found := gap_marks(columns[:, column]):
            marks[column] = found
    flaw = Flaw(name, marks, nonfinite=nonfinite)
    if not flaw:
        return flaw
    blank = np.where(flaw.entries(array), np.nan, array.astype(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a column with nothing else
        return replace(flaw, medians=np.nan_to_num(np.nanmedian(_columns(blank), axis=0)))


def few_flawed(x: Any, y: Any) -> np.ndarray:
    """Return the samples of arrays with a flaw, where they are so few that all could happen to be held back."""
    arrays = [np.asarray(part) for part in keras.tree.flatten((x, y)) if part is not None]
    flawed = np.zeros(len(arrays[0]), bool)
    for one in arrays:
        if one.dtype.kind == "f" and (flaw := _flaw("", one, measured=True)):
            flawed |= flaw.samples(one)
    found = np.flatnonzero(flawed)
    return found if len(found) < 1.0 / HELD_BACK else found[:0]


def _with_domain(flaw: Flaw, y: np.ndarray, undefined: np.ndarray) -> Flaw:
    """Return a flaw with the targets for which the loss is never finite, as a bound or as a few numbers."""
    values = _columns(y)
    outside, inside = values[undefined], values[~undefined]
    if values.shape[1] > 1 or not len(inside) or not len(outside):
        return flaw
    outside, inside = outside[np.isfinite(outside)], inside[np.isfinite(inside)]
    if outside.max() < inside.min():
        return replace(flaw, bound=float(outside.max()))
    numbers = np.unique(outside)
    if len(numbers) > SHOWN or np.isin(numbers, inside).any():
        return flaw
    return replace(flaw, marks={0: (*flaw.marks.get(0, ()), *map(float, numbers))})


def undefined_samples(model: keras.Model, x: Any, y: Any, shape: tuple[int | None, ...]) -> np.ndarray | None:
    """Return on which samples the loss of a model is finite for no constant answer; None where that is not known.

    Halves are asked for until what is left is finite, or is one sample.

    Args:
        model: A compiled model.
        x: Inputs.
        y: Targets.
        shape: Of its output, without samples.
    """
    if None in shape:
        return None
    values = np.asarray(y)
    middle = float(np.nanmedian(np.where(np.isfinite(values), values, np.nan)))
    answers = {0.5, 1.0 / max(1, shape[-1]), middle}

    def is_finite(rows: np.ndarray) -> bool:
        some = keras.tree.map_structure(lambda a: keras.ops.convert_to_tensor(np.asarray(a)[rows]), (x, y))
        for answer in answers:
            given = keras.ops.full((len(rows), *shape), answer, dtype="float32")
            try:
                if np.isfinite(float(model.compute_loss(x=some[0], y=some[1], y_pred=given, training=False))):
                    return True
            except Exception:  # as of a label that the output has no entry for
                _LOG.debug("A loss raised an error.", exc_info=True)
        return False

    return _without_one_that_is(is_finite, len(values))


def _without_one_that_is(is_finite: Callable[[np.ndarray], bool], count: int) -> np.ndarray | None:
    undefined, pending = np.zeros(count, bool), [np.arange(count)]
    for _ in range(MOST_CALLS):
        if not pending:
            return undefined
        rows = pending.pop()
        if not is_finite(rows):
            if len(rows) == 1:
                undefined[rows] = True
            else:
                pending += np.array_split(rows, 2)
    return None


def _rows(part: Any, index: np.ndarray) -> Any:
    return None if part is None else keras.tree.map_structure(lambda array: np.asarray(array)[index], part)


def _columns(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)


def _blank(array: Any, flaw: Flaw) -> Any:
    return np.where(flaw.entries(array), np.nan, array) if flaw.marks or flaw.bound is not None else array


def _filled(array: Any, flaw: Flaw) -> Any:
    if not flaw:
        return array
    array = np.asarray(array)
    return np.where(flaw.entries(array), flaw.medians, array).astype(array.dtype)
