"""One arm of the search: a setup with a seed, trained as far as it is asked for, and scored there."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from gradrecipes.callbacks.gradient_guard import GradientGuard
from gradrecipes.compat.keras_private import build_optimizer
from gradrecipes.compat.random_state import global_tensorflow_seed_kept, random_numbers_kept, seed_all
from gradrecipes.rescue.edits import OWN
from gradrecipes.rescue.feed import Feed, with_columns
from gradrecipes.rescue.original import Setup
from gradrecipes.rescue.own_loss import has_plain_loss
from gradrecipes.rescue.task import OWN_LOSS, WORST, Score, Task
from gradrecipes.training.trial_data import weighted

_LOG = logging.getLogger(__name__)

LAST = 20  # steps whose mean loss is the training loss of an arm
FALLING_EPOCHS = 4
NORMAL_SPREAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
PATIENCE = 25  # consecutive steps with a loss that is not finite after which an arm is given up


@dataclass(frozen=True, eq=False)
class Result:
    """Say how an arm did.

    Args:
        steps: Training steps it was asked for.
        score: On what is held back.
        loss: Mean training loss of the last steps; NaN where it broke.
        broken: Step after which the loss stayed not finite, or was so again among the last steps; or None.
        error: What it raised, or an empty string.
        peak: The highest loss over the first, both means of a few steps.
        falls: Whether the loss fell in the second half of the steps, by more than the batches differ, and is below
            where it began.
        fit: The user's own loss on rows of the training data, without dropout; NaN where it was not asked for.
        loss_error: Standard error of `loss` over the last steps.
        fell: Whether the loss of the last steps is below that of the first ones, by more than the batches differ.
        used: Steps that it took since the result before, those of an arm that began anew too.
        declines: Whether the mean loss of each of the last epochs is below that of the one before.
        steady: Whether no loss in the second half of the steps is as high as the first ones.
    """

    steps: int
    score: Score
    loss: float = math.nan
    broken: int | None = None
    error: str = ""
    peak: float = math.nan
    falls: bool = False
    fit: float = math.nan
    loss_error: float = 0.0
    fell: bool = False
    declines: bool = False
    steady: bool = False
    used: int = 0


class Arm:
    """Train one setup with one seed, a part at a time; what was trained is never trained again.

    Args:
        setup: The setup.
        seed: Of weights, dropout and the order of the samples.
        build: Returns the compiled model of a setup and a seed.
        feed: The data.
        task: Scores the model.
        stages: Traced models by what their graphs have in common, shared with other arms; None to share nothing.
        fits: Whether the own loss on rows of the training data is measured, too.
    """

    def __init__(
        self,
        setup: Setup,
        seed: int,
        *,
        build: Callable[[Setup, int], keras.Model],
        feed: Feed,
        task: Task,
        stages: dict[str, Stage] | None = None,
        fits: bool = False,
    ):
        self._stages, self._fits = stages, fits
        self._stage: Stage | None = None
        self.setup = setup
        self.seed = seed
        self._build, self._feed, self._task = build, feed, task
        self._model: keras.Model | None = None
        self._losses: list[float] = []
        self._done = 0
        self._error = ""
        self._broken: int | None = None
        self.seconds = 0.0

    def train(self, steps: int) -> Result:
        """Train up to so many steps in all, and score."""
        began, fit = time.monotonic(), math.nan
        with random_numbers_kept(), global_tensorflow_seed_kept():
            seed_all(self.seed)
            try:
                if self._model is None:
                    self._enter(self._build(self.setup, self.seed))
                elif self._stage is not None:
                    self._stage.resume(self)
                if self._broken is None and steps > self._done:
                    self._advance(steps - self._done)
                score = self._scored()
                if self._fits and self._broken is None:
                    fit = loss_on(self._model, *self._feed.few_rows())
            except (KeyboardInterrupt, MemoryError):
                raise
            except Exception as error:  # an edit that this model does not take is one that is not advised
                _LOG.debug("An arm could not be run.", exc_info=True)
                self._error = (
                    f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:160] if str(error) else ''}"
                )
                score = Score(WORST)
        self.seconds += time.monotonic() - began
        losses = np.array(self._losses)
        first = float(np.median(losses[:3])) if len(losses) else math.nan
        with np.errstate(all="ignore"):  # a run that breaks in its first steps
            peak = float(np.max(losses) / abs(first)) if len(losses) and first else math.nan
        last, error = _mean_and_error(losses[-LAST:], skipping=self.setup.guard)
        if self._task.kind == OWN_LOSS and math.isfinite(self._task.reference):
            score = replace(score, error=error / self._task.unit_of_loss(last))
        return Result(
            steps,
            score,
            last,
            self._broken_at(losses),
            self._error,
            peak,
            falls=_falls(losses),
            fit=fit,
            loss_error=error,
            fell=_fell(losses),
            declines=self._declines(losses),
            steady=bool(len(losses) and (losses[len(losses) // 2 :] < first).all()),
        )

    def release(self) -> None:
        """Give the model's memory back; the arm cannot be trained further."""
        if self._stage is not None:
            self._stage.leave(self)
        self._model = self._stage = None
        self._losses = []
        self._done = 0

    @property
    def state_bytes(self) -> int:
        """Memory of the weights and of what the optimizer keeps."""
        return 0 if self._model is None else 4 * sum(math.prod(one.shape) for one in _state(self._model))

    @property
    def done(self) -> int:
        """Steps that were trained."""
        return self._done

    def _enter(self, fresh: keras.Model) -> None:
        """Train on the traced model of an arm with the same graph, if there is one."""
        graph = graph_of(self.setup)
        self._model = fresh
        if self._stages is None or graph is None:
            return
        key = str(graph)
        stage = self._stages.setdefault(key, Stage(fresh))
        if stage.begin(self, fresh):
            self._model, self._stage = stage.model, stage

    def _advance(self, count: int) -> None:
        stream = _Steps(self._feed, self.setup, self.seed, self._done, count)
        watch = _Watch(guarded=self.setup.guard)
        guard = [GradientGuard()] if self.setup.guard else []
        with _quiet():
            self._model.fit(stream, epochs=1, verbose=0, shuffle=False, callbacks=[*guard, watch])
        self._losses += watch.losses
        self._done += len(watch.losses)
        if watch.broken is not None:
            self._broken = self._done
        self._done = self._done if self._broken is not None else max(self._done, stream.end)

    def _broken_at(self, losses: np.ndarray) -> int | None:
        """Return the step at which it broke: also one whose loss is not finite time and again, as of such targets."""
        if self._broken is not None or self.setup.guard or np.isfinite(losses[-LAST:]).all():
            return self._broken
        return int(np.flatnonzero(~np.isfinite(losses))[0])

    def _declines(self, losses: np.ndarray) -> bool:
        """Return whether four epochs in a row, which have the same samples, are in the one order of 24 that falls."""
        size = self._feed.steps_per_epoch(self.setup.batch_size)
        with np.errstate(all="ignore"):  # a run that diverges has infinite losses
            means = losses[len(losses) % size :].reshape(-1, size).mean(axis=1)[-FALLING_EPOCHS:]
            return len(means) == FALLING_EPOCHS and bool((np.diff(means) < 0).all())

    def _scored(self) -> Score:
        if self._broken is not None and not are_finite(self._model):
            return Score(WORST)
        logged = float(np.mean(self._losses[-LAST:])) if self._losses else math.nan
        return self._task.score(self._model, self.setup, logged=logged)


