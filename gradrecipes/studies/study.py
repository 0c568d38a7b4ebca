"""Compare ways of training: every arm with every seed, on the same split, with intervals and a verdict."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from gradrecipes.plots.study import StudyPlot
from gradrecipes.report.strict_json import plain
from gradrecipes.studies import spread
from gradrecipes.studies.arm import Arm, check_fit
from gradrecipes.studies.describe import fingerprint
from gradrecipes.studies.hopeless import hopeless_arms
from gradrecipes.studies.judge import ArmSummary, Comparison, compare, leader, seen_from, summarize, value_of
from gradrecipes.studies.objective import Objective
from gradrecipes.studies.progress import Progress
from gradrecipes.studies.run import Run
from gradrecipes.studies.split import Split
from gradrecipes.studies.store import Store
from gradrecipes.studies.table import StudyTable
from gradrecipes.studies.trainer import Trainer
from gradrecipes.studies.wording import verdict

_LOG = logging.getLogger(__name__)


class Study:
    """Find out which way of training is better, and whether the seeds that were run can tell.

    Every arm is trained with every seed. All see one frozen split; runs of one seed begin with the same weights,
    where the shapes agree, and see the samples in the same order, so they are compared in pairs. The numbers are, to
    the bit, those of

        keras.utils.set_random_seed(seed)
        model = build(**arm)
        model.fit(x, y, validation_data=(x_val, y_val), **fit)

    for each of them, but steps are traced once and used again wherever that is safe, which takes less than half of
    the time. A run that diverges (by the verdict of a `GradientGuard` among its callbacks, or by NaN) ends early,
    counts as worse than any that did not, and ends nothing else. An arm on which further seeds would be wasted is
    given up, and the verdict says so.

    Args:
        build: Takes the arguments of an arm by name and returns a compiled model.
        arms: For each name a dictionary of arguments for `build`, a recipe, or a `gr.studies.Arm`.
        data: `(x, y)`, of which a fifth is kept for validation (`gr.studies.frozen_split` for another share),
            `(x, y, x_val, y_val)`, or these with `x_test, y_test`, on which every trained model is evaluated; arrays,
            or dictionaries or lists of them.
        seeds: How many, counted from 0; or the seeds themselves.
        fit: Arguments for `model.fit` such as `epochs` and `batch_size`; `callbacks` is a function that makes new ones.
        objective: What is compared: a key of the logs whose name tells whether less or more is better, or a
            `gr.studies.Objective`.
        directory: Where each result is kept. A study that is made anew with the same directory repeats no run; it may
            have more seeds or arms than before. None keeps them in memory.

    Attributes:
        arms, seeds, objective, split: What was given, in its final form.
        fingerprints: For each arm a digest of all that its runs depend on beside the seed, and what it is made of.
        runs: For each arm the list of its `gr.studies.Run`, in the order of the seeds.

    Raises:
        ValueError: No arms or seeds, seeds given twice, arguments that the study sets itself, or a directory with
            results of other settings.
        TypeError: Something is not what is expected.

    Example:
        >>> def build(learning_rate):
        ...     model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
        ...     model.compile(keras.optimizers.SGD(learning_rate), "mse")
        ...     return model
        >>> arms = {"slow": {"learning_rate": 1e-4}, "fast": {"learning_rate": 0.1}}
        >>> study = gr.Study(build, arms=arms, data=(x, y), seeds=3, fit={"epochs": 2}).run()
        >>> study.best
        'fast'

    References:
        Bouthillier et al. 2021, arXiv 2103.03098: the variance that seeds cause. Demšar 2006, Statistical comparisons
        of classifiers: paired tests without normality, corrected for their number.
    """

    def __init__(
        self,
        build: Callable[..., keras.Model],
        *,
        arms: Mapping[str, Any],
        data: Any,
        seeds: int | Sequence[int] = 5,
        fit: Mapping[str, Any] | None = None,
        objective: str | Objective = "val_loss",
        directory: str | os.PathLike[str] | None = None,
    ):
        if not callable(build):
            raise TypeError(f"`build` must be a function that returns a compiled model. Received: {build!r}.")
        if not isinstance(arms, Mapping) or not arms:
            raise ValueError(f"`arms` must be a dictionary with at least one arm. Received: arms={arms!r}.")
        check_fit(fit or {})
        self.build = build
        self.arms = {str(name): Arm.of(arm) for name, arm in arms.items()}
        self.seeds = _checked_seeds(seeds)
        self.split = Split.of(data)
        self.fit = dict(fit or {})
        self.objective = Objective.named(objective) if isinstance(objective, str) else objective
        self.directory = directory
        digest = self.split.fingerprint
        self.fingerprints = {
            name: fingerprint(build, arm, fit=self.fit, data=digest) for name, arm in self.arms.items()
        }
        self._store = Store(directory, fingerprints=self.fingerprints)
        self._trainer = Trainer(build, split=self.split, fit=self.fit, objective=self.objective)
        for name in self.arms:
            for seed in self.seeds:
                self._store.get(name, seed)  # a directory with results of other settings is refused at once

    # -- running -------------------------------------------------------------------------------------
    def run(self, *, workers: int = 1, give_up: bool = True, progress: bool | None = None) -> Study:
        """Train what has not been trained yet, and return self.

        After Ctrl-C, or an error in `build`, every run that had ended is kept, and a later call goes on from there.

        Args:
            workers: Processes on this machine that share the runs; 1 for this process alone. With more, `build`, the
                arms and the callbacks must be such that pickle can send them: functions of a module or of a script.
                In a process that has the environment variables of keras-tuner's distributed mode, this is one of its
                workers or its chief, whatever `workers` says; all processes share `directory`.
            give_up: Whether to spend no further seeds on an arm that has no hope.
            progress: Whether to show it; None: on a terminal.

        Raises:
            ValueError: Fewer than one worker, or a process of many without a `directory`.
            RuntimeError: A worker failed; with what it said.
        """
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise ValueError(f"`workers` must be a whole number, at least 1. Received: workers={workers!r}.")
        with Progress(self, shown=progress) as shown:
            if spread.in_a_crew():
                spread.join(self, give_up=give_up)
            elif workers > 1:
                spread.launch(self, workers=workers, give_up=give_up, on_look=shown.refresh)
            else:
                for seed in self.seeds:
                    for name in self.arms:
                        shown.begins(name, seed)
                        self.run_one(name, seed, give_up=give_up)
                        shown.refresh()
        return self

    def run_one(self, name: str, seed: int, *, give_up: bool = True) -> Run | None:
        """Train one arm with one seed, unless that was done before; return None if the arm was given up before.

        Args:
            name: The arm.
            seed: The seed.
            give_up: Whether an arm may be given up.
        """
        known = self._store.get(name, seed)
        if known is not None:
            return known
        if give_up:
            given_up = self.given_up().get(name)
            if given_up is not None and self.seeds.index(seed) >= given_up[0]:
                return None
        run = self._trainer.run(name, self.arms[name], seed)
        if run.note:
            _LOG.info("Study, arm %r, seed %d: %s.", name, seed, run.note)
        self._store.put(run)
        return run

    def given_up(self) -> dict[str, tuple[int, str]]:
        """Return the arms without hope: after how many seeds that was clear, and why."""
        gains = {}
        for name in self.arms:
            found = [self._store.get(name, seed) for seed in self.seeds]
            done = found[: next((place for place, run in enumerate(found) if run is None), len(found))]
            gains[name] = [self.objective.gain(value_of(run, self.objective), 0.0) for run in done]
        return hopeless_arms(gains, planned=len(self.seeds))

    def move_to(self, directory: str | os.PathLike[str] | None) -> None:
        """Keep the results elsewhere from now on, those so far too; None for the memory."""
        self._store, self.directory = spread.moved(self._store, directory, self), directory

    # -- results -------------------------------------------------------------------------------------
    @property
    def runs(self) -> dict[str, list[Run]]:
        """The results so far, for each arm in the order of the seeds."""
        found = {name: [self._store.get(name, seed) for seed in self.seeds] for name in self.arms}
        return {name: [run for run in runs if run is not None] for name, runs in found.items()}

    @property
    def summaries(self) -> list[ArmSummary]:
        """How each arm did."""
        return summarize(self.runs, self.objective, planned=len(self.seeds))

    @property
    def comparisons(self) -> list[Comparison]:
        """How any two arms compare that have hope."""
        return compare(self.summaries, self.objective)

    def compare(self, one: str, other: str) -> Comparison:
        """Return how one arm compares with another, as the study has it: adjusted for all comparisons.

        Args:
            one: Name of the arm that the difference, its interval and the verdict are told of.
            other: Name of the other.

        Raises:
            ValueError: There is no such comparison.
        """
        for comparison in self.comparisons:
            if {comparison.one, comparison.other} == {one, other}:
                return seen_from(comparison, one)
        compared = dict.fromkeys(name for pair in self.comparisons for name in (pair.one, pair.other))
        raise ValueError(
            f"Compared are two different arms with hope and a seed in common, of: {', '.join(compared) or 'none yet'}. "
            f"Received: {one!r} and {other!r}."
        )

    @property
    def best(self) -> str | None:
        """The arm with the best mean rank, which need not be better beyond doubt; None before any run."""
        return leader(self.summaries, self.objective)

    def table(self) -> StudyTable:
        """Return one row for each arm: `print(study.table())`."""
        return StudyTable.of(self.summaries, self.comparisons, best=self.best, what=self.objective)

    def plot(self, ax: Any = None) -> StudyPlot:
        """Draw every run, paired by seed, with the intervals of the means; return the picture.

        Args:
            ax: A matplotlib axes, or None for a new figure.
        """
        summaries = self.summaries
        return StudyPlot(
            {one.arm: one.values for one in summaries},
            intervals={one.arm: one.interval for one in summaries},
            name=self.objective.name,
            direction=self.objective.direction,
        ).plot(ax)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that strict JSON holds; numbers that are not finite are their names."""
        return plain(
            {
                "objective": vars(self.objective),
                "seeds": list(self.seeds),
                "data": self.split.fingerprint,
                "best": self.best,
                "verdict": verdict(self),
                "arms": [
                    {**vars(one), "interval": _ends(one.interval), "divergence": _ends(one.divergence)}
                    for one in self.summaries
                ],
                "comparisons": [{**vars(one), "interval": _ends(one.interval)} for one in self.comparisons],
                "runs": [run.to_dict() for runs in self.runs.values() for run in runs],
            }
        )

    def __str__(self) -> str:
        return f"{self.table()}\n\n{verdict(self)}"


def _ends(interval: Any) -> Any:
    return None if interval is None else vars(interval)


def _checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        seeds = range(seeds)
    given = tuple(seeds) if not isinstance(seeds, bool | str) else ()
    if not given or len(set(given)) != len(given) or not all(isinstance(seed, int) and seed >= 0 for seed in given):
        raise ValueError(
            f"`seeds` must be how many, at least 1, or different whole numbers from 0 up. Received: seeds={seeds!r}."
        )
    return given
