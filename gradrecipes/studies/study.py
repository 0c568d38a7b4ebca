"""Compare ways of training: every arm with every seed, on the same split, with intervals and a verdict."""

from __future__ import annotations

from typing import Any

from gradrecipes.plots.study import StudyPlot
from gradrecipes.report.strict_json import plain
from gradrecipes.studies import spread
from gradrecipes.studies.judge import ArmSummary, Comparison, compare, leader, seen_from, summarize
from gradrecipes.studies.progress import Progress
from gradrecipes.studies.study_runs import StudyRuns
from gradrecipes.studies.table import StudyTable
from gradrecipes.studies.wording import verdict


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
