"""What the command line shows beside its results: errors, progress, and none of TensorFlow's notes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any


class UsageError(Exception):
    """An error that the user can fix; the command line prints its one line and returns 2."""


class PartsShown:
    """Show on stderr which part of a command runs, and keep the finished ones with their times.

    Args:
        quiet: Whether to show nothing.

    Example:
        >>> with PartsShown(quiet=True) as parts:
        ...     parts.tell("reading the data")
        ...     parts.tell("reading the data: 300 samples")
    """

    def __init__(self, *, quiet: bool):
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(finished_text="·"), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(file=sys.stderr, quiet=quiet), redirect_stdout=False)
        self._task: Any = None
        self._words = ""

    def __enter__(self) -> PartsShown:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._finish()
        self._bar.stop()

    def tell(self, words: str) -> None:
        """Begin the next part, or end the one that runs, where the words are its own with a result behind a colon."""
        if self._task is not None and words.startswith(f"{self._words}: "):
            self._bar.update(self._task, description=words)
            self._finish()
            return
        self._finish()
        self._task, self._words = self._bar.add_task(words, total=1), words

    def _finish(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=1)
            self._task = None


# What TensorFlow writes before it reads TF_CPP_MIN_LOG_LEVEL: notes (I0000) and the heading above them.
NOTES = (
    r"WARNING: All log messages before absl::InitializeLog\(\)",
    r"I0000 \d",
    "To enable the following instructions:",
)
DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/dxg"))  # Linux; Linux inside Windows
# A process of its own, so that TensorFlow's last line is shown also where its import ends the process.
# What may yet become a note is held until its line ends; anything else, such as a progress bar, goes on at once.
FILTER = """
import os, re, sys
dropped, held = re.compile("|".join(sys.argv[1:]).encode()), b""
while chunk := os.read(0, 65536):
    parts, held = (held + chunk).splitlines(keepends=True), b""
    for part in parts:
        if not part.endswith((b"\\n", b"\\r")) and part[:1] in b"WIT":
            held = part
        elif not dropped.match(part):
            os.write(2, part)
os.write(2, held)
"""


def silence_tensorflow_notes() -> None:
    """Show errors only when TensorFlow is imported, whoever imports it, and from then on.

    A TF_CPP_MIN_LOG_LEVEL that is set stays; 0 brings every note back. Where it is not, it becomes 2, errors, or 3
    where no driver of a GPU is installed: TensorFlow's only error at its start is then that it found none.
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if any(path.exists() for path in DRIVERS) else "3")
    if level != "0" and "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Find TensorFlow once, and filter stderr while it is loaded."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _filtered(spec.loader)  # type: ignore[method-assign]
        return spec


def _filtered(loader: Loader) -> Any:
    load = loader.exec_module

    def exec_module(module: Any) -> None:
        with _without(NOTES):
            load(module)

    return exec_module


@contextmanager
def _without(patterns: tuple[str, ...]) -> Iterator[None]:
    """Leave out the lines of this process' stderr, C++'s too, that begin as one of the patterns says."""
    try:
        original = os.dup(2)
    except OSError:  # closed, so nobody reads it
        yield
        return
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", FILTER, *patterns], stdin=reading) as process:
        os.close(reading)
        os.dup2(writing, 2)
        os.close(writing)
        try:
            yield
        finally:
            with suppress(AttributeError, ValueError):  # sys.stderr is None or closed
                sys.stderr.flush()
            os.dup2(original, 2)  # closes the last end of the pipe, on which the filter ends
            os.close(original)
            process.wait()
