"""Put a monitor into every `fit` of a program that knows nothing of it."""

from __future__ import annotations

import contextlib
import inspect
import logging
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import Probes

logger = logging.getLogger(__name__)

Look = Callable[[keras.Model, dict[str, Any]], Probes]


class WatchedFits:
    """Keep the record of every model that is fitted while watching.

    Args:
        make_monitor: Makes a monitor: a callback with a `trace`.
        look: Looks at (model, arguments of its first fit) before the first step, without changing anything, and returns
            what joins the `probes` of the trace; None for no look.

    Attributes:
        traces: (name of the model, its Trace), in the order in which the models were first fitted.
    """

    def __init__(self, make_monitor: Callable[[], Any], *, look: Look | None = None):
        self._make_monitor = make_monitor
        self._look = look
        self._probes: list[Probes] = []
        self._kind = type(make_monitor())
        self._models: list[weakref.ref] = []
        self._names: list[str] = []
        self._traces: list[Trace] = []
        self._monitor: Any = None

    @property
    def traces(self) -> list[tuple[str, Trace]]:
        """(name of the model, its Trace) of every fit so far."""
        if self._monitor is not None:
            self._keep(self._monitor.trace)
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
        fits_before = len(self._models)
        monitor = self._monitor_of(model, own)
        added = [] if own is not None else [monitor]
        if self._look is not None and len(self._models) > fits_before:
            added.append(_Looking(self._look, arguments, partial(self._probes.__setitem__, len(self._probes) - 1)))
        if not added:
            return
        if isinstance(callbacks, keras.callbacks.CallbackList):
            # A list of its own, since a list decides when it is made whether its callbacks run in other threads;
            # made without the model, which the callbacks of the script have been given already.
            arguments["callbacks"] = keras.callbacks.CallbackList([*added, *present], **callbacks.params)
            for callback in added:
                callback.set_model(model)
        else:
            arguments["callbacks"] = [*added, *present]

    def _monitor_of(self, model: keras.Model, own: Any) -> Any:
        last = self._models[-1]() if self._models else None
        if own is None and last is model:
            return self._monitor
        if self._monitor is not None:
            self._keep(self._monitor.trace)  # only the record is kept; the model may go
        self._models.append(weakref.ref(model))
        self._names.append(model.name)
        self._traces.append(Trace())
        self._probes.append(Probes())
        self._monitor = self._make_monitor() if own is None else own
        return self._monitor

    def _keep(self, trace: Trace) -> None:
        trace.probes = trace.probes.filled_from(self._probes[-1])
        self._traces[-1] = trace


class _Looking(keras.callbacks.Callback):
    """Look at a model when Keras has built it and no step has run; then be of no more use."""

    def __init__(self, look: Look, arguments: dict[str, Any], keep: Callable[[Probes], None]):
        super().__init__()
        self._look, self._keep = look, keep
        self._arguments: dict[str, Any] | None = dict(arguments)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._arguments is None:
            return
        arguments, self._arguments = self._arguments, None
        try:
            self._keep(self._look(self.model, arguments))
        except Exception:  # the script of somebody else runs here
            logger.debug("The look at %r before its fit failed.", self.model, exc_info=True)
