"""What is known of a trial beside its score: a small JSON file in its folder, which every process of a search reads."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradrecipes.core.analysis.search_trial import Failure

NAME = "outcome.json"
SEARCH = "search.json"
COMPLETED, FAILED, HOPELESS = "completed", "failed", "hopeless"


@dataclass
class Outcome:
    """Tell how a trial went.

    Args:
        status: `"completed"`, `"failed"`, or `"hopeless"`: stopped since earlier trials were better by then.
        steps: Training steps that ran, over all executions.
        seconds: Wall time.
        values: The objective after each epoch of the last execution; None where it was not finite.
        failure: Why it failed, or None.
        worker: Who ran it.
        first_epoch: Where it was taken up, in Hyperband not at the first.
        before: The objective after each epoch of the training that it took up.
    """

    status: str = COMPLETED
    steps: int = 0
    seconds: float = 0.0
    values: list[float | None] = field(default_factory=list)
    failure: Failure | None = None
    worker: str = ""
    first_epoch: int = 0
    before: list[float | None] = field(default_factory=list)

    @property
    def curve(self) -> list[float | None]:
        """The objective after each epoch of its training, those before it was taken up among them."""
        return [*self.before, *self.values]

    def fail(self, failure: Failure) -> None:
        """Note that the trial failed."""
        self.status, self.failure = FAILED, failure


def write_outcome(folder: str | os.PathLike[str], outcome: Outcome) -> None:
    """Write the file of a trial in one move, so that nobody reads half of it."""
    failure = None if outcome.failure is None else outcome.failure.to_dict()
    write_json(Path(folder) / NAME, {**asdict(outcome), "failure": failure})


def read_outcome(folder: str | os.PathLike[str]) -> Outcome | None:
    """Return what is known of the trial in a folder, or None."""
    content = read_json(Path(folder) / NAME)
    if content is None:
        return None
    failure = None if content["failure"] is None else Failure.from_dict(content["failure"])
    return Outcome(**{**content, "failure": failure})


def read_curves(project: str | os.PathLike[str]) -> list[list[float]]:
    """Return the objective, epoch by epoch, of every trial that did not fail and whose first epochs are known."""
    outcomes = (read_outcome(folder) for folder in sorted(Path(project).glob("trial_*")))
    completed = (one for one in outcomes if one is not None and one.status != FAILED)
    known = (one.curve for one in completed if one.values and (one.before or one.first_epoch == 0))
    return [curve for curve in known if None not in curve]


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON in one move; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(plain(content), allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def read_json(path: Path) -> Any:
    """Return what a file holds, or None if there is none, or another process is just replacing it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def plain(content: Any) -> Any:
    """Return nested lists and dictionaries with null in the place of numbers that are not finite."""
    if isinstance(content, dict):
        return {str(name): plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if hasattr(content, "item"):  # a number of numpy
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content
