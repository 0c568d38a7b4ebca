"""What came of a search: a table, pictures, JSON and TensorBoard, read from its folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradrecipes.core.analysis.search_trial import Failure, SearchTrial, SpaceAxis
from gradrecipes.plots.search import ParallelCoordinates, SettingImportance, StabilityMap
from gradrecipes.tuning import records

LONG = 28  # characters of a setting in a table
WIDE = 110  # characters of a table as plain text


class SearchResults:
    """Tell what a search tried, what came of it and why the failures failed.

    Args:
        trials: In the order of their names.
        axes: The settings of the space.
        objective: Name of the score.
        maximize: Whether more is better.
        tuner: Name of the strategy.

    Attributes:
        best: The best trial that did not fail, or None.

    Example:
        >>> trials = [SearchTrial("0", {"rate": 0.1}, 0.5), SearchTrial("1", {"rate": 9.0}, None, "failed")]
        >>> results = SearchResults(trials, [SpaceAxis("rate")], objective="val_loss")
        >>> results.best.values, len(results.failures)
        ({'rate': 0.1}, 1)
    """

    def __init__(
        self,
        trials: Sequence[SearchTrial],
        axes: Sequence[SpaceAxis] = (),
        *,
        objective: str = "score",
        maximize: bool = False,
        tuner: str = "",
    ):
        self.trials = list(trials)
        self.axes = tuple(axes)
        self.objective = objective
        self.maximize = maximize
        self.tuner = tuner

    @classmethod
    def from_directory(cls, directory: str | os.PathLike[str]) -> SearchResults:
        """Read the folder of a search, finished or not: `directory/project_name` of the tuner.

        Raises:
            FileNotFoundError: There is no search in that folder.
        """
        folder = Path(directory)
        search = records.read_json(folder / records.SEARCH)
        if search is None:
            raise FileNotFoundError(
                f"There is no search of gr.tuning in {str(folder)!r}. Expected a folder with {records.SEARCH}: "
                "`directory/project_name` of the tuner."
            )
        paths = sorted(folder.glob("trial_*/trial.json"))
        states = [(path.parent, records.read_json(path)) for path in paths]
        states = [(path, state) for path, state in states if state is not None]
        spaces = [entry for _, state in states for entry in state["hyperparameters"]["space"]]
        return cls(
            [_trial(path, state) for path, state in states],
            _axes(spaces),
            objective=search["objective"],
            maximize=search["direction"] == "max",
            tuner=search["tuner"],
        )

    @property
    def successes(self) -> list[SearchTrial]:
        """The trials that did not fail, the best first."""
        return sorted(
            (one for one in self.trials if one.score is not None), key=lambda one: one.score, reverse=self.maximize
        )

    @property
    def failures(self) -> list[SearchTrial]:
        """The trials that failed."""
        return [one for one in self.trials if one.failed]

    @property
    def best(self) -> SearchTrial | None:
        """The best trial that did not fail, or None."""
        return next(iter(self.successes), None)

    @property
    def steps(self) -> int:
        """Training steps of all trials together."""
        return sum(one.steps for one in self.trials)

    # -- pictures ----------------------------------------------------------------------------------
    def axis(self, name: str) -> SpaceAxis:
        """Return the axis of a setting.

        Raises:
            ValueError: There is none of that name.
        """
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise ValueError(
            f"The space has these settings: {', '.join(axis.name for axis in self.axes)}. Received: {name!r}."
        )

    def stability_map(self, horizontal: str = "learning_rate", vertical: str = "batch_size") -> StabilityMap:
        """Return where in the plane of two settings the training works, with the divergence frontier."""
        return StabilityMap(
            self.trials,
            self.axis(horizontal),
            self.axis(vertical),
            objective=self.objective,
            maximize=self.maximize,
        )

    def parallel_coordinates(self) -> ParallelCoordinates:
        """Return the picture of all trials as lines through their settings."""
        return ParallelCoordinates(self.trials, self.axes, objective=self.objective, maximize=self.maximize)

    def importance(self) -> SettingImportance:
        """Return what decides about failing, and about the score."""
        return SettingImportance(self.trials, [axis.name for axis in self.axes])

    # -- words and files ---------------------------------------------------------------------------
    def table(self, *, most: int = 20) -> Any:
        """Return a `rich` table: the best trials first, then the failures with their causes.

        Args:
            most: Rows at most.
        """
        from rich import box
        from rich.table import Table

        shown = [*self.successes, *self.failures]
        title = f"{self.tuner}: {len(self.trials)} trials, {len(self.failures)} failed, {self.steps} training steps"
        rest = f"and {len(shown) - most} more" if len(shown) > most else None
        table = Table(title=title, caption=rest, box=box.SIMPLE_HEAD)
        table.add_column("trial", no_wrap=True)
        table.add_column(self.objective, justify="right", no_wrap=True)
        table.add_column("settings", ratio=3)
        table.add_column("steps", justify="right", no_wrap=True)
        table.add_column("what came of it", ratio=2)
        for one in shown[:most]:
            score = "" if one.score is None else f"{one.score:.4g}"
            settings = ", ".join(
                f"{axis.name} {_short(one.values[axis.name])}" for axis in self.axes if axis.name in one.values
            )
            table.add_row(one.trial_id, score, settings, str(one.steps), _fate(one))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=WIDE, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        best = self.best
        return records.plain(
            {
                "tuner": self.tuner,
                "objective": self.objective,
                "direction": "max" if self.maximize else "min",
                "best": None if best is None else {"trial_id": best.trial_id, "score": best.score, **_values(best)},
                "steps": self.steps,
                "failed": len(self.failures),
                "importance": self.importance().to_dict(),
                "trials": [one.to_dict() for one in self.trials],
            }
        )

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` to a file."""
        records.write_json(Path(path), self.to_dict())

    def write_hparams(self, directory: str | os.PathLike[str]) -> None:
        """Write the trials for the HParams page of TensorBoard, a run for each; failures by their cause.

        Args:
            directory: The log directory, to be opened with `tensorboard --logdir`.
        """

        write_hparams(self, directory)


