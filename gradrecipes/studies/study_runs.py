"""The runs of a study: which there are, which are made already, and how one is made."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import logging
import os
import re
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.trace.record import dumps
from gradrecipes.studies.arm import Arm, Objective, Run, check_fit
from gradrecipes.studies.judge import hopeless_arms, value_of
from gradrecipes.studies.split import Split
from gradrecipes.studies.trainer import Trainer

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


_LOG = logging.getLogger(__name__)
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
LARGEST_ARRAY = 16  # numbers that are written out; of larger arrays a digest is


class StudyRuns:
    """Hold what a study trains and what has been trained of it; for the arguments see `gr.Study`."""

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
        other = Store(directory, fingerprints=self.fingerprints)
        for found in self.runs.values():
            for run in found:
                other.put(run)
        self._store, self.directory = other, directory

    @property
    def runs(self) -> dict[str, list[Run]]:
        """The results so far, for each arm in the order of the seeds."""
        found = {name: [self._store.get(name, seed) for seed in self.seeds] for name in self.arms}
        return {name: [run for run in runs if run is not None] for name, runs in found.items()}


def _checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        seeds = range(seeds)
    given = tuple(seeds) if not isinstance(seeds, bool | str) else ()
    if not given or len(set(given)) != len(given) or not all(isinstance(seed, int) and seed >= 0 for seed in given):
        raise ValueError(
            f"`seeds` must be how many, at least 1, or different whole numbers from 0 up. Received: seeds={seeds!r}."
        )
    return given


def describe(value: Any) -> Any:
    """Return a plain JSON value that is the same whenever the same thing is given, in another process too.

    Functions are told by their names and by their source; Keras objects by their configuration; other objects
    by their representation.

    Example:
        >>> describe({"rate": 0.1, "shape": (2, 3)})
        {'rate': 0.1, 'shape': [2, 3]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        small = value.size <= LARGEST_ARRAY
        return value.tolist() if small else hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
    if inspect.isroutine(value) or inspect.isclass(value):
        # Without the module: that of a script has another name in the workers which it starts.
        return f"{value.__qualname__}:{_digest(source_of(value))}"
    if dataclasses.is_dataclass(value):
        return {one.name: describe(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if hasattr(value, "get_config"):
        try:
            return json.loads(json.dumps(keras.saving.serialize_keras_object(value), sort_keys=True, default=str))
        except Exception:  # whatever its author's get_config raises
            return _represented(value)
    return _represented(value)


def fingerprint(
    build: Callable[..., Any], arm: Arm, *, fit: Mapping[str, Any], data: str
) -> tuple[str, dict[str, Any]]:
    """Return a digest of all that a run depends on beside its seed, and its parts.

    Args:
        build: The study's `build`.
        arm: The arm.
        fit: The study's arguments of `fit`.
        data: Fingerprint of the data.
    """
    parts = {
        "build": describe(build),
        "arm": {name: describe(getattr(arm, name)) for name in ("build", "fit", "recipe")},
        "fit": describe(fit),
        "data": data,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    return _digest(json.dumps(parts, sort_keys=True)), parts


def source_of(function: Any) -> str:
    """Return the source of a function or class, or its code where there is none."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return "" if code is None else repr(_told(code))


def _told(code: types.CodeType) -> tuple[Any, ...]:
    constants = [_told(one) if isinstance(one, types.CodeType) else _represented(one) for one in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants


def _represented(value: Any) -> str:
    return ADDRESS.sub("", str(value))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
