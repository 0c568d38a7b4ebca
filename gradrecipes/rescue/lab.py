"""Run arms within a budget of steps: each is trained once, found again in the journal, and counted."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gradrecipes.core.analysis.intervals import Interval
from gradrecipes.rescue.arm import Arm, Result, Stage
from gradrecipes.rescue.changes import Changes, setup_after
from gradrecipes.rescue.feed import Feed
from gradrecipes.rescue.original import Setup
from gradrecipes.rescue.task import OWN_LOSS, WORST, Score, Task

LIVE_MODELS = 3  # arms whose models are kept at a time, so that they can be trained further
LIVE_SMALL_MODELS = 8  # where all of them take no more than LIVE_BYTES
LIVE_BYTES = 2**26  # of weights and optimizer states
LIVE_GRAPHS = 4  # traced models that are kept for other arms
STANDARD_ERRORS = 2.0  # a difference of fewer is within chance
LEAST_DIFFERENCE = 0.01  # of a score; less than that is nothing to anybody
LEAST_GAIN = 0.1  # of the distance between the score as it is and a perfect one, or of a loss
UNKNOWN_ERROR = 0.02  # standard error of a score of which only the mean is known


class OutOfBudgetError(Exception):
    """Raised in front of a trial that would take more steps than are left."""


@dataclass(frozen=True)
class Trial:
    """Say what one arm came to, as evidence.

    Args:
        changes: Names of the changes; none for the control arm, which is the user's own training.
        seed: Of weights and order.
        steps: Training steps.
        score: On what is held back.
        loss: Mean training loss of the last steps; NaN where it broke.
        broken: Step at which the loss was no longer finite, or None.
        error: What it raised, or an empty string.
    """

    changes: tuple[str, ...]
    seed: int
    steps: int
    score: float
    loss: float
    broken: int | None
    error: str = ""

    @property
    def end(self) -> str:
        """What it raised, or where it broke; empty where it ran through."""
        return self.error or ("" if self.broken is None else f"not finite from step {self.broken}")


@dataclass(frozen=True)
class Proof:
    """Say by how much the changed training wins.

    Args:
        control: Score of the training as it is, one a seed.
        changed: Score of the changed training, one a seed.
        steps: Steps at which each pair was compared.
        interval: 95% interval of the mean difference over seeds, by Student's distribution; None for a single pair,
            where `error` stands for it.
        error: Standard error of the first difference, over the samples held back.
        least: Difference from which on a change is worth it.
    """

    control: tuple[float, ...]
    changed: tuple[float, ...]
    steps: tuple[int, ...]
    interval: Interval | None
    error: float
    least: float = LEAST_DIFFERENCE

    @property
    def difference(self) -> float:
        """Mean difference."""
        return float(np.mean(np.subtract(self.changed, self.control)))

    @property
    def wins(self) -> bool:
        """Whether the difference is above what chance makes, and worth a change."""
        low = self.interval.low if self.interval is not None else self.difference - 2.0 * self.error
        differences = np.subtract(self.changed, self.control)
        spread = differences.std(ddof=1) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
        every = bool((differences > 0).all()) and self.difference > STANDARD_ERRORS * spread
        sampling = self.difference - 2.0 * self.error > 0
        return bool((low > 0 or (every and sampling)) and sampling and self.difference >= self.least)


@dataclass(eq=False)
class Lab:
    """Train the arms of one rescue.

    Args:
        base: The user's setup.
        feed: The data.
        task: What is to be learned.
        build: Returns the compiled model of a setup and a seed.
        journal: Where results are kept.
        budget: Training steps after which no new change is tried, in batches of the user's size.
        tell: Called with the words for an arm when its training begins, and with these and its score when it ends.
        stages: Where arms of one graph share a traced model; None for models that hold state elsewhere.
        baseline_loss: Returns the own loss of the best constant prediction on rows of the training data, or None;
            itself None where that is not asked for.
        limit: Training steps that all trials may take together, those that confirm a change too.
        minimized: Whether a step minimizes the loss that it logs, which is not known of a train step of the user's own.
        wrong_loss: Whether a cause is the loss itself, so that it says nothing if it falls.
    """

    base: Setup
    feed: Feed
    task: Task
    build: Callable[[Setup, int], keras.Model]
    journal: Journal
    budget: float
    tell: Callable[[str], None]
    stages: dict[str, Stage] | None = None
    baseline_loss: Callable[[], float | None] | None = None
    limit: float = math.inf
    minimized: bool = True
    wrong_loss: bool = False
    spent: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    _arms: dict[Any, Arm] = field(default_factory=dict)
    _results: dict[Any, Result] = field(default_factory=dict)
    _values: dict[Any, float] = field(default_factory=dict)
    _broken: dict[Any, Result] = field(default_factory=dict)
    _journaled: dict[Any, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    @property
    def full(self) -> int:
        """Steps of the user's own training."""
        return self.steps_of(self.base, 1.0)

    @property
    def left(self) -> float:
        """Steps that may still be used to try changes."""
        return self.budget - self.spent

    def steps_of(self, setup: Setup, share: float) -> int:
        """Return the steps of a share of a training with a setup."""
        whole = self.feed.under(setup.samples, setup.gaps).steps_per_epoch(setup.batch_size) * setup.epochs
        return max(1, min(whole, math.ceil(share * whole - 1e-9)))

    def run(self, changes: Changes, *, seed: int = 0, share: float = 1.0, part: str = "") -> Result:
        """Return what an arm scores after a share of the training, and train it as far as that needs."""
        names = tuple(change.name for change in changes)
        setup = setup_after(self.base, changes)
        steps = self.steps_of(setup, share)
        key = (names, seed, steps)
        if key in self._results:
            return self._results[key]
        if (names, seed) in self._broken and self._broken[names, seed].steps <= steps:  # it stays so
            self._results[key] = replace(self._broken[names, seed], steps=steps)
            return self._results[key]
        if self.spent + self._used(steps - self._trained_to(names, seed, steps), setup) > self.limit:
            raise OutOfBudgetError
        words = f"{' + '.join(names) or 'as it is'}, seed {seed}, {steps} steps"
        self.tell(words)
        result = self.journal.get(setup, seed, steps)
        if result is None:
            result = self._trained(names, setup, seed, steps, part)
            self.journal.put(setup, seed, result)
        elif not result.error:  # the budget is that of the whole search, not of its last part
            self._journaled[names, seed] = steps if result.broken is None else min(steps, result.broken)
            self._count(result.used, setup, part)
        self._results[key] = result
        if result.broken is not None or result.error:
            self._broken[names, seed] = result
        self.trials.append(Trial(names, seed, steps, result.score.value, result.loss, result.broken, result.error))
        self.tell(f"{words}: {result.error or format(result.score.value, '.3f')}")
        return result

    def _trained(self, names: tuple[str, ...], setup: Setup, seed: int, steps: int, part: str) -> Result:
        began = time.monotonic()
        arm = self._arm(names, setup, seed, steps)
        before = max(arm.done, self._trained_to(names, seed, steps))
        try:
            result = arm.train(steps)
        finally:
            self._count(used := max(0, arm.done - before), setup, part)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - began
        self._values[names, seed] = WORST if result.broken is not None or result.error else result.score.value
        return replace(result, used=used)

    def _trained_to(self, names: tuple[str, ...], seed: int, steps: int) -> int:
        """Return from which step on an arm has to be trained; one that is further begins anew."""
        live = self._arms.get((names, seed))
        done = max(0 if live is None else live.done, self._journaled.get((names, seed), 0))
        return done if done <= steps else 0

    def _used(self, steps: int, setup: Setup) -> float:
        return steps * setup.batch_size / self.base.batch_size

    def _count(self, steps: int, setup: Setup, part: str) -> None:
        used = self._used(steps, setup)
        self.spent += used
        self.steps[part] = self.steps.get(part, 0.0) + used

    def compared(self, one: Score, other: Score) -> tuple[float, float]:
        """Return (difference, standard error) of two scores on the same samples."""
        difference = one.value - other.value
        if one.error is not None and other.error is not None:
            return difference, math.hypot(one.error, other.error)
        if one.samples is None or other.samples is None or len(one.samples) != len(other.samples):
            return difference, UNKNOWN_ERROR
        apart = one.samples - other.samples
        return difference, float(apart.std() / math.sqrt(len(apart))) if len(apart) > 1 else UNKNOWN_ERROR

    def better(self, one: Score, other: Score) -> bool:
        """Return whether one score is above another by more than chance."""
        difference, error = self.compared(one, other)
        left = abs(1.0 - other.value) if self.task.kind == OWN_LOSS else 1.0  # a loss may fall by powers of ten
        return difference > max(min(LEAST_DIFFERENCE, LEAST_GAIN * left), STANDARD_ERRORS * error)

    def proof(self, pairs: Sequence[tuple[Result, Result]]) -> Proof:
        """Compare pairs of (the training as it is, the changed one), one a seed."""
        control = tuple(one.score.value for one, _ in pairs)
        changed = tuple(other.score.value for _, other in pairs)
        interval = _student_interval(np.subtract(changed, control)) if len(pairs) > 1 else None
        _, error = self.compared(pairs[0][1].score, pairs[0][0].score)
        least = LEAST_GAIN * max(1.0 - float(np.mean(control)), 1e-9)
        if self.learns(pairs[0][0]):  # where little can be learned, as of text, twice as much is worth it, too
            least = min(least, float(np.mean(control)) - self.task.baseline_score)
        least = max(least, LEAST_DIFFERENCE)
        return Proof(control, changed, tuple(other.steps for _, other in pairs), interval, error, least)

    def learns(self, result: Result, *, standard_errors: float = STANDARD_ERRORS) -> bool:
        """Return whether an arm got better than the best constant prediction.

        Args:
            result: Of the arm.
            standard_errors: By how many of its score. One is enough where a comparison over several seeds follows.
        """
        if result.error or result.broken is not None:
            return False
        if self.task.kind == OWN_LOSS:
            return result.score.value > LEAST_DIFFERENCE
        samples = result.score.samples
        error = UNKNOWN_ERROR if samples is None or len(samples) < 2 else float(np.std(samples)) / len(samples) ** 0.5
        return result.score.value > self.task.baseline_score + max(LEAST_DIFFERENCE, standard_errors * error)

    def has_run(self, changes: Changes, share: float) -> bool:
        """Return whether the score of an arm with the first seed is known after just such a share of the training."""
        steps = self.steps_of(setup_after(self.base, changes), share)
        return (tuple(change.name for change in changes), 0, steps) in self._results

    def has_learned(self, changes: Changes) -> bool:
        """Return whether an arm with these changes learned in any trial."""
        names = tuple(change.name for change in changes)
        return any(self.learns(result) for (tried, _, _), result in self._results.items() if tried == names)

    def _arm(self, names: tuple[str, ...], setup: Setup, seed: int, steps: int) -> Arm:
        arm = self._arms.pop((names, seed), None)
        if arm is not None and arm.done > steps:  # it has learned more than is asked for
            arm.release()
            arm = None
        if arm is None:
            fits = not names and self.baseline_loss is not None
            feed = self.feed.under(setup.samples, setup.gaps)
            task = self.task if feed is self.feed else replace(self.task, x=feed.x_val)
            arm = Arm(setup, seed, build=self.build, feed=feed, task=task, stages=self.stages, fits=fits)
        held = sum(one.state_bytes for one in self._arms.values())
        most = LIVE_SMALL_MODELS if held <= LIVE_BYTES else LIVE_MODELS
        others = sorted((key for key in self._arms if key != ((), 0)), key=lambda key: self._values.get(key, WORST))
        for key in others[: max(0, len(self._arms) + 1 - most)]:  # the worst is the least likely to be trained further
            self._arms.pop(key).release()
        self._arms[names, seed] = arm
        while self.stages is not None and len(self.stages) > LIVE_GRAPHS:
            self.stages.pop(next(iter(self.stages)))
        return arm


