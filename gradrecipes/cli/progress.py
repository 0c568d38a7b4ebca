"""What a long command does while one waits: its parts, one line each, with the seconds they took."""

from __future__ import annotations

import sys
from typing import Any


class PartsShown:
    """Show on stderr which part of a command runs, and keep the finished ones with their times.

    Args:
        quiet: Whether to show nothing.

    Example:
        >>> with PartsShown(quiet=True) as parts:
        ...     parts.tell("reading the data")
    """

    def __init__(self, *, quiet: bool):
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(finished_text="·"), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(file=sys.stderr, quiet=quiet), redirect_stdout=False)
        self._task: Any = None

    def __enter__(self) -> PartsShown:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._finish()
        self._bar.stop()

    def tell(self, words: str) -> None:
        """Begin the next part."""
        self._finish()
        self._task = self._bar.add_task(words, total=1)

    def _finish(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=1)
