"""Tell whether two models are the same program, so that what was traced for one serves the other."""

from __future__ import annotations

import functools
import inspect
import math
import types
import weakref
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat import keras_private

# Names, caches and what a fit leaves behind: none of it has a part in the arithmetic of a step. What is missing here
# makes two models differ, which costs time but no correctness.
_IGNORED_TEXT = (
    "name _name path _path _parent_path _initial_seed _lock _tracker _tracked _auto_config _compile_config "
    "_build_shapes_dict _called build quantize _exclude_from_weight_decay_cache _inbound_nodes _outbound_nodes "
    "_nodes _losses _loss_ids _losses_override _trainable_variables_indices _compiled_trainable_state "
    "_loss_tracker _saved_model_inputs_spec _saved_model_arg_spec train_function test_function "
    "predict_function history stop_training stop_evaluating _eval_epoch_iterator"
)
IGNORED = frozenset(_IGNORED_TEXT.split())
IGNORED_BEGINNING = "_self_"  # TensorFlow's own book-keeping for checkpoints
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), tf.DType, tf.TensorShape, np.dtype)


def difference(one: keras.Model, other: keras.Model) -> str | None:
    """Return in what two models differ beyond the values of their variables, or None if they are the same program.

    Everything that a trace could have read is compared, at any depth: layers and how they are joined, numbers,
    arrays, closures of functions, what is shared with what, loss, metrics, optimizer. Initializers of Keras' own
    layers do not matter once the weights are there. Both models have to be built, and their layers named alike: a loss
    or a metric may go by a name (`model_reuse.names_as_in_a_fresh_process`).

    Args:
        one: A compiled model.
        other: Another one.

    Returns:
        Where they differ and how, such as `"optimizer.clipnorm: None, 1.0"`.

    Example:
        >>> def net(units):
        ...     model = keras.Sequential([keras.Input((2,), name="in"), keras.layers.Dense(units, name="out")])
        ...     model.compile("sgd", "mse")
        ...     return model
        >>> difference(net(3), net(3)) is None
        True
        >>> difference(net(3), net(4))
        '_functional._layers[1].units: 3, 4'
    """
    try:
        _Walk().compare(one, other, "")
    except _DifferenceError as found:
        return str(found).lstrip(".")
    return None


class _DifferenceError(Exception):
    """Carries where two objects differ."""


