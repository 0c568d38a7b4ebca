"""Bring the callbacks of one fit together: Keras hands them the model one after the other."""

from __future__ import annotations

import weakref
from typing import Any

import keras

from gradrecipes.compat.call_stack import calling_list
from gradrecipes.training.fit.active_fits import innermost
from gradrecipes.training.fit.request import Request
from gradrecipes.training.fit.session import FitSession
from gradrecipes.training.step.replicas import require_supported

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
