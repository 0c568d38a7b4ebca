"""The fits that callbacks are attached to, one within the other, by model."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import keras


class ActiveFit(Protocol):
    """What is known here of a fit session."""

    running: bool

    def break_off(self) -> None:
        """Finish, and note that the fit did not come to its end."""

    def renew(self) -> None:
        """Prepare again in the middle of the fit."""


_ACTIVE: weakref.WeakKeyDictionary[keras.Model, list[Any]] = weakref.WeakKeyDictionary()  # outermost first
_ASIDE: weakref.WeakSet[keras.Model] = weakref.WeakSet()
_REMAKE = "make_train_function"


def enter(model: keras.Model, session: ActiveFit) -> None:
    """Note a session whose fit begins, perhaps within another."""
    _ACTIVE.setdefault(model, []).append(session)
    model.__dict__[_REMAKE] = _remaking(model)


def leave(model: keras.Model, session: ActiveFit) -> None:
    """Forget a session whose fit ends; those within it broke off before."""
    sessions = _ACTIVE[model]
    while sessions[-1] is not session:
        sessions[-1].break_off()
    sessions.pop()
    if not sessions:
        del _ACTIVE[model]
        del model.__dict__[_REMAKE]


def innermost(model: keras.Model) -> Any:
    """Return the session of the innermost fit that runs, or None; those of fits that broke off are finished."""
    while (sessions := _ACTIVE.get(model)) and not sessions[-1].running:
        sessions[-1].break_off()
    return sessions[-1] if sessions else None


def is_attached(model: keras.Model) -> bool:
    """Return whether callbacks have joined the running fit of a model, so that their pipeline is in charge."""
    return model in _ACTIVE and model not in _ASIDE


@contextlib.contextmanager
def set_aside(model: keras.Model) -> Iterator[None]:
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
