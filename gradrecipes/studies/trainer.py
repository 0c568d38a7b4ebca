"""Train arm after arm and seed after seed, and trace a train step once where separate scripts trace it every time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.callbacks.gradient_guard import GradientGuard
from gradrecipes.compat import model_reuse
from gradrecipes.compat.keras_private import optimizers_of
from gradrecipes.studies.arm import Arm, Objective, Run
from gradrecipes.studies.same_program import difference
from gradrecipes.studies.split import Split

# Their slots begin at values that do not depend on the weights, whether they are made before the trace or within it.
_PLAIN_OPTIMIZERS_TEXT = (
    "SGD Adam AdamW Adamax Adafactor Adadelta Adagrad Ftrl Lamb Lion Nadam RMSprop LossScaleOptimizer"
)
PLAIN_OPTIMIZERS = frozenset(_PLAIN_OPTIMIZERS_TEXT.split())
LARGEST = 64 * 2**20  # bytes of training data; an epoch of more takes so long that the pipeline does not matter
BATCH = 32  # samples, where `fit` is not told: Keras' own
# These change which samples `fit` takes or what it makes of them, beyond order and batches.
LEFT_TO_KERAS = ("steps_per_epoch", "validation_steps")
NONFINITE = re.compile(r"\b(nan|inf|infinite|non-?finite|not finite)\b", re.IGNORECASE)


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
        return next(filter(None, (model_reuse.hidden_state(one, known) for one in self.functions)), None)

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
        with model_reuse.names_as_in_a_fresh_process():
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
        model_reuse.build_whole(model, self._split.x, self._split.y)
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


class Feed:
    """Make the data arguments of `fit`: the batches it would make itself, in its own order, but ready.

    For arrays `fit` builds a pipeline that shuffles, slices and gathers, and starts it twice an epoch; for a small
    net that takes longer than the training. Under a global seed the order is the same in every epoch, so one pass
    of that pipeline is taken down, and fed as a plain sequence of batches. The numbers are the same to the bit. Where
    that does not hold, with data of more than 64 MB, or with a strategy of several replicas, `fit` gets the arrays.

    Args:
        split: The data.
    """

    def __init__(self, split: Split):
        self._split = split
        self._made: dict[tuple[str, int], Any] = {}
        arrays = keras.tree.flatten((split.x, split.y))
        small = sum(array.nbytes for array in arrays) <= LARGEST
        self._small = small and all(array.dtype.kind in "biuf" for array in arrays)

    def arguments(self, model: keras.Model, fit: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments of `fit` with the data among them.

        To be called when seed and model are set, for the run that follows.
        """
        split, rest = self._split, dict(fit)
        if not self._ready(model, rest):
            return {**rest, "x": split.x, "y": split.y, "validation_data": (split.x_val, split.y_val)}
        batch_size = rest.pop("batch_size", None) or BATCH
        shuffle, weights = rest.pop("shuffle", True), rest.pop("class_weight", None)
        whole = model_reuse.epoch_in_order(split.x, split.y, shuffle=shuffle, class_weight=weights)
        for_validation = rest.pop("validation_batch_size", None) or batch_size
        return {
            **rest,
            "x": batches(whole, batch_size),
            "shuffle": False,  # they are in the order of the shuffle
            "validation_data": self._unshuffled("val", split.x_val, split.y_val, for_validation),
        }

    def test_arguments(self, model: keras.Model, fit: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the arguments of `evaluate` for the test data, or None without any."""
        split, size = self._split, fit.get("validation_batch_size") or fit.get("batch_size") or BATCH
        if split.x_test is None:
            return None
        if not self._ready(model, fit):
            return {"x": split.x_test, "y": split.y_test, "batch_size": size}
        return {"x": self._unshuffled("test", split.x_test, split.y_test, size)}

    def _ready(self, model: keras.Model, fit: Mapping[str, Any]) -> bool:
        shuffle = fit.get("shuffle", True)
        known = isinstance(shuffle, bool) and not any(fit.get(name) for name in LEFT_TO_KERAS)
        alone = model.distribute_strategy.num_replicas_in_sync == 1 and not tf.distribute.has_strategy()
        count = len(keras.tree.flatten(self._split.x)[0])
        return self._small and known and alone and (not shuffle or model_reuse.orders_repeat(count))

    def _unshuffled(self, name: str, x: Any, y: Any, batch_size: int) -> Any:
        if (name, batch_size) not in self._made:
            whole = model_reuse.epoch_in_order(x, y, shuffle=False)
            self._made[name, batch_size] = batches(whole, batch_size)
        return self._made[name, batch_size]


def batches(whole: Any, batch_size: int) -> Any:
    """Return the batches of all samples, as a dataset that is started at next to no cost."""
    count = int(tf.shape(keras.tree.flatten(whole)[0])[0])
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    # As in Keras' own pipeline: where all batches are full, their size is known to the trace.
    even = tf.data.Dataset.from_tensor_slices(whole).batch(batch_size, drop_remainder=count % batch_size == 0)
    return even.with_options(options)


class EndOfLostRuns(keras.callbacks.Callback):
    """End a training at the first epoch that leaves a weight which is not finite: it cannot come back.

    Attributes:
        ended: Whether it did.
    """

    def __init__(self):
        super().__init__()
        self.ended = False

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Look at the weights if a number of the epoch is not finite."""
        numbers = [value for value in (logs or {}).values() if np.ndim(value) == 0]
        if not all(math.isfinite(float(value)) for value in numbers) and not finite_weights(self.model):
            self.ended = self.model.stop_training = True


def finite_weights(model: keras.Model) -> bool:
    """Say whether every weight and moving statistic of a model is finite."""
    weights = (np.asarray(weight, np.float32) for weight in model.get_weights() if weight.dtype.kind in "fV")
    return all(np.isfinite(weight).all() for weight in weights)


def why_diverged(
    model: keras.Model,
    history: Mapping[str, Sequence[float]],
    callbacks: Iterable[Any],
    objective: float,
) -> str | None:
    """Return why a run counts as diverged, or None.

    Args:
        model: The model after the run.
        history: What `fit` returned.
        callbacks: Those of the run.
        objective: The value that the study compares.
    """
    for callback in callbacks:
        if isinstance(callback, GradientGuard) and callback.stop_reason is not None:
            return f"the guard stopped it: {callback.stop_reason}"
    losses = history.get("loss", [])
    if losses and not math.isfinite(losses[-1]):
        return f"the loss is {losses[-1]} in epoch {len(losses)}"
    if not finite_weights(model):
        return "a weight is not finite"
    if not math.isfinite(objective):
        return f"the objective is {objective}"
    return None


def raised_by_numbers(error: BaseException) -> bool:
    """Say whether an error is one by which something in the training reports NaN or Inf."""
    kinds = (FloatingPointError, tf.errors.InvalidArgumentError, RuntimeError)
    return isinstance(error, kinds) and NONFINITE.search(str(error)) is not None
