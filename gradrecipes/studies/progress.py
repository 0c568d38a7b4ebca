"""Show how far a study has come."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from gradrecipes.studies.study_runs import StudyRuns


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
