"""What joins callbacks to one running fit: the instrumented train function, and the way out of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.event import Event
from gradrecipes.core.trace import Trace
from gradrecipes.gradients.pipeline import Pipeline, PipelineSettings
from gradrecipes.training import keras_private
from gradrecipes.training.harvest import Harvest
from gradrecipes.training.instrumented_step import InstrumentedStep
from gradrecipes.training.replicas import require_supported
from gradrecipes.training.request import Request
from gradrecipes.training.step_events import skip_events

RING_STEPS = 256  # steps that the record holds on the device; the host takes them every half of that
_END_OF_DATA = (StopIteration, tf.errors.OutOfRangeError)
_ACTIVE: weakref.WeakKeyDictionary[keras.Model, Attachment] = weakref.WeakKeyDictionary()


class Attachment:
    """Hold one model's fit, the callbacks that joined it, and the record that they share.

    While it is active, `model.train_function` is the instrumented one; afterwards it is again what it was.
    A second fit with the same callbacks and an unchanged compilation reuses the traced function.

    Args:
        model: The compiled model.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.history = getattr(model, "history", None)
        self.requests: dict[Any, Request] = {}
        self._trace = Trace()
        self._prepared_for: dict[Any, Request] = {}
        self._identity: tuple[Any, ...] = ()
        self._pipeline: Pipeline | None = None
        self._harvest: Harvest | None = None
        self._every_step: Callable[[Any], Any] | None = None
        self._sampled_step: Callable[[Any], Any] | None = None
        self._function_before: Callable[[Any], Any] | None = None
        self._installed: Callable[[Any], Any] | None = None
        self._checked: list[Request] = []
        self._keeps_batches = False
        self.batch: Any = None  # of the last step, while somebody wants it kept

    # -- coming and going ------------------------------------------------------------------------
    @property
    def active(self) -> bool:
        """Whether the instrumented train function is in place."""
        return self._installed is not None

    def leads(self, callback: Any) -> bool:
        """Whether this callback is the one that drives the record."""
        return next(iter(self.requests), None) is callback

    def is_alone(self, callback: Any) -> bool:
        """Whether no other callback of the fit decides which steps are left out."""
        return not any(request.skip for other, request in self.requests.items() if other is not callback)

    def start(self) -> None:
        """Put the instrumented train function in place."""
        if self.active:
            return
        identity = keras_private.compile_identity(self.model)
        unchanged = keras_private.same_identity(identity, self._identity) and self.requests == self._prepared_for
        if self._every_step is None or not unchanged:
            self._prepare(identity)
        self.history = getattr(self.model, "history", None)
        checked = [request for request in self.requests.values() if request.check is not None]
        self._checked = sorted(checked, key=lambda request: not request.keep_batches)  # who looks, before who acts
        self._keeps_batches = any(request.keep_batches for request in self.requests.values())
        self._function_before = self.model.train_function
        self._installed = self.model.train_function = self._guarded_function()

    def finish_after(self, fit: object) -> None:
        """Finish when an object that lives as long as the fit is gone: after an error elsewhere Keras calls nothing."""
        weakref.finalize(fit, self._finish_installed, self._installed)

    def _finish_installed(self, installed: Callable[[Any], Any]) -> None:
        if self._installed is installed:
            with tf.init_scope():  # the garbage collector may call while another function is being traced
                self.finish()
            self._add_event("interrupted", self._harvest.epoch, "outside_of_a_step", {})

    def finish(self) -> None:
        """Take what the record still holds, and give the model its own train function back."""
        if not self.active:
            return
        self.collect()
        if self.model.train_function is self._installed:
            self.model.train_function = self._function_before
        self._installed = self._function_before = None
        if _ACTIVE.get(self.model) is self:
            del _ACTIVE[self.model]

    def _prepare(self, identity: tuple[Any, ...]) -> None:
        wanted = list(self.requests.values())
        every = min((request.sample_every for request in wanted if request.sample_every), default=0)
        clippings = [request.clipping for request in wanted if request.clipping is not None]
        own = getattr(self.model, "clipping", None)
        deciding = sorted((request for request in wanted if request.skip), key=lambda request: request.keep_batches)
        settings = PipelineSettings(
            clipping=clippings[0] if clippings else own,
            skip=any(request.skip for request in wanted),
            sigmas=deciding[0].sigmas if deciding else None,
            record=True,
            sample_every=every or RING_STEPS,
            capacity=max(RING_STEPS, 2 * self.model.steps_per_execution),
            steps_at_once=self.model.steps_per_execution,
            xla=bool(self.model.jit_compile),
        )
        self._identity, self._prepared_for = identity, dict(self.requests)
        self._pipeline = Pipeline(settings)
        keras_private.build_optimizer(self.model)
        logs = all(request.logs for request in wanted)
        step = InstrumentedStep(self.model, self.model.train_step, self._pipeline, logs=logs)
        self._every_step = self._sampled_step = keras_private.compile_train_step(self.model, step)
        if every:
            step = InstrumentedStep(self.model, self.model.train_step, self._pipeline, sample=True, logs=logs)
            self._sampled_step = keras_private.compile_train_step(self.model, step)
        self._harvest = Harvest(self._pipeline, step, trace=self.trace)

    def _guarded_function(self) -> Callable[[Any], Any]:
        def train_function(iterator):
            if getattr(self.model, "history", None) is not self.history:
                self.finish()  # an earlier fit was interrupted outside of a step, and this is another fit
                if self.model.train_function is None:
                    self.model.make_train_function()
                return self.model.train_function(iterator)
            try:
                return self._execute(iterator)
            except _END_OF_DATA:
                raise
            except BaseException as error:
                self._interrupt(error)
                raise

        return train_function

    def _execute(self, iterator: Any) -> Any:
        function = self._sampled_step if self._harvest.before_execution() else self._every_step
        steps = self.model.steps_per_execution
        if not self._keeps_batches:
            return self._run(function, iterator, steps)
        held = [batch for _, batch in zip(range(steps), iterator, strict=False)]
        if not held:
            raise StopIteration
        for batch in held:  # one by one, so that who looks at a step finds the weights of that moment
            self.batch = batch
            logs = self._run(function, [batch], 1)
            if self.model.stop_training:
                break
        return logs

    def _run(self, function: Callable[[Any], Any], iterator: Any, steps: int) -> Any:
        logs = function(iterator)
        if self._harvest.after_execution(steps):
            self.collect()
        for request in self._checked:
            if self._harvest.next_step % request.check_every < steps:
                request.check()
        return logs

    def _interrupt(self, error: BaseException) -> None:
        self.finish()
        self._add_event("interrupted", self._harvest.epoch, type(error).__name__, {"message": str(error)[:500]})

    # -- during the fit --------------------------------------------------------------------------
    def epoch_begins(self, epoch: int) -> None:
        """Note that the next steps belong to another epoch."""
        self._harvest.begin_epoch(epoch)

    def epoch_ends(self, epoch: int, logs: dict[str, Any]) -> None:
        """Take the record of the epoch and note its logs."""
        self.collect()
        numbers = {name: float(value) for name, value in logs.items() if np.ndim(value) == 0}
        self._add_event("epoch", epoch, "", {"logs": numbers})

    def add_event(self, kind: str, reason: str, details: dict[str, Any]) -> Event:
        """Note what a callback did, at the last step."""
        self.collect()
        return self._add_event(kind, self._harvest.epoch, reason, details)

    def _add_event(self, kind: str, epoch: int, reason: str, details: dict[str, Any]) -> Event:
        last = {name: int(self.trace.steps[name][-1]) if len(self.trace) else 0 for name in ("step", "batch")}
        event = Event(kind, last["step"], epoch, last["batch"], reason, details)
        self.trace.add_event(event)
        return event

    @property
    def trace(self) -> Trace:
        """The record as far as it has been taken from the device; `collect` brings it up to date."""
        return self._trace if self._harvest is None else self._harvest.trace

    def collect(self) -> Trace:
        """Bring the trace up to date with the device and return it."""
        if self._harvest is not None:
            before = len(self.trace)
            self._harvest.collect()
            for event in skip_events(self.trace, before):
                self.trace.add_event(event)
        return self.trace

    @property
    def steps_run(self) -> int:
        """How many steps have run, by the host's own count."""
        return 0 if self._harvest is None else self._harvest.next_step

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline, once the fit has begun."""
        return self._pipeline


def join(callback: Any, model: keras.Model, request: Request, *, previous: Attachment | None) -> Attachment:
    """Join a callback to the fit that begins on a model, together with the callbacks that joined before.

    Args:
        callback: The callback.
        model: Its model.
        request: What it asks.
        previous: The attachment of the callback's last fit, reused if nothing has changed.

    Raises:
        ValueError: The model is not compiled, is spread in a way that is not supported, or a callback of the same class
            has joined already.
    """
    if not getattr(model, "compiled", False) or getattr(model, "optimizer", None) is None:
        raise ValueError(
            f"{type(callback).__name__} needs a compiled model with an optimizer. Received: {model!r}, which has none. "
            "Call model.compile(optimizer=..., loss=...) before model.fit."
        )
    require_supported(model.distribute_strategy, type(callback).__name__)
    current = _ACTIVE.get(model)
    if current is not None and (current.active or _of_earlier_fit(current, model)):
        if current.active:
            current.finish()
        current = None
    if current is None:
        reusable = previous is not None and previous.model is model
        current = previous if reusable else Attachment(model)
        current.history = getattr(model, "history", None)
        current.requests = {}
        _ACTIVE[model] = current
    twin = next((other for other in current.requests if type(other) is type(callback)), None)
    if twin is not None:
        _ACTIVE.pop(model, None)
        raise ValueError(
            f"The callbacks of a fit may hold one {type(callback).__name__}. Received: two. "
            "Two would act twice on every step; keep one, with the settings you want."
        )
    current.requests[callback] = request
    return current


def is_attached(model: keras.Model) -> bool:
    """Say whether callbacks have joined the running fit of a model, so that their pipeline is in charge."""
    current = _ACTIVE.get(model)
    return current is not None and current.active


def _of_earlier_fit(current: Attachment, model: keras.Model) -> bool:
    return current.history is not getattr(model, "history", None)
