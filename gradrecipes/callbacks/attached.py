"""What every callback of a fit's pipeline has in common: it joins the fit when Keras hands it the model."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import keras

from gradrecipes.compat.keras_private import calling_list
from gradrecipes.core.trace import Trace
from gradrecipes.training.fit.prepared_step import Request
from gradrecipes.training.fit.session import FitSession, innermost
from gradrecipes.training.step.replicas import require_supported

RECENT_MODELS = 4  # fitted last, whose prepared steps are kept: models that are fitted in turn are traced once each


class AttachedCallback(keras.callbacks.Callback):
    """Join the pipeline of a fit when Keras hands over the model, and leave it when the fit ends.

    Args:
        request: What this callback asks of the pipeline.
    """

    def __init__(self, request: Request):
        super().__init__()
        self._request = request
        self._session: FitSession | None = None
        self._recent: list[FitSession] = []  # of the models that were fitted last
        self._copied_trace = Trace()  # that of the callback of which this one is a copy

    @property
    def trace(self) -> Trace:
        """The record of the fit, up to date whenever it is read; an empty one before the first fit."""
        return self._copied_trace if self._session is None else self._session.collect()

    def set_model(self, model: keras.Model) -> None:
        """Join the fit that begins on this model."""
        super().set_model(model)
        previous = next((session for session in self._recent if session.model is model), None)
        self._session = join(self, model, self._request, previous=previous)
        others = [session for session in self._recent if session is not self._session and session.model is not model]
        self._recent = [self._session, *others][:RECENT_MODELS]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the pipeline in place."""
        self._session.start(calling_list("on_train_begin"))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the model its own train function back."""
        self._session.finish()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Assign the steps from here on to an epoch."""
        if self._leads:
            self._session.epoch_begins(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Bring the record up to date."""
        if self._leads:
            self._session.epoch_ends(epoch, logs or {})

    @property
    def _leads(self) -> bool:
        return self._session.active and self._session.leads(self)

    def __getstate__(self) -> dict[str, Any]:
        copied = {"_session": None, "_recent": [], "_model": None, "_copied_trace": copy.deepcopy(self.trace)}
        return {**self.__dict__, **copied}


# By the id of the model; weak, since `evaluate` and `predict` hand the model over too, and no fit follows.
_JOINING: weakref.WeakValueDictionary[int, FitSession] = weakref.WeakValueDictionary()


def join(callback: Any, model: keras.Model, request: Request, *, previous: FitSession | None) -> FitSession:
    """Join a callback to the fit that begins on a model, together with the callbacks that joined before.

    Args:
        callback: The callback.
        model: Its model.
        request: What it asks.
        previous: The session of the callback's last fit, reused if nothing has changed.

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
    running = innermost(model)  # those that broke off are finished with this
    if previous is not None and previous.active and previous.model is model and running is not None:
        return previous  # `evaluate` or `predict` within the fit
    mark = (calling_list("set_model"), getattr(model, "history", None))
    current = _JOINING.get(id(model))
    if current is None or not current.registers(model, *mark):
        reusable = previous is not None and previous.model is model
        current = previous if reusable else FitSession(model)
        current.register(*mark)
        _JOINING[id(model)] = current
    if any(type(other) is type(callback) for other in current.requests):
        del _JOINING[id(model)]
        raise ValueError(
            f"The callbacks of a fit may hold one {type(callback).__name__}. Received: two. "
            "Two would act twice on every step; keep one, with the settings you want."
        )
    current.requests[callback] = request
    return current
