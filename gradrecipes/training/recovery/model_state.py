"""Analyse a model with other weights, and leave every bit of it as it was."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import optimizers_of, sublayers

P = ParamSpec("P")
T = TypeVar("T")
State = Sequence[Any] | Mapping[str, Any] | None


@contextlib.contextmanager
def preserve_state(model: keras.Model, also: Sequence[Any] = ()) -> Iterator[None]:
    """Put back weights, moving statistics, seeds, metrics and optimizer after the `with` block, whatever happens in it.

    Metrics that came into being within the block start from nothing.

    Args:
        model: The model.
        also: Further variables that are put back.
    """
    variables = [*variables_of(model), *also]
    before = [(part, tf.identity(tf.convert_to_tensor(part))) for one in variables for part in _parts(one)]
    known = {id(variable) for variable in variables}
    try:
        yield
    finally:
        for part, value in before:
            part.assign(value)
        for metric in model.metrics:
            if metric.variables and not any(id(variable) in known for variable in metric.variables):
                metric.reset_state()


def preserves_state(probe: Callable[Concatenate[keras.Model, P], T]) -> Callable[Concatenate[keras.Model, P], T]:
    """Run a function of a model, its first argument, within `preserve_state`."""

    @functools.wraps(probe)
    def preserving(model: keras.Model, *args: P.args, **kwargs: P.kwargs) -> T:
        with preserve_state(model):
            return probe(model, *args, **kwargs)

    return preserving


def load_temporarily(model: keras.Model, weights: State, optimizer_variables: State) -> list[str]:
    """Put given values into a model; within `preserve_state` only.

    Args:
        model: The model.
        weights: Values in the order of `model.variables`, or of `model.weights`, or by the paths of the variables.
        optimizer_variables: Values in the order of `model.optimizer.variables`, or by path.

    Returns:
        What could not be put in, in sentences.
    """
    notes = []
    if weights is not None:
        notes += _assign([model.variables, model.weights], weights, "weights")
    if optimizer_variables is not None:
        optimizer = getattr(model, "optimizer", None)
        slots = [] if optimizer is None else optimizer.variables
        notes += _assign([slots], optimizer_variables, "optimizer variables")
    return notes


def variables_of(model: keras.Model) -> list[Any]:
    """Return every variable that a training step may change, each once."""
    slots = [slot for optimizer in optimizers_of(model) for slot in optimizer.variables]
    found = [*model.variables, *model.metrics_variables, *slots, *recurrent_states(model)]
    return list({id(variable): variable for variable in found}.values())


def recurrent_states(model: keras.Model) -> list[Any]:
    """Return what stateful recurrent layers remember, which Keras does not count among the variables of a model."""
    remembered = [getattr(layer, "states", None) for layer in sublayers(model) if isinstance(layer, keras.layers.RNN)]
    return [part for part in keras.tree.flatten(remembered) if hasattr(part, "assign")]


def _parts(variable: Any) -> list[Any]:
    """Return the copies of a variable, one a replica; moving statistics and metrics differ between replicas."""
    held = getattr(variable, "value", variable)
    return list(held.values) if isinstance(held, tf.distribute.DistributedValues) else [variable]


def _assign(choices: list[Sequence[Any]], values: State, what: str) -> list[str]:
    if isinstance(values, Mapping):
        by_path = {variable.path: variable for variable in choices[0]}
        unknown = sorted(set(values) - set(by_path))
        pairs = [(by_path[path], value) for path, value in values.items() if path in by_path]
        notes = [f"The model has no {what} of these names, so they were left out: {unknown}."] if unknown else []
    else:
        values = list(values)
        fitting = [choice for choice in choices if _shapes(choice) == _shapes(values)]
        if not fitting:
            expected = " or ".join(str(len(choice)) for choice in choices)
            return [
                f"The given {what} do not fit the model ({len(values)} arrays; expected {expected}, in its shapes): "
                "the analysis used those that the model has now."
            ]
        pairs, notes = list(zip(fitting[0], values, strict=True)), []
    for variable, value in pairs:
        try:
            variable.assign(tf.cast(tf.convert_to_tensor(value), variable.dtype))
        except (TypeError, ValueError) as error:
            notes.append(f"The value given for {variable.path} was left out: {error}")
    return notes


def _shapes(values: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(value.shape) if hasattr(value, "shape") else np.shape(value) for value in values]
