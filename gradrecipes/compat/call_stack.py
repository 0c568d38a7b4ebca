"""Which fit calls, read from the call stack: Keras passes it neither to callbacks nor to the train function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

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


class FitCaller:
    """Return whether the fit of a list of callbacks calls, without a search of the stack at every step.

    Args:
        callback_list: Returns the list, or None where it is not known.
    """

    def __init__(self, callback_list: Callable[[], Any]):
        self._list = callback_list
        self._known: tuple[int, Any] | None = None  # the frame that called last, if it is the fit's own

    def calls(self) -> bool:
        """Return whether the fit called the function that calls this, and not another fit or `train_on_batch`."""
        frame = sys._getframe(2)
        if self._known == (id(frame), frame.f_code):
            return True
        callback_list = self._list()
        if callback_list is not None and _list_of(frame) is callback_list:
            self._known = id(frame), frame.f_code
            return True
        return _called_by_fit(callback_list)


def runs_in_fit(callback_list: keras.callbacks.CallbackList | None) -> bool:
    """Return whether a method of Keras that trains holds this list; else a loop of the user's own drives it."""
    return any(
        _list_of(frame) is callback_list and frame.f_globals.get("__name__", "").startswith("keras.")
        for frame in _stack()
    )


def called_by_a_fit() -> bool:
    """Return whether a `fit` of Keras is among those that call."""
    return any(
        _list_of(frame) is not None and frame.f_globals.get("__name__", "").startswith("keras.") for frame in _stack()
    )


def _called_by_fit(callback_list: keras.callbacks.CallbackList | None) -> bool:
    for frame in _stack():
        if frame.f_code.co_name == "train_on_batch":
            return False
        found = _list_of(frame)
        if found is not None:
            return found is callback_list
    return True  # a loop of the user's own, which keeps its callbacks elsewhere


def is_running(callback_list: keras.callbacks.CallbackList | None) -> bool:
    """Return whether the fit of this list is among those that call; one that broke off is not."""
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
