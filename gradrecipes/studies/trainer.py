"""Train arm after arm and seed after seed, and trace a train step once where separate scripts trace it every time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.compat import keras_reuse
from gradrecipes.compat.keras_private import optimizers_of
from gradrecipes.studies.arm import Arm
from gradrecipes.studies.feed import Feed
from gradrecipes.studies.lost import EndOfLostRuns, raised_by_numbers, why_diverged
from gradrecipes.studies.objective import Objective
from gradrecipes.studies.run import Run
from gradrecipes.studies.same_program import difference
from gradrecipes.studies.split import Split

# Their slots begin at values that do not depend on the weights, whether they are made before the trace or within it.
_PLAIN_OPTIMIZERS_TEXT = (
    "SGD Adam AdamW Adamax Adafactor Adadelta Adagrad Ftrl Lamb Lion Nadam RMSprop LossScaleOptimizer"
)
PLAIN_OPTIMIZERS = frozenset(_PLAIN_OPTIMIZERS_TEXT.split())


@dataclass
class Traced:
    """A model whose steps were traced, to be trained again with the values of others.

    Args:
        model: The model.
        arm: Name of the arm for which it was built.
        batches: How `fit` was told to cut the data; batches of another size are another trace.
        functions: Its train and test function, as they were after the fit.
    """

    model: keras.Model
    arm: str
    batches: tuple[Any, ...]
    functions: tuple[Any, Any] = field(init=False)

    def __post_init__(self):
        self.functions = (self.model.train_function, self.model.test_function)

    @property
    def flaw(self) -> str | None:
        """Why it cannot be used again, or None."""
        model = self.model
        known = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
        return next(filter(None, (keras_reuse.hidden_state(one, known) for one in self.functions)), None)

    def take(self, fresh: keras.Model) -> None:
        """Put in every value of a model that was built a moment ago."""
        for mine, theirs in ((self.model, fresh), (self.model.optimizer, fresh.optimizer)):
            for variable, value in zip(mine.variables, theirs.variables, strict=True):
                variable.assign(value)
        self.model.reset_metrics()


class Trainer:
    """Run one arm with one seed, as this would, and with the same numbers to the bit, in a fraction of the time:

        keras.utils.set_random_seed(seed)
        model = build(**arm)
        model.fit(x, y, validation_data=(x_val, y_val), ...)

    The model is built anew under its seed. If a model that was trained before is the same program (the same layers,
    joined in the same way, loss, metrics, optimizer and settings; only the values of the variables may differ,
    a learning rate among them), that one gets all values of the new one, slots, counters, moving statistics and seeds
    of dropout included, and is trained in its place: what was traced for it is valid. So a rate is no reason for
    another trace, nor is an initializer, while a clipping bound, a constant of the graph, is. Nothing is used again if
    the step holds state elsewhere, if callbacks have changed the model, or if they put a step of their own in place, as
    monitors and guards do; `Run.note` then says what it was.

    Args:
        build: Called with the arguments of the arm; returns a compiled model.
        split: The data.
        fit: Arguments of `fit`.
        objective: What the study compares.
    """

    def __init__(
        self, build: Callable[..., keras.Model], *, split: Split, fit: Mapping[str, Any], objective: Objective
    ):
        self._build = build
        self._split = split
        self._fit = fit
        self._objective = objective
        self._feed = Feed(split)
        self._traced: list[Traced] = []
        self._unfit: dict[str, str] = {}

    def run(self, name: str, arm: Arm, seed: int) -> Run:
        """Train once.

        Args:
            name: Of the arm.
            arm: The arm.
            seed: For weights, dropout and the order of the samples.
        """
        begun = time.perf_counter()
        keras.utils.set_random_seed(seed)
        with keras_reuse.names_as_in_a_fresh_process():
            model = arm.model(self._build)
        arguments = arm.fit_arguments(self._fit)
        cut = tuple(arguments.get(key) for key in ("batch_size", "validation_batch_size", "class_weight"))
        self._look_at(name, arguments["callbacks"])
        traced, note = self._twin_of(name, model, cut)
        if traced is not None:
            traced.take(model)
            model = traced.model
        whole = False
        try:
            run, whole = self._train(model, arguments)
        finally:
            spoilt = traced is not None and traced.functions != (model.train_function, model.test_function)
            if not whole or spoilt:  # what was broken off in the middle is not used again
                self._forget(model)
        if whole and traced is None and name not in self._unfit:
            note = self._keep(name, model, cut) or note
        seconds = time.perf_counter() - begun
        return Run(name, seed, *run, seconds=seconds, reused=traced is not None, note=note)

    def _train(self, model: keras.Model, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], bool]:
        """Return history, test scores and why it diverged; and whether the fit came to its end."""
        end = EndOfLostRuns()
        callbacks = [*arguments.pop("callbacks"), end]
        ready = self._feed.arguments(model, arguments)
        try:
            history = model.fit(**ready, callbacks=callbacks, verbose=0).history
        except Exception as error:
            if not raised_by_numbers(error):
                raise
            return ({}, {}, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"), False
        history = {
            name: [float(v) for v in values] for name, values in history.items() if not any(map(np.ndim, values))
        }
        test = {}
        if (rows := self._feed.test_arguments(model, arguments)) is not None:
            scores = model.evaluate(**rows, verbose=0, return_dict=True)
            test = {f"test_{metric}": float(value) for metric, value in scores.items() if not np.ndim(value)}
        return (history, test, why_diverged(model, history, callbacks, self._objective.of(history, test))), True

    # -- using steps again ---------------------------------------------------------------------------
    def _look_at(self, name: str, callbacks: list[Any]) -> None:
        attached = next((one for one in callbacks if isinstance(one, AttachedCallback)), None)
        if attached is not None:
            self._unfit[name] = f"no compiled step is used again: {type(attached).__name__} puts its own in place"

    def _twin_of(self, name: str, model: keras.Model, cut: tuple[Any, ...]) -> tuple[Traced | None, str]:
        """Return a traced model that is the same program, or None and what is in the way."""
        if name in self._unfit:
            return None, self._unfit[name]
        if not self._traced:
            return None, ""
        note = ""
        keras_reuse.build_whole(model, self._split.x, self._split.y)
        alike = [traced for traced in self._traced if traced.batches == cut]
        for traced in sorted(alike, key=lambda traced: traced.arm != name):
            found = difference(traced.model, model)
            if found is None:
                return traced, ""
            if traced.arm == name:
                note = f"no compiled step was used again: the model is not that of the seed before ({found})"
        return None, note

    def _keep(self, name: str, model: keras.Model, cut: tuple[Any, ...]) -> str:
        traced = Traced(model, name, cut)
        flaw = _unknown_optimizer(model) or traced.flaw
        if flaw is None:
            self._traced = [one for one in self._traced if one.arm != name] + [traced]
            return ""
        self._unfit[name] = f"no compiled step is used again: {flaw}"
        return self._unfit[name]

    def _forget(self, model: keras.Model) -> None:
        self._traced = [one for one in self._traced if one.model is not model]


def _unknown_optimizer(model: keras.Model) -> str | None:
    optimizers = optimizers_of(model)
    if len(optimizers) > 1:
        return "the model has several optimizers"
    for optimizer in (model.optimizer, getattr(model.optimizer, "inner_optimizer", None)):
        kind = type(optimizer)
        known = kind.__name__ in PLAIN_OPTIMIZERS and kind.__module__.partition(".")[0] == "keras"
        if optimizer is not None and not known:
            return f"how the slots of the optimizer {kind.__name__} begin is not known"
    return None
