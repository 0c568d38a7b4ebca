"""Compare ways of training: every arm with every seed, on the same split, with intervals and a verdict."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from typing import Any

from gradrecipes.core.analysis.intervals import smallest_p
from gradrecipes.core.trace.record import plain
from gradrecipes.plots.study import StudyPlot
from gradrecipes.studies import spread
from gradrecipes.studies.arm import Objective
from gradrecipes.studies.judge import (
    LEVEL,
    ArmSummary,
    Comparison,
    StudyTable,
    compare,
    interval,
    leader,
    more_seeds,
    number,
    seen_from,
    summarize,
)
from gradrecipes.studies.study_runs import StudyRuns


class Study(StudyRuns):
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

    # -- results -------------------------------------------------------------------------------------
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
                "verdict": self._verdict(),
                "arms": [
                    {**vars(one), "interval": _ends(one.interval), "divergence": _ends(one.divergence)}
                    for one in self.summaries
                ],
                "comparisons": [{**vars(one), "interval": _ends(one.interval)} for one in self.comparisons],
                "runs": [run.to_dict() for runs in self.runs.values() for run in runs],
            }
        )

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self._verdict()}"

    def _verdict(self) -> str:
        return verdict(self.summaries, self.comparisons, best=self.best, objective=self.objective)


def _ends(interval: Any) -> Any:
    return None if interval is None else vars(interval)


class Progress(contextlib.AbstractContextManager):
    """A bar on the terminal (standard error), which is gone when the study is over.

    Args:
        study: The study.
        shown: Whether to show it; None: on a terminal.
    """

    def __init__(self, study: StudyRuns, *, shown: bool | None = None):
        self._study = study
        self._total = len(study.arms) * len(study.seeds)
        self._bar: Any = None
        self._task: Any = None
        self._shown = sys.stderr.isatty() if shown is None else shown

    def __enter__(self) -> Progress:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            console = Console(stderr=True)
            self._bar = Bar(*columns, console=console, transient=console.is_terminal)
            self._bar.start()
            self._task = self._bar.add_task("study", total=self._total)
            self.refresh()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begins(self, arm: str, seed: int) -> None:
        """Name the run that begins."""
        if self._bar is not None:
            from rich.markup import escape

            self._bar.update(self._task, description=f"{escape(arm)}, seed {seed}")

    def refresh(self, *_: Any) -> None:
        """Count the runs that have ended, and those that are not made since their arm was given up."""
        if self._bar is None:
            return
        runs, given_up = self._study.runs, self._study.given_up()
        left_out = sum(max(0, len(self._study.seeds) - len(runs[arm])) for arm in given_up)
        ended = sum(map(len, runs.values()))
        diverged = sum(run.diverged is not None for found in runs.values() for run in found)
        description = {"description": f"study, {diverged} diverged"} if diverged else {}
        self._bar.update(self._task, completed=min(self._total, ended + left_out), **description)


def verdict(
    summaries: Sequence[ArmSummary], comparisons: Sequence[Comparison], *, best: str | None, objective: Objective
) -> str:
    """Return what the runs so far say, one sentence a line.

    Args:
        summaries: How each arm did.
        comparisons: How any two of them compare.
        best: Name of the arm with the best mean rank; None before any run.
        objective: What is compared.
    """
    if best is None:
        return "No run has been made yet."
    lines = [_best(next(one for one in summaries if one.arm == best), objective)]
    for comparison in (seen_from(one, best) for one in comparisons if best in (one.one, one.other)):
        lines.append(_against(comparison))
    lines += [f"{one.arm}: no hope, {one.hopeless}." for one in summaries if one.hopeless is not None]
    lines += [_divergence(one) for one in summaries if one.diverged and one.hopeless is None]
    pairs = min((one.pairs for one in comparisons), default=0)
    if comparisons and smallest_p(pairs) > LEVEL / len(comparisons):
        lines.append(
            f"With {pairs} seeds nothing here can be beyond doubt: the exact test of {pairs} pairs cannot fall below "
            f"p = {smallest_p(pairs):.3g}, and for a level of {LEVEL:g} over {len(comparisons)} "
            f"comparison{'s' if len(comparisons) > 1 else ''} it has to reach {LEVEL / len(comparisons):.3g}."
        )
    return "\n".join(lines)


def _best(one: ArmSummary, objective: Objective) -> str:
    if math.isnan(one.mean):
        return f"Every run diverged; {one.arm} stands for all of them."
    where = f" (95% interval {interval(one.interval)})" if interval(one.interval) else ""
    return f"Best so far: {one.arm}, {objective.name} {number(one.mean)}{where} over {one.runs} seeds."


def _against(comparison: Comparison) -> str:
    told = f"{comparison.one} against {comparison.other}: {number(comparison.difference, sign=True) or 'no pair'}"
    if interval(comparison.interval):
        told += f" (95% interval {interval(comparison.interval)})"
    told += f", p = {comparison.adjusted_p:.3g} after Holm's correction: "
    return told + (
        f"{comparison.verdict}." if comparison.verdict != "undecided" else f"undecided, {more_seeds(comparison)}."
    )


def _divergence(one: ArmSummary) -> str:
    ends = f"{one.divergence.low:.0%} to {one.divergence.high:.0%}"
    return f"{one.arm}: {one.diverged} of {one.runs} runs diverged (95% interval of the share: {ends})."
