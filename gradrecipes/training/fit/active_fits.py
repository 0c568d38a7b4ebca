"""The fits that callbacks are attached to, one within the other, by model, and what each callback asks of its fit."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import keras

if TYPE_CHECKING:
    from gradrecipes.gradients.clipping.method import Clipping


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


SAMPLE_EVERY, SAMPLE_EVERY_OF_LARGE = 100, 200  # steps, so that samples cost about 1% of the training
LARGE_MODEL = 1_000_000  # trainable parameters


@dataclass(frozen=True)
class Request:
    """What one callback asks of the fit session.

    Args:
        clipping: How to clip, or None.
        skip: Whether non-finite steps are to be left out.
        sigmas: Standard deviations from which on a finite step is an outlier and left out; None for never.
        samples: Whether samples are to be taken.
        sample_every: Steps from sample to sample; None for what suits the size of the model.
        log: Whether readings join the logs. True: on, unless another callback says False. None: no preference.
        keep_batches: Whether the batch of the last step is to be held; steps of one execution are then run one by one.
        keep_reference: Whether a batch is to be kept, on which a step can be tried again.
        fused: Whether the update is to go through TensorFlow's fused kernels.
        check: Called on the host between executions.
        before_look: Called before the weights are saved, evaluated or read while the fit runs.
        check_every: Steps from one check to the next: the host waits for the device there.
        optional: Whether the fit goes on without the callback where its train step cannot be instrumented.
        renewed: Called when the step was prepared anew in the middle of the fit: what a callback keeps of pipeline and
            weights is of the past then.
    """

    clipping: Clipping | None = None
    skip: bool = False
    sigmas: float | None = None
    samples: bool = False
    sample_every: int | None = None
    log: bool | None = True
    keep_batches: bool = False
    keep_reference: bool = False
    fused: bool = False
    check: Callable[[], None] | None = None
    before_look: Callable[[], None] | None = None
    check_every: int = 8
    optional: bool = False
    renewed: Callable[[], None] | None = None

    def sample_interval(self, model: Any) -> int:
        """Return the steps from one sample to the next: a sample costs as much as one to two steps."""
        if self.sample_every is not None:
            return self.sample_every
        large = sum(math.prod(variable.shape) for variable in model.trainable_variables) > LARGE_MODEL
        return SAMPLE_EVERY_OF_LARGE if large else SAMPLE_EVERY