def _values(trial: SearchTrial) -> dict[str, Any]:
    return {"values": trial.values}


def _trial(folder: Path, state: dict[str, Any]) -> SearchTrial:
    outcome = records.read_outcome(folder)
    values = {
        name: value for name, value in state["hyperparameters"]["values"].items() if not name.startswith("tuner/")
    }
    if outcome is None or state["status"] not in ("COMPLETED", "FAILED"):
        lost = state["metrics"]["metrics"].get("failure_cause")  # a worker that was lost left no file
        status = records.FAILED if lost and state["status"] == "COMPLETED" else "running"
        failure = Failure("error", message="its workers were lost") if status == records.FAILED else None
        return SearchTrial(state["trial_id"], values, None, status, failure)
    failed = outcome.status == records.FAILED
    return SearchTrial(
        state["trial_id"],
        values,
        None if failed else state["score"],
        outcome.status,
        outcome.failure,
        outcome.steps,
        outcome.seconds,
        outcome.values,
        outcome.worker,
    )


def _axes(space: list[dict[str, Any]]) -> list[SpaceAxis]:
    axes: dict[str, SpaceAxis] = {}
    for entry in sorted(space, key=lambda entry: len(entry["config"].get("conditions") or [])):
        kind, config = entry["class_name"], entry["config"]
        name = config["name"]
        if name.startswith("tuner/") or kind == "Fixed":
            continue
        choices = {"Choice": config.get("values"), "Boolean": [False, True]}.get(kind) or ()
        known = axes[name].choices if name in axes else ()
        axes[name] = SpaceAxis(name, config.get("sampling") == "log", tuple(dict.fromkeys([*known, *choices])))
    return list(axes.values())


def _fate(trial: SearchTrial) -> str:
    if trial.status == records.HOPELESS:
        return f"stopped after epoch {len(trial.curve)}: not among the best two in five"
    if not trial.failed:
        return trial.status
    message = trial.failure.message if trial.failure else ""
    return f"{trial.cause.replace('_', ' ')}: {message.splitlines()[0][:80]}" if message else trial.cause


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:LONG]


def write_hparams(results: Any, directory: str | os.PathLike[str]) -> None:
    """Write one run for each trial that has ended: its settings, its score, whether it failed, its steps.

    Args:
        results: A `SearchResults`.
        directory: The log directory.
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    metrics = [api.Metric(name) for name in (results.objective, "failed", "training_steps")]
    root = Path(directory)
    writer = tf.summary.create_file_writer(str(root))
    with writer.as_default():
        api.hparams_config(hparams=[api.HParam(axis.name) for axis in results.axes], metrics=metrics)
    writer.close()
    for trial in results.trials:
        if trial.status == "running":
            continue
        writer = tf.summary.create_file_writer(str(root / f"trial_{trial.trial_id}"))
        with writer.as_default():
            api.hparams({**trial.values, "cause": trial.cause or "none"}, trial_id=trial.trial_id)
            if trial.score is not None:
                tf.summary.scalar(results.objective, trial.score, step=0)
            tf.summary.scalar("failed", float(trial.failed), step=0)
            tf.summary.scalar("training_steps", float(trial.steps), step=0)
        writer.close()
