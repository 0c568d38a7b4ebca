"""What a rescue came to: the repaired model, what was changed, and the trials that prove it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from gradrecipes.report import strict_json
from gradrecipes.report.diagnosis import Diagnosis
from gradrecipes.rescue.code import code_of
from gradrecipes.rescue.lab import Trial
from gradrecipes.rescue.page import page
from gradrecipes.rescue.screen import screen
from gradrecipes.rescue.search import Proof
from gradrecipes.rescue.setup import Setup

NOTHING_NEEDED, RESCUED, NOT_RESCUED = "nothing needed", "rescued", "not rescued"
FORMAT, VERSION = "gradrecipes.rescue", 1


@dataclass(frozen=True)
class AdvisedChange:
    """One change of the answer.

    Args:
        name: Short name, such as `"rate_0.1"`.
        title: What to do, in the imperative.
        needed: By how much the score falls without it, measured; None where the search was stopped before.
    """

    name: str
    title: str
    needed: float | None


@dataclass(frozen=True)
class RescueEvidence:
    """What the answer rests on.

    Args:
        measured: What the scores are, in words.
        chance: Score of the best constant guess.
        proof: The paired comparison, or None.
        trials: Every trial, in order.
        control: Score of the training as it is.
        training_steps: Steps of the user's own training.
        spent_steps: Steps of all trials, in batches of the user's size.
        seconds: Wall time by part.
        complete: False where the search was interrupted.
        data_complete: False where a dataset was too large to be read whole.
    """

    measured: str
    chance: float
    proof: Proof | None
    trials: tuple[Trial, ...]
    control: float | None
    training_steps: int
    spent_steps: float
    seconds: dict[str, float]
    complete: bool = True
    data_complete: bool = True

    @property
    def trainings(self) -> float:
        """Cost of all trials, in trainings of the user's."""
        return self.spent_steps / max(1, self.training_steps)


@dataclass(frozen=True, eq=False, repr=False)
class Rescue:
    """Hold a repaired training that was tried before it is advised.

    Args:
        verdict: `"rescued"`, `"nothing needed"` or `"not rescued"`.
        changes: What was changed, the smallest set that wins.
        evidence: The trials.
        diagnosis: What was found wrong.
        before: The user's setup.
        after: The repaired setup; the same where nothing was changed.

    Attributes:
        model: A new compiled, untrained model with the changes. It takes and gives the user's own units. The user's
            own model, as it was, where nothing was changed.
        fit_arguments: What `model.fit` needs besides data and epochs: `batch_size` of arrays, `callbacks`.
    """

    verdict: str
    changes: tuple[AdvisedChange, ...]
    evidence: RescueEvidence
    diagnosis: Diagnosis
    before: Setup
    after: Setup
    _user_model: keras.Model = field(repr=False)
    _build: Callable[[int], keras.Model] = field(repr=False)
    _arrays: bool = True
    _held: dict[str, keras.Model] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> keras.Model:
        """The repaired model, built when it is first asked for."""
        if "model" not in self._held:
            self._held["model"] = self._user_model if not self.changes else self.build()
        return self._held["model"]

    def build(self, *, seed: int = 0) -> keras.Model:
        """Return another new model with the changes.

        Args:
            seed: 0 for the weights of `model`; another draws anew what is neither frozen nor pretrained.
        """
        return self._build(seed)

    @property
    def fit_arguments(self) -> dict[str, Any]:
        """Arguments of `fit`; callbacks are new ones each time."""
        arguments: dict[str, Any] = {"batch_size": self.after.batch_size} if self._arrays else {}
        if self.after.guard:
            from gradrecipes.callbacks.gradient_guard import GradientGuard

            arguments["callbacks"] = [GradientGuard()]
        return arguments

    @property
    def rescued(self) -> bool:
        """Whether a changed training won."""
        return self.verdict == RESCUED

    def as_code(self) -> str:
        """Return the changes as Keras lines to paste into the script; empty where there are none."""
        return code_of(self.before, self.after)

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON values."""
        return strict_json.plain(
            {
                "format": FORMAT,
                "version": VERSION,
                "verdict": self.verdict,
                "changes": [vars(change) for change in self.changes],
                "difference": [one.to_json() for one in self.before.diff(self.after)],
                "setup": self.after.to_json(),
                "code": self.as_code(),
                "evidence": _evidence(self.evidence),
                "diagnosis": {
                    "verdict": self.diagnosis.verdict,
                    "findings": [finding.to_dict() for finding in self.diagnosis.findings],
                },
            }
        )

    def to_json(self) -> str:
        """Return `to_dict` as strict JSON text."""
        return strict_json.dumps(self.to_dict())

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the answer as one HTML page without scripts or links."""
        text = page(self)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def __str__(self) -> str:
        return screen(self)

    __repr__ = __str__


def _evidence(evidence: RescueEvidence) -> dict[str, Any]:
    proof = evidence.proof
    told = {**vars(evidence), "trials": [vars(trial) for trial in evidence.trials], "trainings": evidence.trainings}
    if proof is not None:
        interval = None if proof.interval is None else [proof.interval.low, proof.interval.high]
        told["proof"] = {**vars(proof), "interval": interval, "difference": proof.difference, "wins": proof.wins}
    return told