class _Walk:
    """Go through two graphs of objects side by side."""

    def __init__(self):
        self._partners: dict[int, tuple[Any, Any]] = {}  # both are held, so that no id is given anew

    def compare(self, one: Any, other: Any, where: str) -> None:
        if isinstance(one, PLAIN):
            return self._plain(one, other, where)
        if id(one) in self._partners:
            if self._partners[id(one)][1] is not other:
                raise _DifferenceError(f"{where}: what is shared with what")
            return None
        self._partners[id(one)] = (one, other)
        if one is other:
            return None
        both_sequences = isinstance(one, list | tuple) and isinstance(other, list | tuple)  # Keras wraps some of them
        if type(one) is not type(other) and not both_sequences:
            raise _DifferenceError(f"{where}: {type(one).__name__}, {type(other).__name__}")
        for kinds, compare in self._kinds():
            if isinstance(one, kinds):
                return compare(one, other, where)
        return self._object(one, other, where)

    def _kinds(self) -> list[tuple[Any, Any]]:
        return [
            ((np.ndarray, np.generic, tf.Tensor), self._array),
            ((keras.Variable, tf.Variable), self._variable),
            (keras.KerasTensor, self._symbol),
            (Mapping, self._mapping),
            ((set, frozenset, inspect.Signature), self._equal),
            ((list, tuple), self._sequence),
            (types.FunctionType, self._function),
            (types.MethodType, self._method),
            (functools.partial, self._partial),
            (weakref.ref, lambda one, other, where: self.compare(one(), other(), where)),
            ((type, types.ModuleType, types.BuiltinFunctionType, types.CodeType), self._equal),
        ]

    # -- by kind -----------------------------------------------------------------------------------
    def _plain(self, one: Any, other: Any, where: str) -> None:
        both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
        if type(one) is not type(other) or not (one == other or both_nan):
            raise _DifferenceError(f"{where}: {one!r}, {other!r}"[:200])

    def _equal(self, one: Any, other: Any, where: str) -> None:
        if one != other:
            raise _DifferenceError(f"{where}: {one!r}, {other!r}"[:200])

    def _array(self, one: Any, other: Any, where: str) -> None:
        if isinstance(one, tf.Tensor) and not (hasattr(one, "numpy") and hasattr(other, "numpy")):
            raise _DifferenceError(f"{where}: a tensor without a value")
        one, other = np.asarray(one), np.asarray(other)
        if one.dtype != other.dtype or one.tobytes() != other.tobytes() or one.shape != other.shape:
            raise _DifferenceError(f"{where}: the numbers of an array")

    def _variable(self, one: Any, other: Any, where: str) -> None:
        for name in ("shape", "dtype", "trainable"):
            self._equal(getattr(one, name), getattr(other, name), f"{where}.{name}")
        for name in ("regularizer", "constraint"):
            self.compare(getattr(one, name, None), getattr(other, name, None), f"{where}.{name}")

    def _symbol(self, one: Any, other: Any, where: str) -> None:
        self._equal((tuple(one.shape), one.dtype), (tuple(other.shape), other.dtype), where)
        for index, (mine, theirs) in enumerate(zip(*map(keras_private.made_by, (one, other)), strict=True)):
            self.compare(mine, theirs, f"{where}[{index}]")

    def _mapping(self, one: Any, other: Any, where: str) -> None:
        self._sequence(list(one), list(other), f"{where}, its keys")
        for (key, mine), theirs in zip(one.items(), other.values(), strict=True):
            self.compare(mine, theirs, f"{where}[{key!r}]")

    def _sequence(self, one: Any, other: Any, where: str) -> None:
        self._equal(len(one), len(other), f"{where}, its length")
        for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            self.compare(mine, theirs, f"{where}[{index}]")

    def _function(self, one: Any, other: Any, where: str) -> None:
        if one.__code__ is not other.__code__ and one.__code__ != other.__code__:
            raise _DifferenceError(f"{where}: the functions {one.__qualname__} and {other.__qualname__}")
        if one.__globals__ is not other.__globals__:
            raise _DifferenceError(f"{where}: the modules of {one.__qualname__}")
        cells = [[_held(cell) for cell in function.__closure__ or ()] for function in (one, other)]
        self._sequence(*cells, f"{where}, what {one.__name__} closes over")
        for name in ("__defaults__", "__kwdefaults__"):
            self.compare(getattr(one, name), getattr(other, name), f"{where}.{name}")

    def _method(self, one: Any, other: Any, where: str) -> None:
        self.compare(one.__func__, other.__func__, where)
        self.compare(one.__self__, other.__self__, where)

    def _partial(self, one: Any, other: Any, where: str) -> None:
        for name in ("func", "args", "keywords"):
            self.compare(getattr(one, name), getattr(other, name), f"{where}.{name}")

    def _object(self, one: Any, other: Any, where: str) -> None:
        if not hasattr(one, "__dict__"):
            return self._equal(one, other, where)
        if isinstance(one, keras.metrics.Metric) and _is_keras_own(one) and not _is_compiled(one):
            # Many of them make their state when they first see data.
            return self.compare(*(without_name(metric.get_config()) for metric in (one, other)), where)
        mine, theirs = ({name: v for name, v in vars(o).items() if _matters(o, name, v)} for o in (one, other))
        for name in sorted(mine.keys() | theirs.keys(), key=lambda name: _telling(name, mine.get(name))):
            if (name in mine) != (name in theirs):
                raise _DifferenceError(f"{where}.{name}: only one of them has it")
            self.compare(mine[name], theirs[name], f"{where}.{name}")
        return None


def without_name(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the name, which may have been given automatically."""
    return {key: value for key, value in config.items() if key != "name"}


def _telling(name: str, value: Any) -> tuple[bool, bool, bool, str]:
    """Order attributes so that the difference which is found first is the one that its author would know."""
    return name == "optimizer", not isinstance(value, PLAIN), name.startswith("_"), name


def _matters(owner: Any, name: str, value: Any) -> bool:
    if value is None or name in IGNORED or name.startswith(IGNORED_BEGINNING):
        return False  # an attribute that is None may come into being later, as one
    if _is_compiled(owner):  # what they make of it follows from it
        return name.startswith("_user")
    spent = isinstance(value, keras.initializers.Initializer) and getattr(owner, "built", False)
    return not (spent and isinstance(owner, keras.layers.Layer) and _is_keras_own(owner))


def _is_compiled(thing: Any) -> bool:
    return type(thing).__name__ in ("CompileLoss", "CompileMetrics")


def _is_keras_own(thing: Any) -> bool:
    return type(thing).__module__.partition(".")[0] == "keras"


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
