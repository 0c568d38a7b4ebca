"""Put a monitor into every `fit` of a program that knows nothing of it."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras

from gradrecipes.core.trace import Trace


class WatchedFits:
    """Keep the record of every model that is fitted while watching.

    Args:
        make_monitor: Makes a monitor: a callback with a `trace`.

    Attributes:
        traces: (name of the model, its Trace), in the order in which the models were first fitted.
    """

    def __init__(self, make_monitor: Callable[[], Any]):
        self._make_monitor = make_monitor
        self._kind = type(make_monitor())
        self._models: list[weakref.ref] = []
        self._names: list[str] = []
        self._traces: list[Trace] = []
        self._monitor: Any = None

    @property
    def traces(self) -> list[tuple[str, Trace]]:
        """(name of the model, its Trace) of every fit so far."""
        if self._monitor is not None:
            self._traces[-1] = self._monitor.trace
        return [(name, trace) for name, trace in zip(self._names, self._traces, strict=True) if len(trace)]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch every `keras.Model.fit` that is called within the `with` block."""
        inherited = "fit" not in vars(keras.Model)
        original = keras.Model.fit
        signature = inspect.signature(original)
        watched = self

        def fit(model, *args, **kwargs):
            bound = signature.bind(model, *args, **kwargs)
            watched.join(model, bound.arguments)
            return original(*bound.args, **bound.kwargs)

        fit.__doc__, fit.__name__, fit.__signature__ = original.__doc__, "fit", signature
        keras.Model.fit = fit
        try:
            yield
        finally:
            if inherited:
                del keras.Model.fit
            else:
                keras.Model.fit = original

    def join(self, model: keras.Model, arguments: dict[str, Any]) -> None:
        """Add a monitor to the callbacks of a fit, unless the program brings its own."""
        callbacks = arguments.get("callbacks")
        if isinstance(callbacks, keras.callbacks.CallbackList):
            present = callbacks.callbacks
        else:
            present = [] if callbacks is None else list(keras.tree.flatten(callbacks))
        own = next((one for one in present if isinstance(one, self._kind)), None)
        monitor = self._monitor_of(model, own)
        if own is not None:
            return
        if isinstance(callbacks, keras.callbacks.CallbackList):
            # A list of its own, since a list decides when it is made whether its callbacks run in other threads;
            # made without the model, which the callbacks of the script have been given already.
            arguments["callbacks"] = keras.callbacks.CallbackList([monitor, *present], **callbacks.params)
            monitor.set_model(model)
        else:
            arguments["callbacks"] = [monitor, *present]

    def _monitor_of(self, model: keras.Model, own: Any) -> Any:
        last = self._models[-1]() if self._models else None
        if own is None and last is model:
            return self._monitor
        if self._monitor is not None:
            self._traces[-1] = self._monitor.trace  # only the record is kept; the model may go
        self._models.append(weakref.ref(model))
        self._names.append(model.name)
        self._traces.append(Trace())
        self._monitor = self._make_monitor() if own is None else own
        return self._monitor
