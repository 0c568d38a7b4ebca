"""One running fit and the callbacks that joined it, the instrumented train function, and the fits within it."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat import keras_private
from gradrecipes.compat.keras_private import FitCaller, called_by_a_fit, is_running, reads_batch_logs, runs_in_fit
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trace import Event
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.update import NO_LOSS
from gradrecipes.training.fit.prepared_step import PreparedStep, Request

if TYPE_CHECKING:
    from gradrecipes.training.fit.kept_batches import KeptBatches

_END_OF_DATA = (StopIteration, tf.errors.OutOfRangeError)
_LOOKS = ("save", "save_weights", "export", "get_weights", "evaluate", "predict")  # methods that read the weights
_LOG = logging.getLogger(__name__)
_ACTIVE: weakref.WeakKeyDictionary[keras.Model, list[FitSession]] = weakref.WeakKeyDictionary()  # outermost first
_ASIDE: weakref.WeakSet[keras.Model] = weakref.WeakSet()
_REMAKE = "make_train_function"


class FitSession:
    """Hold one model's fit, the callbacks that joined it, and the record that they share.

    While it is active, `model.train_function` is the instrumented one; afterwards it is again what it was.
    A second fit with the same callbacks and an unchanged compilation reuses the traced function. Another fit
    within this one, or `train_on_batch` in one of its callbacks, runs plain, or with the callbacks of its own.

    Args:
        model: The compiled model.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.requests: dict[Any, Request] = {}
        self._trace = Trace()
        self._prepared: PreparedStep | None = None
        self._function_before: Callable[[Any], Any] | None = None
        self._installed: Callable[[Any], Any] | None = None
        self._list: Callable[[], Any] = _nothing  # a weak reference to the callbacks of the fit, which holds theirs
        self._registered_by: Callable[[], Any] = _nothing
        self._history: Any = None
        self._checked: list[Request] = []
        self._last_logs: Any = None
        self._began = 0  # steps that had run when the fit began
        self._logs_each = True  # whether a callback reads the logs of every step, not only those of an epoch
        self._by_hand = False  # whether a loop of the user's own drives the callbacks, around `train_on_batch`
        self._replaced = False
        self.not_instrumented: str | None = None  # why the fit went on without the callbacks
        self.kept: KeptBatches | None = None  # while a callback wants batches kept
        self.weights_left: Any = None  # what a guard notes of the weights with which the last fit ended
        self._shadows = contextlib.ExitStack()

    # -- coming and going ------------------------------------------------------------------------
    @property
    def active(self) -> bool:
        """Whether the instrumented train function is in place."""
        return self._installed is not None

    def leads(self, callback: Any) -> bool:
        """Return whether this callback is the one that drives the record."""
        return next(iter(self.requests), None) is callback

    def is_alone(self, callback: Any) -> bool:
        """Return whether no other callback of the fit decides which steps are left out."""
        return not any(request.skip for other, request in self.requests.items() if other is not callback)

    def register(self, callback_list: Any, history: Any) -> None:
        """Begin to register the callbacks of a fit."""
        self.requests = {}
        self._registered_by = _nothing if callback_list is None else weakref.ref(callback_list)
        self._history = history

    def registers(self, model: keras.Model, callback_list: Any, history: Any) -> bool:
        """Return whether the callbacks of this list, or of none that is known, are registered here."""
        same = callback_list is None or callback_list is self._registered_by()
        return self.model is model and not self.active and same and history is self._history

    def start(self, callback_list: Any = None) -> None:
        """Put the instrumented train function in place.

        Args:
            callback_list: The callbacks of the fit: an object that lives as long as it.

        Raises:
            ValueError: The fit within which this one runs has the same callbacks.
        """
        if self.active and self._by_hand and callback_list is not self._list():
            self.finish()  # a loop that did not call `on_train_end`
        if self.active:
            if callback_list is not None and callback_list is not self._list():
                raise ValueError(
                    f"{type(next(iter(self.requests))).__name__} is in a fit that still runs. Received: a fit within "
                    "it, with the same callback. Give the inner fit one of its own, or none."
                )
            return
        if self._prepared is None or not self._prepared.serves(self.model, self.requests):
            self._prepared = PreparedStep(self.model, self.requests, self.trace)
        self._began = self._prepared.next_step
        self._replaced = False
        self._by_hand = callback_list is not None and not runs_in_fit(callback_list)
        self.pipeline.last_loss.assign(np.nan if self._by_hand else NO_LOSS)
        checked = [request for request in self.requests.values() if request.check is not None]
        # What keeps the batch reads the weights before another callback puts them back.
        self._checked = sorted(checked, key=lambda request: not request.keep_batches)
        self.kept = self._keep_batches()
        self._function_before = self.model.train_function
        self._installed = self.model.train_function = self._guarded_function()
        self._shadows.close()
        self._logs_each = reads_batch_logs(callback_list)
        self._shadows.enter_context(keras_private.with_epoch_logs(self.model, self._with_own))
        looks = [request.before_look for request in self.requests.values() if request.before_look]
        if looks:
            self._shadows.enter_context(keras_private.announced(self.model, _LOOKS, looks))
        _enter(self.model, self)
        self._list = _nothing
        if callback_list is not None:
            self._list = weakref.ref(callback_list)
            # After an error elsewhere Keras calls nothing.
            weakref.finalize(callback_list, self._finish_installed, self._installed)

    @property
    def running(self) -> bool:
        """Whether the fit is among the callers: one that broke off is active until this is noticed."""
        if self._by_hand:
            return self.active and self._list() is not None
        return self.active and is_running(self._list())

    def _finish_installed(self, installed: Callable[[Any], Any]) -> None:
        if self._installed is installed:
            with tf.init_scope():  # the garbage collector may call while another function is being traced
                self.finish()
            self._add_event("interrupted", "outside_of_a_step", {})

    def break_off(self) -> None:
        """Finish, and note that the fit did not come to its end."""
        self._finish_installed(self._installed)

    def finish(self) -> None:
        """Take what the record still holds, and give the model its own train function back."""
        if not self.active:
            return
        _leave(self.model, self)
        self._shadows.close()
        self.collect()
        if self.kept is not None:
            self.kept.release()
        if self.model.train_function is self._installed:
            self.model.train_function = self._function_before
        self._installed = self._function_before = self._last_logs = None

    def _guarded_function(self) -> Callable[[Any], Any]:
        caller = FitCaller(lambda: self._list())

        def train_function(iterator):
            if called_by_a_fit() if self._by_hand else not caller.calls():
                return self._run_plain(iterator)
            try:
                self._last_logs = logs = self._execute(iterator)
            except _END_OF_DATA:
                raise
            except BaseException as error:
                if self._prepared.not_instrumented is None or self._runs_eagerly():
                    self._interrupt(error)
                    raise
            else:
                if self._prepared.not_instrumented is not None:
                    self._go_on_plain()
                elif self._logs_each:
                    self._last_logs = logs = self._with_own(logs)
                return logs
            return self._go_on_plain(iterator)  # the error was raised while the step was traced: none has run

        return train_function

    def _with_own(self, logs: Any) -> Any:
        """Return the logs of the last step with what the callbacks say of it; other logs, as they are."""
        if logs is not self._last_logs or not isinstance(logs, dict) or not self._prepared.logs:
            return logs
        return {**logs, **self._prepared.read_logs()}

    def _run_plain(self, iterator: Any) -> Any:
        """Run what runs without this fit: another one within it, or after it broke off."""
        if not self.running:
            self.break_off()
            self.model.make_train_function()
            return self.model.train_function(iterator)
        with _set_aside(self.model):
            if self._function_before is None:
                self._function_before = keras_private.compile_train_step(self.model, self.model.train_step)
            return self._function_before(iterator)

    def _runs_eagerly(self) -> bool:
        return self.model.run_eagerly or tf.config.functions_run_eagerly()

    def _go_on_plain(self, iterator: Any = None) -> Any:
        """Finish, and let the rest of the fit run without the callbacks; run the step that could not be traced."""
        reason = self._prepared.not_instrumented
        self.finish()
        if iterator is None:  # what was traced runs on: random operations of TensorFlow go on within one graph only
            self.model.train_function, logs = self._prepared.hand_over(), None
        else:
            self.model.train_function = keras_private.compile_train_step(self.model, self.model.train_step)
            logs = self.model.train_function(iterator)
        self.not_instrumented = reason  # where the plain step raises as well, the reason lies in the program
        return logs

    def renew(self) -> None:
        """Prepare again in the middle of the fit: the model was compiled anew, or other weights are to be trained."""
        self.collect()
        before = self._prepared
        self._prepared = PreparedStep(self.model, self.requests, self.trace)
        kept = {name: v.numpy() for name, v in before.pipeline.variables.items() if not name.startswith("clipping_")}
        self.pipeline.restore(kept)  # a clipping method remembers the tensors that were
        self._prepared.begin_epoch(before.writer.epoch)
        self._function_before, self.model.train_function = None, self._installed
        if self.kept is not None:
            self.kept.reference = None
        for request in self.requests.values():
            if request.renewed is not None:
                request.renewed()

    def _keep_batches(self) -> KeptBatches | None:
        each = any(request.keep_batches for request in self.requests.values())
        reference = any(request.keep_reference for request in self.requests.values())
        if not each and not reference:
            return None
        from gradrecipes.training.fit.kept_batches import KeptBatches

        return KeptBatches(self.model, each=each, reference=reference)

    def _execute(self, iterator: Any) -> Any:
        if self.kept is None or self.kept.has_all:
            return self._run(iterator, self.model.steps_per_execution)
        ran = False
        for batches, steps in self.kept.executions(iterator, self.model.steps_per_execution, self._prepared):
            ran, logs = True, self._run(batches, steps)
            if self.model.stop_training:
                break
        if not ran:
            raise StopIteration
        return logs

    def retry(self, batch: Any = None) -> Any:
        """Run a step again with the present weights, and put everything back.

        Args:
            batch: One of those that `kept` holds; None for the reference batch.

        Returns:
            See `KeptBatches.retry` and `KeptBatches.retry_reference`.
        """
        if self.kept is None or not self.steps_run:
            return None
        if batch is None:
            return self.kept.retry_reference(self._prepared)
        return self.kept.retry([batch], self._prepared)

    def _run(self, iterator: Any, steps: int) -> Any:
        logs = self._prepared.run(iterator, steps)
        for request in self._checked:
            if (self._prepared.next_step - self._began) % request.check_every < steps:
                request.check()
        return logs

    def _interrupt(self, error: BaseException) -> None:
        self.finish()
        self._add_event("interrupted", type(error).__name__, {"message": str(error)[:500]})

    # -- during the fit --------------------------------------------------------------------------
    def epoch_begins(self, epoch: int) -> None:
        """Note that the next steps belong to another epoch."""
        if self.model.train_function is not self._installed and not self._replaced:
            self._replaced = True
            _LOG.warning(
                "Something else has set model.train_function in the middle of the fit, so that %s see no more steps. "
                "To have it made anew, call model.make_train_function(force=True).",
                " and ".join(type(callback).__name__ for callback in self.requests),
            )
        self._prepared.begin_epoch(epoch)

    def epoch_ends(self, epoch: int, logs: dict[str, Any]) -> None:
        """Take the record of the epoch and note its logs."""
        self.collect()
        numbers = {name: number for name, value in logs.items() if (number := _number(value)) is not None}
        self._add_event("epoch", "", {"logs": numbers}, epoch=epoch)
        if np.isfinite(numbers.get("loss", np.nan)) and not self._by_hand:
            self.pipeline.last_loss.assign(numbers["loss"])

    def add_event(self, kind: str, reason: str, details: dict[str, Any]) -> Event:
        """Note what a callback did, at the last step."""
        self.collect()
        return self._add_event(kind, reason, details)

    def _add_event(self, kind: str, reason: str, details: dict[str, Any], *, epoch: int | None = None) -> Event:
        epoch = self._prepared.writer.epoch if epoch is None else epoch
        last = {name: int(self.trace.steps[name][-1]) if len(self.trace) else 0 for name in ("step", "batch")}
        event = Event(kind, last["step"], epoch, last["batch"], reason, details)
        self.trace.add_event(event)
        return event

    @property
    def trace(self) -> Trace:
        """The record as far as it has been taken from the device; `collect` brings it up to date."""
        return self._trace if self._prepared is None else self._prepared.writer.trace

    @property
    def layer_map(self) -> Any:
        """The `LayerMap`: which layer of the record each variable belongs to; None before the first rows."""
        return None if self._prepared is None else self._prepared.writer.layer_map

    def collect(self) -> Trace:
        """Bring the trace up to date with the device and return it."""
        return self._trace if self._prepared is None else self._prepared.collect()

    @property
    def steps_run(self) -> int:
        """How many steps have run: updates, and batches that were left out."""
        return 0 if self._prepared is None else self._prepared.steps_run

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline, once the fit has begun."""
        return None if self._prepared is None else self._prepared.pipeline


def _enter(model: keras.Model, session: FitSession) -> None:
    """Note a session whose fit begins, perhaps within another."""
    _ACTIVE.setdefault(model, []).append(session)
    model.__dict__[_REMAKE] = _remaking(model)


def _leave(model: keras.Model, session: FitSession) -> None:
    """Forget a session whose fit ends; those within it broke off before."""
    sessions = _ACTIVE[model]
    while sessions[-1] is not session:
        sessions[-1].break_off()
    sessions.pop()
    if not sessions:
        del _ACTIVE[model]
        del model.__dict__[_REMAKE]


def innermost(model: keras.Model) -> FitSession | None:
    """Return the session of the innermost fit that runs, or None; those of fits that broke off are finished."""
    while (sessions := _ACTIVE.get(model)) and not sessions[-1].running:
        sessions[-1].break_off()
    return sessions[-1] if sessions else None


def is_attached(model: keras.Model) -> bool:
    """Return whether callbacks have joined the running fit of a model, so that their pipeline is in charge."""
    return model in _ACTIVE and model not in _ASIDE


@contextlib.contextmanager
def _set_aside(model: keras.Model) -> Iterator[None]:
    """Let a step run within the `with` block for which no session is in charge."""
    _ASIDE.add(model)
    try:
        yield
    finally:
        _ASIDE.discard(model)


def _remaking(model: keras.Model) -> Callable[..., Any]:
    """Return what stands in for `model.make_train_function`, which else would make one without the pipeline."""

    def make_train_function(force: bool = False) -> Any:
        if force or model.train_function is None:
            _ACTIVE[model][-1].renew()
        return model.train_function

    return make_train_function


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, str | bytes) or np.ndim(value) != 0:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _nothing() -> None:
    return None