def _student_interval(values: np.ndarray) -> Interval:
    from scipy.stats import t

    reach = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return Interval(float(values.mean()) - reach, float(values.mean()) + reach, 0.95)


class Journal:
    """Write results to a file and find them again.

    Args:
        path: The file, or None to keep nothing.
        fingerprint: Of the model and the data; results of others are not found.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str):
        self._path = None if path is None else Path(path)
        self._fingerprint = fingerprint
        self._known: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # a line that was cut off when the process was killed
                    continue
                if row.get("fingerprint") == fingerprint:
                    self._known[row["key"]] = row

    def get(self, setup: Setup, seed: int, steps: int) -> Result | None:
        """Return the result of an arm after so many steps, or None."""
        row = self._known.get(_key(setup, seed, steps))
        if row is None:
            return None
        samples = None if row["score"]["samples"] is None else np.array(row["score"]["samples"], np.float64)
        return Result(**{**row["result"], "score": Score(**{**row["score"], "samples": samples})})

    def put(self, setup: Setup, seed: int, result: Result) -> None:
        """Keep a result."""
        if self._path is None:
            return
        samples = None if result.score.samples is None else result.score.samples.round(6).tolist()
        row = {"fingerprint": self._fingerprint, "key": _key(setup, seed, result.steps)}
        row |= {"score": {**vars(result.score), "samples": samples}, "result": {**vars(result), "score": None}}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def fingerprint_of(model: keras.Model, *data: Any) -> str:
    """Return a digest of a model's weights and of its data."""
    digest = hashlib.sha256()
    for array in [*model.get_weights(), *(part for part in keras.tree.flatten(data) if part is not None)]:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _key(setup: Setup, seed: int, steps: int) -> str:
    text = json.dumps([setup.to_json(), seed, steps], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
