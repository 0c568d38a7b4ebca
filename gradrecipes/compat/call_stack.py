"""Which fit it is that calls, read from the call stack: Keras tells neither its callbacks nor its train function."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

import keras

_CALLERS = 6  # frames between a method of a list of callbacks and what a callback does in it


def calling_list(method: str) -> keras.callbacks.CallbackList | None:
    """Return the list of callbacks whose method of this name called, through a few others, or None."""
    for _, frame in zip(range(_CALLERS), _stack(), strict=False):
        if frame.f_code.co_name == method:
            caller = frame.f_locals.get("self")
            if isinstance(caller, keras.callbacks.CallbackList):
                return caller
    return None


def called_by_fit(callback_list: keras.callbacks.CallbackList | None) -> bool:
    """Say whether the fit of this list calls, and not another fit or `train_on_batch`, within it or after it."""
    for frame in _stack():
        if frame.f_code.co_name == "train_on_batch":
            return False
        found = _list_of(frame)
        if found is not None:
            return found is callback_list
    return True  # a loop of the user's own, which keeps its callbacks elsewhere


def is_running(callback_list: keras.callbacks.CallbackList | None) -> bool:
    """Say whether the fit of this list is among those that call: one that broke off is not, though it may be held."""
    return callback_list is not None and any(_list_of(frame) is callback_list for frame in _stack())


def _list_of(frame: FrameType) -> keras.callbacks.CallbackList | None:
    if "callbacks" not in frame.f_code.co_varnames:
        return None
    found = frame.f_locals.get("callbacks")
    return found if isinstance(found, keras.callbacks.CallbackList) else None


def _stack() -> Iterator[FrameType]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
