"""What a step changes beside what its optimizers update, and the way back from it."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat import keras_private
from gradrecipes.compat.assignments import heard_by, reading_before
from gradrecipes.compat.graphs import current_graph
from gradrecipes.compat.plain_variable import plain_variable
from gradrecipes.training.recovery.model_state import recurrent_states
from gradrecipes.training.step import replicas

# What traces of a model's step have assigned: a `tf.function` called in it is not heard when it is traced already.
_ASSIGNED: weakref.WeakKeyDictionary[keras.Model, dict[int, Any]] = weakref.WeakKeyDictionary()
_LAST_LOSS: weakref.WeakKeyDictionary[keras.Model, tf.Variable] = weakref.WeakKeyDictionary()


class ForwardState:
    """Remember moving statistics, seeds, metrics, recurrent states before a step, and put them back if it is skipped.

    So it is with whatever else the step assigns outside its optimizers: the weights of a layer that normalizes them
    in its call, or a copy of weights that a train step keeps. Under a distribution strategy these are not known.

    Args:
        model: The model, before its step.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        variables = [*model.non_trainable_variables, *model.metrics_variables, *recurrent_states(model)]
        self._variables = list({id(v): v for v in variables}.values())
        self._listens = not tf.distribute.has_strategy()
        self._graph = current_graph()
        self._in_optimizer = 0
        self._known: set[int] = set()
        if self._listens:
            self._known = {id(v.value.handle) for v in self._variables}
            assigned = _ASSIGNED.setdefault(model, {})
            self._variables += [v for key, v in assigned.items() if key not in self._known]
            self._known |= set(assigned)
        self._before = [tf.convert_to_tensor(v) for v in self._variables]

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Learn within the `with` block what the step assigns; what an optimizer does there is not heard."""
        if not self._listens:
            yield
            return
        with contextlib.ExitStack() as stack:
            for optimizer in keras_private.optimizers_of(self._model):
                stack.enter_context(keras_private.replaced(optimizer, "apply", self._unheard(optimizer.apply)))
            stack.enter_context(heard_by(self._hear))
            yield

    def _unheard(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(apply)
        def apply_unheard(*args, **kwargs):
            self._in_optimizer += 1
            try:
                return apply(*args, **kwargs)
            finally:
                self._in_optimizer -= 1

        return apply_unheard

    def _hear(self, variable: tf.Variable) -> None:
        key = id(variable.handle)
        if self._in_optimizer or key in self._known or (place := reading_before(self._graph)) is None:
            return
        self._known.add(key)
        with place:
            self._before.append(tf.convert_to_tensor(variable))
        self._variables.append(variable)
        _ASSIGNED[self._model][key] = variable

    def kept_where(self, applied: tf.Tensor, logs: dict[str, Any]) -> dict[str, Any]:
        """Put the state back unless the step was applied; return the logs that go with the state."""
        names = [name for name in logs if name in self._model.get_metrics_result()]
        if replicas.spread():  # replicas may not meet inside a condition
            for variable, before in zip(self._variables, self._before, strict=True):
                variable.assign(tf.where(applied, tf.convert_to_tensor(variable), before))
            return {**logs, **{name: self._result()[name] for name in names}}

        def as_they_are() -> dict[str, Any]:
            return {name: tf.nest.map_structure(tf.convert_to_tensor, logs[name]) for name in names}

        def put_back() -> dict[str, Any]:
            for variable, before in zip(self._variables, self._before, strict=True):
                variable.assign(before)
            result = self._result()
            return {name: tf.nest.map_structure(_as_before, result[name], logs[name]) for name in names}

        return {**logs, **tf.cond(applied, as_they_are, put_back)}

    def _result(self) -> dict[str, Any]:
        result = self._model.get_metrics_result()
        count = keras_private.loss_count(self._model)
        if count is not None and "loss" in result:
            # The mean of no loss at all is 0 to Keras: the best loss there is, to whatever saves or stops by it.
            nothing = tf.equal(tf.convert_to_tensor(count), 0)
            loss = tf.convert_to_tensor(result["loss"])
            result = {**result, "loss": tf.where(nothing, tf.cast(last_loss(self._model), loss.dtype), loss)}
        return result


def last_loss(model: keras.Model) -> tf.Variable:
    """Return the variable that holds what the logs say for the loss before an epoch's first step that is applied.

    It is the loss of the epoch before, and the largest number there is in the first: no improvement to whoever saves or
    stops by it, and finite, since `TerminateOnNaN` would end the training for a step that was left out.
    """
    if model not in _LAST_LOSS:
        _LAST_LOSS[model] = plain_variable(tf.float32.max, name="last_loss")
    return _LAST_LOSS[model]


def _as_before(value: Any, before: Any) -> tf.Tensor:
    return tf.cast(value, tf.convert_to_tensor(before).dtype)