def _mean_and_error(losses: np.ndarray, *, skipping: bool) -> tuple[float, float]:
    """Return the mean of losses and its standard error; from their median, where steps are skipped for their losses."""
    if not len(losses):
        return math.nan, 0.0
    mean, spread = losses.mean(), losses.std(ddof=1) if len(losses) > 1 and np.isfinite(losses).all() else 0.0
    if skipping and np.isfinite(mean := np.median(losses)):
        spread = NORMAL_SPREAD * np.median(np.abs(losses - mean))
    return float(mean), float(spread / len(losses) ** 0.5)


def loss_on(model: keras.Model, x: Any, y: Any) -> float:
    """Return the loss that a model is compiled with on some rows, without dropout and without penalties.

    NaN where that cannot be told.
    """
    if y is None or not has_plain_loss(model):
        return math.nan
    x, y = keras.tree.map_structure(keras.ops.convert_to_tensor, (x, y))
    loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=False), training=False)
    return float(loss) - float(sum(model.losses))


def _falls(losses: np.ndarray) -> bool:
    """Return whether the last quarter of the losses is below the third, by two standard errors, and the first ones."""
    quarter = len(losses) // 4
    if quarter < 2:
        return True
    after = losses[-quarter:]
    return _is_below(after, losses[-2 * quarter : -quarter]) and bool(after.mean() < np.median(losses[:3]))


