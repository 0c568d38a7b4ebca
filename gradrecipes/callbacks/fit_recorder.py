"""Record the fits of a program that knows nothing of it: the program's own run comes first."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import Probes
from gradrecipes.training.fit.prepared_step import Request

_LOG = logging.getLogger(__name__)


class FitRecorder(AttachedCallback):
    """Record what `GradientMonitor` records, add nothing to the logs, and leave a fit alone that cannot be recorded.

    Where a train step applies its updates in a function or condition of its own, or where anything that the record
    needs raises an error, the fit goes on as a plain one, with the same result.

    Args:
        sample_every: Steps from one sample to the next, or None for what suits the size of the model.

    Attributes:
        trace: The record, as far as it came.
        not_recorded: Why the fit is not recorded, or None.

    Example:
        >>> recorder = FitRecorder(sample_every=50)
        >>> _ = model.fit(x, y, verbose=0, callbacks=[recorder])
        >>> recorder.not_recorded is None
        True
    """

    def __init__(self, *, sample_every: int | None = None):
        super().__init__(Request(samples=True, sample_every=sample_every, log=None, optional=True))
        self._refused: str | None = None

    @property
    def not_recorded(self) -> str | None:
        """Why the fit is not recorded, or None."""
        return self._refused if self._session is None else self._refused or self._session.not_instrumented

    def set_model(self, model: keras.Model) -> None:
        """Join the fit that begins on this model, if that is possible."""
        self._refused = None
        self._try(lambda: super(FitRecorder, self).set_model(model))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the pipeline in place, if that is possible."""
        self._try(lambda: super(FitRecorder, self).on_train_begin(logs))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the model its own train function back."""
        self._try(lambda: super(FitRecorder, self).on_train_end(logs))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Assign the steps from here on to an epoch."""
        self._try(lambda: super(FitRecorder, self).on_epoch_begin(epoch, logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Bring the record up to date."""
        self._try(lambda: super(FitRecorder, self).on_epoch_end(epoch, logs))

    def _try(self, act: Callable[[], None]) -> None:
        if self._refused is not None:
            return
        try:
            act()
        except Exception as error:  # the program of somebody else runs here
            self._refused = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            _LOG.debug("A fit of %r is not recorded.", self.model, exc_info=True)


Look = Callable[[keras.Model, dict[str, Any], int | None], Probes]
RECENT_MODELS = 4  # fitted last, whose recorders are kept: programs that fit some models in turn are traced once each


@dataclass(eq=False)
class WatchedModel:
    """What is known of the fits of one model.

    Attributes:
        name: Name of the model.
        line: Number of the line of the script that fitted it first, or None.
        trace: The record of all its fits.
        not_recorded: Why it is not recorded, or None.
    """

    name: str
    line: int | None
    model: weakref.ref
    recorder: Any = None
    probes: Probes = field(default_factory=Probes)
    not_recorded: str | None = None
    kept: Trace = field(default_factory=Trace)

    def keep(self) -> None:
        """Take the record out of the recorder, as far as it came."""
        if self.recorder is None:
            return
        self.kept = self.recorder.trace
        self.kept.probes = self.kept.probes.filled_from(self.probes)
        self.not_recorded = getattr(self.recorder, "not_recorded", None)


class WatchedFits:
    """Keep the record of every model that is fitted while watching.

    Args:
        make_recorder: Makes a recorder: a callback with a `trace`.
        own: The class of a callback that a program may bring itself; its record is taken then.
        look: Looks at (model, arguments of its first fit, number of its steps or None) before the first step, without
            changing anything, and returns what joins the `probes` of the trace; None for no look.
        script: The file whose lines name the fits, or None.
    """

    def __init__(
        self,
        make_recorder: Callable[[], Any],
        *,
        own: type | None = None,
        look: Look | None = None,
        script: Path | None = None,
    ):
        self._make_recorder = make_recorder
        self._own = own
        self._look = look
        self._script = None if script is None else str(script)
        self._watched: list[WatchedModel] = []
        self._recent: list[WatchedModel] = []  # the model that was fitted last comes first

    @property
    def models(self) -> list[WatchedModel]:
        """The models that were fitted, in the order of their first fits."""
        for watched in self._watched:
            watched.keep()
        return list(self._watched)

    @property
    def traces(self) -> list[tuple[str, Trace]]:
        """(name of the model, its Trace) of every model that is recorded."""
        return [(watched.name, watched.kept) for watched in self.models if len(watched.kept)]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch every `keras.Model.fit` that is called within the `with` block."""
        inherited = "fit" not in vars(keras.Model)
        original = keras.Model.fit
        signature = inspect.signature(original)
        watched = self

        def fit(model, *args, **kwargs):
            positional, named = (model, *args), kwargs
            try:
                bound = signature.bind(model, *args, **kwargs)
                watched.join(model, bound.arguments)
                positional, named = bound.args, bound.kwargs
            except Exception:  # wrong arguments, which the original refuses, or callbacks of an unknown kind
                _LOG.debug("A fit of %r is not watched.", model, exc_info=True)
            return original(*positional, **named)

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
        """Add a recorder to the callbacks of a fit, unless the program brings its own."""
        callbacks = arguments.get("callbacks")
        if isinstance(callbacks, keras.callbacks.CallbackList):
            present = callbacks.callbacks
        else:
            present = [] if callbacks is None else list(keras.tree.flatten(callbacks))
        own = None if self._own is None else next((one for one in present if isinstance(one, self._own)), None)
        watched = next((one for one in reversed(self._watched) if one.model() is model), None)
        is_first = watched is None
        if watched is not None:
            watched.keep()
            if watched.not_recorded is not None:
                return
        recorder = own or (None if watched is None else watched.recorder)
        if watched is None or watched.recorder is None or (own is not None and own is not watched.recorder):
            watched = WatchedModel(model.name, self._line(), weakref.ref(model), recorder or self._make_recorder())
            self._watched.append(watched)
        self._let_go(watched)
        added = [] if own is not None else [watched.recorder]
        if is_first and self._look is not None:
            added.append(_Looking(self._look, arguments, watched))
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

    def _let_go(self, current: WatchedModel) -> None:
        """Keep only the records of models that were not fitted lately, so that the models may go."""
        self._recent = [current, *(watched for watched in self._recent if watched is not current)]
        for watched in self._recent[1:]:
            if watched.recorder is current.recorder or watched in self._recent[RECENT_MODELS:]:
                watched.keep()
                watched.recorder = None
        self._recent = [watched for watched in self._recent if watched.recorder is not None]

    def _line(self) -> int | None:
        frame = sys._getframe(2)
        while frame is not None and self._script is not None:
            if frame.f_code.co_filename == self._script:
                return frame.f_lineno
            frame = frame.f_back
        return None


class _Looking(keras.callbacks.Callback):
    """Look at a model when Keras has built it and no step has run; then be of no more use."""

    def __init__(self, look: Look, arguments: dict[str, Any], watched: WatchedModel):
        super().__init__()
        self._look, self._watched = look, watched
        self._arguments: dict[str, Any] | None = dict(arguments)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._arguments is None:
            return
        arguments, self._arguments = self._arguments, None
        epochs, of_epoch = self.params.get("epochs"), self.params.get("steps")
        steps = None if not epochs or not of_epoch else epochs * of_epoch
        try:
            self._watched.probes = self._look(self.model, arguments, steps)
        except Exception:  # the script of somebody else runs here
            _LOG.debug("The look at %r before its fit failed.", self.model, exc_info=True)
