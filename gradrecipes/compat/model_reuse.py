"""The private names by which a model is used again: copied as it is, or its compiled step run by other models."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.tensorflow.trainer import TFEpochIterator
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.tracking import Tracker
from tensorflow.python.framework import op_def_registry

from gradrecipes.compat.keras_private import build_optimizer, sublayers

NAMES_GIVEN = "object_name_uids"  # how often each automatic name was given
# Stateful operations of a step whose whole state is in variables, which are copied, or in the data, which are fed.
_KNOWN_STATE_TEXT = (
    "ReadVariableOp AssignVariableOp AssignAddVariableOp AssignSubVariableOp VarIsInitializedOp VariableShape "
    "ResourceGather ResourceGatherNd ResourceScatterAdd ResourceScatterSub ResourceScatterUpdate "
    "ResourceStridedSliceAssign IteratorGetNext IteratorGetNextAsOptional OptionalFromValue OptionalGetValue "
    "OptionalHasValue OptionalNone StatefulPartitionedCall PartitionedCall If While Case Assert"
)
KNOWN_STATE = frozenset(_KNOWN_STATE_TEXT.split())


@contextlib.contextmanager
def names_as_in_a_fresh_process() -> Iterator[None]:
    """Give what is built within the block the automatic names of a first build: "auc" each time, never "auc_3"."""
    before = global_state.get_global_attribute(NAMES_GIVEN)
    global_state.set_global_attribute(NAMES_GIVEN, collections.defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(NAMES_GIVEN, before)


def build_whole(model: keras.Model, x: Any, y: Any) -> None:
    """Make all weights and slots of a compiled model as `fit` would when it sees the first batch.

    Args:
        model: The model.
        x: Inputs.
        y: Targets.
    """
    if not all(layer.built for layer in [model, *sublayers(model)]):
        model._symbolic_build(data_batch=keras.tree.map_structure(_any_batch, (x, y)))
    build_optimizer(model)


def _any_batch(array: np.ndarray) -> keras.KerasTensor:
    dtype = keras.config.floatx() if array.dtype.kind == "f" else str(array.dtype)
    return keras.KerasTensor((None, *array.shape[1:]), dtype)


def epoch_in_order(x: Any, y: Any, *, shuffle: bool, class_weight: dict[int, float] | None = None) -> Any:
    """Return all samples as one batch, as `fit` would convert them, in the order in which it would go through them.

    The order is that of the seed which `keras.utils.set_random_seed` has set; no random number is used up.
    """
    return next(iter(_whole(x, y, shuffle, class_weight)))


@functools.cache
def orders_repeat(samples: int) -> bool:
    """Return whether `fit` goes through its data in the same order in every epoch, as it does under a global seed."""
    numbers = np.arange(samples)
    whole = _whole(numbers, numbers, True, None)
    first, second = (next(iter(whole))[0].numpy() for _ in range(2))
    return bool(np.array_equal(first, second))


def _whole(x: Any, y: Any, shuffle: bool, class_weight: Any) -> tf.data.Dataset:
    epochs = TFEpochIterator(
        x=x,
        y=y,
        batch_size=len(keras.tree.flatten(x)[0]),
        shuffle=shuffle,
        class_weight=class_weight,
        distribute_strategy=tf.distribute.get_strategy(),
        steps_per_execution=1,
    )
    return epochs._distributed_dataset


def hidden_state(function: Callable[[Any], Any] | None, known: list[Any]) -> str | None:
    """Return what state a traced train function holds beside the known variables, or None.

    Args:
        function: `model.train_function` or `model.test_function`, after a fit.
        known: Variables whose values are put in before each run.
    """
    known_ids = {id(getattr(variable, "value", variable)) for variable in known}
    graphs = _graphs(function)
    if function is not None and not graphs:
        return "a function without a graph that could be looked at"
    for graph in graphs:
        unknown = [variable.name for variable in graph.variables if id(variable) not in known_ids]
        if unknown:
            return f"the variable {unknown[0]!r}, which belongs neither to the model nor to its optimizer"
        definition = graph.as_graph_def()
        bodies = [definition.node, *(body.node_def for body in definition.library.function)]
        for name in sorted({node.op for nodes in bodies for node in nodes} - KNOWN_STATE):
            operation = op_def_registry.get(name)
            if operation is not None and operation.is_stateful:
                return f"the operation {name}, whose state cannot be put back"
    return None


def _graphs(function: Any) -> list[Any]:
    """Return what was traced for a function, or for those that it closes over."""
    if function is None:
        return []
    if hasattr(function, "_list_all_concrete_functions"):
        return [concrete.graph for concrete in function._list_all_concrete_functions()]
    held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return [
        graph
        for one in held
        if hasattr(one, "_list_all_concrete_functions") or hasattr(one, "__closure__")
        for graph in _graphs(one)
    ]


def copied_model(model: keras.Model) -> keras.Model:
    """Return a copy of a model, layer by layer and variable by variable, without saving it.

    Keras copies a model by writing and reading a file, which needs a config and registered classes. This copies the
    objects themselves, so any subclassed model can be copied. What was compiled or traced for the model is left out:
    compile the copy.

    Args:
        model: A built model.

    Raises:
        Exception: Whatever an attribute raises that cannot be copied, such as an open file.
    """
    strategy = tf.distribute.get_strategy()  # held by any optimizer that the model holds; there is one only
    memo: dict[int, Any] = {id(strategy): strategy}
    left_out = {
        name: model.__dict__[name]
        for name in (
            *("optimizer", "_compile_loss", "_compile_metrics", "_compile_config", "_loss_tracker", "history"),
            *("train_function", "test_function", "predict_function"),
        )
        if name in model.__dict__
    }
    for value in left_out.values():
        memo[id(value)] = None
    for layer in sublayers(model):
        graph = layer._functional if isinstance(layer, keras.Sequential) else type(layer).__name__ == "Functional"
        if layer.built and graph:
            clone = keras.models.clone_model(layer)  # its graph holds what cannot be copied
            clone.set_weights(layer.get_weights())
            clone.trainable = layer.trainable
            memo[id(layer)] = clone
            memo |= {id(one): other for one, other in zip(layer.weights, clone.weights, strict=True)}  # for optimizers
    for layer in [model, *sublayers(model)]:
        for symbolic in (layer._inbound_nodes, layer._outbound_nodes, layer._losses):
            memo[id(symbolic)] = []
    with _objects_copied_as_they_are():
        made = copy.deepcopy(model, memo)
    made.__dict__.pop("_compile_config", None)  # a file would want it; what is compiled again gets its own
    for part in list(memo.values()):
        if isinstance(part, Tracker):  # it knows what it holds by the ids of the originals
            part.stored_ids = {name: {id(one) for one in held} for name, (_, held) in part.config.items()}
        elif isinstance(part, keras.optimizers.Optimizer) and part.built:  # it finds slots by ids of the originals
            weights = part._trainable_variables
            part._trainable_variables_indices = {part._var_key(one): place for place, one in enumerate(weights)}
    return made


@contextlib.contextmanager
def _objects_copied_as_they_are() -> Iterator[None]:
    reduce, track = KerasSaveable.__reduce__, Tracker.track
    copiers = copy._deepcopy_dispatch
    copiers[types.ModuleType] = copiers[type(None)]
    del KerasSaveable.__reduce__  # the one that writes a file
    Tracker.track = lambda self, attribute: attribute
    try:
        yield
    finally:
        KerasSaveable.__reduce__, Tracker.track = reduce, track
        del copiers[types.ModuleType]
