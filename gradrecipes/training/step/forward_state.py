"""What a step changes beside what its optimizers update, and the way back from it."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat import keras_private
from gradrecipes.compat.tensorflow_private import assignments_reported, current_graph, rare_cond, reading_before
from gradrecipes.core.trace import APPLIED, SKIPPED_GRADIENT, SKIPPED_LOSS
from gradrecipes.training.recovery.model_state import recurrent_states
from gradrecipes.training.step import replicas

# What traces of a model's step have assigned: a `tf.function` called in it reports nothing once it is traced.
_ASSIGNED: weakref.WeakKeyDictionary[keras.Model, dict[int, Any]] = weakref.WeakKeyDictionary()


def assigned_outside(model: keras.Model) -> list[Any]:
    """Return what traces of a model's step have assigned that is neither the model's nor its optimizers'."""
    return list(_ASSIGNED.get(model, {}).values())


class ForwardState:
    """Remember moving statistics, seeds, metrics, recurrent states before a step, and put them back if it is skipped.

    So it is with whatever else the step assigns outside its optimizers: the weights of a layer that normalizes them
    in its call, or a copy of weights that a train step keeps. Under a distribution strategy these are not known.

    Args:
        model: The model, before its step.
        last_loss: What the logs hold for the loss while none was applied in the epoch.
    """

    def __init__(self, model: keras.Model, last_loss: tf.Variable):
        self._model = model
        self._last_loss = last_loss
        variables = [*model.non_trainable_variables, *model.metrics_variables, *recurrent_states(model)]
        self._variables = list({id(v): v for v in variables}.values())
        self._metrics = {id(variable) for variable in model.metrics_variables}
        self._watches = not tf.distribute.has_strategy()
        self._graph = current_graph()
        self._in_optimizer = 0
        self._known: set[int] = set()
        if self._watches:
            self._known = {id(v.value.handle) for v in self._variables}
            assigned = _ASSIGNED.setdefault(model, {})
            self._variables += [v for key, v in assigned.items() if key not in self._known]
            self._known |= set(assigned)
        self._before = [tf.convert_to_tensor(v) for v in self._variables]

    @contextlib.contextmanager
    def watching_assignments(self) -> Iterator[None]:
        """Learn within the `with` block what the step assigns, but for what `ignoring` encloses."""
        if not self._watches:
            yield
            return
        with assignments_reported(self._add):
            yield

    @contextlib.contextmanager
    def ignoring(self) -> Iterator[None]:
        """Leave out what an optimizer assigns within the `with` block: a skipped step does not run it."""
        self._in_optimizer += 1
        try:
            yield
        finally:
            self._in_optimizer -= 1

    def _add(self, variable: tf.Variable) -> None:
        key = id(variable.handle)
        if self._in_optimizer or key in self._known or (place := reading_before(self._graph)) is None:
            return
        self._known.add(key)
        with place:
            self._before.append(tf.convert_to_tensor(variable))
        self._variables.append(variable)
        _ASSIGNED[self._model][key] = variable

    def kept_where(self, outcome: tf.Tensor, logs: Any) -> Any:
        """Put the state back unless the step was applied; return the logs that go with the state.

        The metrics go back only for a step that was not finite: leaving a hard batch out makes no model better.
        """
        applied = tf.equal(outcome, APPLIED)
        is_finite = ~(tf.equal(outcome, SKIPPED_LOSS) | tf.equal(outcome, SKIPPED_GRADIENT))
        names = self._metrics_in(logs)
        if replicas.spread():  # they may not meet inside a condition
            for variable, before in zip(self._variables, self._before, strict=True):
                wanted = is_finite if id(variable) in self._metrics else applied
                variable.assign(tf.where(wanted, tf.convert_to_tensor(variable), before))
            if not names:
                return logs
            kept = {name: logs[name] for name in names}
            before = self._results_as_before(names, logs)
            kept = tf.nest.map_structure(lambda new, old: tf.where(applied, new, old), kept, before)
            return {**logs, **kept}

        def as_they_are() -> dict[str, Any]:
            return {name: tf.nest.map_structure(tf.convert_to_tensor, logs[name]) for name in names}

        def put_back() -> dict[str, Any]:
            for variable, before in zip(self._variables, self._before, strict=True):
                if id(variable) in self._metrics:
                    before = tf.where(is_finite, tf.convert_to_tensor(variable), before)
                variable.assign(before)
            return self._results_as_before(names, logs) if names else {"": tf.constant(False)}

        if not names:
            rare_cond(applied, lambda: {"": tf.constant(True)}, put_back)
            return logs
        return {**logs, **rare_cond(applied, as_they_are, put_back)}

    def _metrics_in(self, logs: Any) -> list[str]:
        """Return the names of the logs that are results of the model's metrics, if it returns logs by name."""
        if not isinstance(logs, dict):
            return []
        try:
            results = self._model.get_metrics_result()
        except ValueError:  # Keras: a compiled metric that was never updated has no result
            return []
        return [name for name in logs if name in results and _same_structure(results[name], logs[name])]

    def _results_as_before(self, names: list[str], logs: dict[str, Any]) -> dict[str, Any]:
        result = self._result()
        return {name: tf.nest.map_structure(_as_before, result[name], logs[name]) for name in names}

    def _result(self) -> dict[str, Any]:
        result = self._model.get_metrics_result()
        count = keras_private.loss_count(self._model)
        if count is not None and "loss" in result:
            # The mean of no loss at all is 0 to Keras: the best loss there is, to whatever saves or stops by it.
            nothing = tf.equal(tf.convert_to_tensor(count), 0)
            loss = tf.convert_to_tensor(result["loss"])
            result = {**result, "loss": tf.where(nothing, tf.cast(self._last_loss, loss.dtype), loss)}
        return result


def _same_structure(one: Any, other: Any) -> bool:
    try:
        tf.nest.assert_same_structure(one, other)
    except (TypeError, ValueError):
        return False
    shapes = [[tf.convert_to_tensor(part).shape for part in tf.nest.flatten(values)] for values in (one, other)]
    return all(a.is_compatible_with(b) for a, b in zip(*shapes, strict=True))


def _as_before(value: Any, before: Any) -> tf.Tensor:
    return tf.cast(value, tf.convert_to_tensor(before).dtype)