def _fell(losses: np.ndarray) -> bool:
    """Return whether the last losses are below the first ones, by two standard errors."""
    count = min(LAST, len(losses) // 4)
    return count >= 2 and bool(np.isfinite(losses).all()) and _is_below(losses[-count:], losses[:count])


def _is_below(after: np.ndarray, before: np.ndarray) -> bool:
    with np.errstate(all="ignore"):  # a run that diverges has infinite variances
        error = np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / len(after))
        return bool(before.mean() - after.mean() > 2.0 * error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the warnings of a guard for the training that its user sees."""
    logger = logging.getLogger("gradrecipes")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Steps(keras.utils.PyDataset):
    """Give `fit` a part of the steps, each with its own samples whenever it is asked for."""

    def __init__(self, feed: Feed, setup: Setup, seed: int, skip: int, count: int):
        super().__init__()
        self._skip, self._count = skip, count
        self._setup = setup
        self._high = np.max(feed.y) if setup.target_values != OWN else None
        how = {"batch_size": setup.batch_size, "seed": seed, "shuffled": setup.order != OWN}
        self._batches = functools.partial(feed.batches, **how)

    @property
    def end(self) -> int:
        return self._skip + self._count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        batch = next(self._batches(skip=self._skip + index, count=1))
        if self._setup.target_shape != OWN:
            batch = (batch[0], with_columns(batch[1]), *batch[2:])
        if self._setup.class_weights:
            batch = weighted(batch, self._setup.class_weight)
        if self._setup.target_values != OWN:
            batch = (batch[0], np.equal(batch[1], self._high).astype(np.float32), *batch[2:])
        return keras.tree.lists_to_tuples(batch)  # a dataset takes no lists, as `fit` does for several inputs


class _Watch(keras.callbacks.Callback):
    """Keep the batch losses, and stop a run that stays not finite."""

    def __init__(self, *, guarded: bool):
        super().__init__()
        self.losses: list[float] = []
        self.broken: int | None = None
        self._guarded = guarded  # a guard brings weights back that are not finite
        self._in_a_row = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.reset_metrics()  # so that `logs` has the loss of this batch, not the mean since the beginning

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        logs = logs or {}
        loss = float(np.mean(logs["loss"])) if "loss" in logs else float(np.mean(next(iter(logs.values()), 0.0)))
        self.losses.append(loss)
        self._in_a_row = 0 if math.isfinite(loss) else self._in_a_row + 1
        lost = self._in_a_row == 1 and not self._guarded and not are_finite(self.model)
        if lost or self._in_a_row >= PATIENCE:
            self.broken = batch
            self.model.stop_training = True


def are_finite(model: keras.Model) -> bool:
    """Return whether all weights of a model are finite."""
    return all(np.isfinite(np.asarray(one, np.float64)).all() for one in model.get_weights())


class Stage:
    """Hold one model with its traced step, and the values that belong to the arm whose turn it is.

    Args:
        model: A built, compiled model whose whole state is in variables.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self._owner: Any = None
        self._held: dict[int, list[np.ndarray]] = {}

    def begin(self, arm: Any, fresh: keras.Model) -> bool:
        """Give an arm its turn, with the values of a fresh model; return False where the two do not match."""
        build_optimizer(fresh)
        theirs, mine = _state(fresh), _state(self.model)
        if [(tuple(one.shape), one.dtype) for one in theirs] != [(tuple(one.shape), one.dtype) for one in mine]:
            return False
        if fresh is not self.model:
            self._put_aside()
            _assign(mine, [np.array(one) for one in theirs])
        self._owner = arm
        return True

    def resume(self, arm: Any) -> None:
        """Give an arm its turn again."""
        if self._owner is arm:
            return
        self._put_aside()
        _assign(_state(self.model), self._held.pop(id(arm)))
        self._owner = arm

    def leave(self, arm: Any) -> None:
        """Forget an arm."""
        self._held.pop(id(arm), None)
        if self._owner is arm:
            self._owner = None

    def _put_aside(self) -> None:
        if self._owner is not None:
            self._held[id(self._owner)] = [np.array(one) for one in _state(self.model)]


def graph_of(setup: Setup) -> Setup | None:
    """Return what is equal for setups whose steps have one graph; None for one that is traced by itself.

    A constant rate and the initial weights are values of variables. A schedule or a warm-up is a part of the graph, and
    a guard puts a step of its own in place.
    """
    if setup.guard or setup.optimizer == OWN:
        return None
    constant = setup.schedule is None and not setup.warm_up
    rate = {"learning_rate": 0.0, "rate_factor": 1.0} if constant else {}
    return replace(setup, initializers=OWN, optimizer_state=OWN, order=OWN, **rate)


def _state(model: keras.Model) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]


def _assign(variables: list[Any], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
