"""Keep the result of every run in a file of its own, so that no kill and no other process can spoil another."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from gradrecipes.core.trace.record import dumps
from gradrecipes.studies.run import Run

SLUG = re.compile(r"[^A-Za-z0-9._-]+")
SLUG_LENGTH = 40  # characters of an arm's name in the name of a file


class Store:
    """Write runs to a directory and read them back.

    A file appears whole or not at all, also when a process is killed while it writes. It carries a fingerprint of
    all that the run depends on; a result of other settings is never taken for one of these.

    Args:
        directory: Where they are kept, or None to keep them in memory.
        fingerprints: The digest of each arm, and what it was made of.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, *, fingerprints: dict[str, tuple[str, Any]]):
        self._folder = None if directory is None else Path(directory) / "runs"
        self._fingerprints = fingerprints
        self._known: dict[tuple[str, int], Run] = {}

    def get(self, arm: str, seed: int) -> Run | None:
        """Return the result of an arm with a seed, or None.

        Raises:
            ValueError: It was made with other settings.
        """
        if (arm, seed) not in self._known and self._folder is not None:
            path = self._path(arm, seed)
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{str(path)!r} cannot be read: {error}. Remove it, and the run is made again."
                ) from error
            self._check(path, content, arm)
            self._known[arm, seed] = Run.from_dict(content["run"])
        return self._known.get((arm, seed))

    def put(self, run: Run) -> None:
        """Keep a result."""
        self._known[run.arm, run.seed] = run
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        digest, parts = self._fingerprints[run.arm]
        text = dumps({"fingerprint": digest, "made_with": parts, "run": run.to_dict()})
        number, temporary = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".part")
        try:
            with open(number, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path(run.arm, run.seed))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _path(self, arm: str, seed: int) -> Path:
        # The slug is for readers; the digest tells apart arms whose names differ in what a file name cannot hold.
        told = SLUG.sub("-", arm).strip("-")[:SLUG_LENGTH]
        mark = format(sum(byte * 31**place for place, byte in enumerate(arm.encode())) % 2**32, "08x")
        return self._folder / f"{told}-{mark}-seed-{seed}.json"

    def _check(self, path: Path, content: Any, arm: str) -> None:
        digest, parts = self._fingerprints[arm]
        if content.get("fingerprint") == digest:
            return
        before = content.get("made_with", {})
        changed = [name for name, value in parts.items() if before.get(name) != value]
        raise ValueError(
            f"{str(path)!r} was made with other settings: {', '.join(changed) or 'all of them'} changed since. "
            "Choose another `directory`, or remove this one to run the study anew."
        )
