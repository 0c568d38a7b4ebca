"""What the tests of two runs have in common, and where they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

Run = Mapping[str, Mapping[str, Any]]  # name of the test: its outcome, why, and a note for each of its fits


def differing(without: Run, with_callbacks: Run) -> list[str]:
    """Return the tests that pass without the callbacks and do not pass with them, or are not even run."""
    passed = (name for name, test in without.items() if test["outcome"] == "passed")
    return sorted(name for name in passed if with_callbacks.get(name, {}).get("outcome") != "passed")


def counts(run: Run) -> dict[str, int]:
    """Return how many tests passed, failed and were skipped."""
    return {"passed": 0, "failed": 0, "skipped": 0, **Counter(test["outcome"] for test in run.values())}


def fits(run: Run) -> tuple[int, Counter[str]]:
    """Return how many fits had callbacks added, and how many had none for which reason."""
    notes = Counter(note for test in run.values() for note in test["fits"])
    return notes.pop("", 0), notes


def last_words(why: str, lines: int = 4) -> str:
    """Return the lines of a failure that say what was wrong."""
    said = [line[1:].strip() for line in why.splitlines() if line.startswith("E ")]
    return "\n".join(said[:lines]) or why.strip()[-300:]
