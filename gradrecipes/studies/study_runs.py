"""The runs of a study: which there are, which are made already, and how one is made."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from gradrecipes.studies.arm import Arm, check_fit
from gradrecipes.studies.describe import fingerprint
from gradrecipes.studies.hopeless import hopeless_arms
from gradrecipes.studies.judge import value_of
from gradrecipes.studies.objective import Objective
from gradrecipes.studies.run import Run
from gradrecipes.studies.split import Split
from gradrecipes.studies.store import Store
from gradrecipes.studies.trainer import Trainer

_LOG = logging.getLogger(__name__)


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
