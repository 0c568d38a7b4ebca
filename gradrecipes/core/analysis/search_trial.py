"""One trial of a search: whether it diverged, what its failure counts, and what is kept of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from gradrecipes.core.trace import APPLIED

LONGEST_NORM = 1.8446743e19  # √(largest float32): the square of a longer gradient, which optimizers keep, overflows
FAR_WORSE = 10.0  # times the loss before the first step: chance alone is 1 to 3 times it with 8 samples or more
EXPLODED = 100.0  # times it: an explosion, after which a net that is dead may come back to guessing, but no further
STEPS_FAR_WORSE = 8  # in a row: a spike of a training that recovers is shorter (llm-foundry waits for 4)
STEPS_AT_REST = 16  # in a row whose gradient is exactly zero: no later step will move a weight
LEARNED = 0.9  # of the first loss: a gradient of zero below it may be a perfect fit, above it the units are dead


@dataclass(frozen=True)
class Divergence:
    """Say how a training was lost.

    Args:
        cause: `"nonfinite_loss"`, `"nonfinite_gradient"`, `"gradient_overflow"`, `"diverging_loss"` or
            `"zero_gradient"`.
        step: The first step of it, counted from 0.
        loss_ratio: The largest finite loss over the first one, or NaN.
    """

    cause: str
    step: int
    loss_ratio: float


def find_divergence(
    losses: np.ndarray,
    gradient_norms: np.ndarray,
    outcomes: np.ndarray,
    *,
    guarded: bool = False,
    known: int = 0,
    peak: float = -np.inf,
    ended: bool = False,
) -> Divergence | None:
    """Return how a training was lost, or None while it is alive.

    A value that is not finite, or a gradient whose square overflows, loses a plain training at once: the weights are
    ruined by that step or the next. A guard leaves such steps out, so that with one only the level of the losses
    counts. It is lost when it is ten times that before the first step for eight steps in a row, or when it exploded to
    a hundred times that and was for eight steps no better than before the first one: units that an absurd step has
    killed let the loss fall back to that of guessing. And a gradient of exactly zero, where nothing was learned, means
    that no unit is alive any more. With fewer than about eight samples in a batch the first loss says little, and a
    training may be called lost that was not.

    Args:
        losses: float `[n]`, loss of each step's batch; NaN where it is not known is taken for a loss that is NaN only
            if the gradient is not finite either, or the loss was known before.
        gradient_norms: float `[n]`, global norm before clipping.
        outcomes: int `[n]`, keys of `gradrecipes.core.trace.OUTCOMES`.
        guarded: Whether a guard leaves out what is not finite.
        known: Steps that were judged before and found healthy; they are not searched for values that are not finite.
        peak: The largest loss of applied steps that are left out of the arrays.
        ended: Whether no step follows: then fewer than eight in a row are enough, all but the first.

    Example:
        >>> find_divergence(np.array([2.3, 9.0, np.nan]), np.array([1.0, 50.0, np.nan]), np.zeros(3, int)).step
        2
    """
    losses, norms = np.asarray(losses, np.float64), np.asarray(gradient_norms, np.float64)
    applied = np.asarray(outcomes) == APPLIED
    if not len(losses):
        return None
    found = None if guarded else _first_ruin(losses[known:], norms[known:], bool(np.isfinite(losses).any()))
    if found is not None:
        return Divergence(found[0], known + found[1], _ratio(losses[: known + found[1] + 1]))
    losses, norms, places = losses[applied], norms[applied], np.flatnonzero(applied)
    if not len(losses):
        return None
    first = losses[0]
    window = min(STEPS_FAR_WORSE, len(losses) - 1) if ended else STEPS_FAR_WORSE
    last = losses[len(losses) - window :]
    peak = float(np.fmax.reduce(losses, initial=peak))
    still_lost = (last >= FAR_WORSE * first).all() or (peak >= EXPLODED * first and (last >= first).all())
    if first > 0 and len(losses) > window > 0 and still_lost:
        return Divergence("diverging_loss", int(places[-window]), peak / first)
    at_rest = norms[-STEPS_AT_REST:]
    if len(at_rest) == STEPS_AT_REST and (at_rest == 0).all() and np.median(losses[-STEPS_AT_REST:]) >= LEARNED * first:
        return Divergence("zero_gradient", int(places[-STEPS_AT_REST]), _ratio(losses))
    return None


def _first_ruin(losses: np.ndarray, norms: np.ndarray, losses_are_known: bool) -> tuple[str, int] | None:
    lost = ~np.isfinite(losses) if losses_are_known else np.zeros(len(losses), bool)
    broken = ~np.isfinite(norms)
    overflowing = norms > LONGEST_NORM
    ruined = np.flatnonzero(lost | broken | overflowing)
    if not len(ruined):
        return None
    step = int(ruined[0])
    cause = "nonfinite_loss" if lost[step] else "nonfinite_gradient" if broken[step] else "gradient_overflow"
    return cause, step


def _ratio(losses: np.ndarray) -> float:
    finite = losses[np.isfinite(losses)]
    return float(finite.max() / finite[0]) if len(finite) and finite[0] > 0 else math.nan


# The place in this tuple is the number by which a worker tells the chief of a cause: add at the end only.
CAUSES = (
    "error",
    "nonfinite_loss",
    "nonfinite_gradient",
    "gradient_overflow",
    "diverging_loss",
    "zero_gradient",
    "nonfinite_weights",
    "nonfinite_objective",
    "guard_gave_up",
    "parent_failed",
    "guard_rolled_back",
    "guard_skipped",
)
MILD_CAUSES = ("diverging_loss", "zero_gradient", "guard_gave_up", "guard_rolled_back")  # the loss may be finite
WEIGHT_OF_PROGRESS = 0.75  # of the severity: how long a training lived tells more than how bad its end was
MARGIN = 0.1  # of the spread of the successes, between the worst of them and the mildest failure
DECADES = 6.0  # of the loss over its first value, at which an end counts as bad as one that is not finite
DIGEST_MODULUS = 2**24  # whole numbers below it survive as float32


@dataclass(frozen=True)
class Failure:
    """Say why a trial failed, how far it got and how bad it was.

    Args:
        cause: One of `CAUSES`.
        step: Training steps that it lived.
        planned_steps: Training steps that it was to have; 0 if that is not known.
        loss_ratio: Its largest finite loss over its first, or NaN.
        message: What else is known, in words.

    Raises:
        ValueError: An unknown cause.
    """

    cause: str
    step: int = 0
    planned_steps: int = 0
    loss_ratio: float = math.nan
    message: str = ""

    def __post_init__(self):
        if self.cause not in CAUSES:
            raise ValueError(f"`cause` must be one of: {', '.join(CAUSES)}. Received: cause={self.cause!r}.")

    @property
    def progress(self) -> float:
        """How far the trial got, 0 to 1, on a logarithmic scale: ten times the rate costs about as many steps."""
        if self.planned_steps < 1 or self.step < 1:
            return 0.0
        return min(1.0, math.log1p(self.step) / math.log1p(self.planned_steps))

    @property
    def mildness(self) -> float:
        """How bad the end was: 1 for a loss no larger than the first, 0 for one that is not finite."""
        if self.cause not in MILD_CAUSES or not self.loss_ratio > 0:
            return 0.0
        return 1.0 - min(1.0, max(0.0, math.log10(self.loss_ratio)) / DECADES)

    @property
    def severity(self) -> float:
        """From 0, a failure at the very end and hardly one, to 1, one that did not even begin."""
        return 1.0 - WEIGHT_OF_PROGRESS * self.progress - (1.0 - WEIGHT_OF_PROGRESS) * self.mildness

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"severity": self.severity}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Failure:
        """Return the failure of which `to_dict` made plain values, JSON's null standing for NaN."""
        values = {one.name: content[one.name] for one in fields(cls)}
        return cls(**{**values, "loss_ratio": math.nan if values["loss_ratio"] is None else values["loss_ratio"]})


def penalized_score(severity: float, successes: Sequence[float], *, maximize: bool) -> float:
    """Return the finite score of a failure: worse than every success, and the worse the more severe it is.

    Args:
        severity: 0 to 1; see `Failure.severity`.
        successes: Scores of the trials that did not fail; may be empty.
        maximize: Whether more is better.

    Example:
        >>> round(penalized_score(0.5, [0.9, 0.5], maximize=True), 2)
        0.26
    """
    sign = -1.0 if maximize else 1.0
    scores = [sign * score for score in successes if math.isfinite(score)]
    if not scores:
        return sign * (1.0 + severity)
    worst, best = max(scores), min(scores)
    spread = worst - best
    if not spread > 1e-6 * abs(worst):
        spread = abs(worst) or 1.0  # all successes alike: their size is the only scale there is
    return sign * (worst + spread * (MARGIN + severity))


@dataclass(frozen=True)
class SearchTrial:
    """Hold what one trial tried and what came of it.

    Args:
        trial_id: Its name.
        values: Its settings, by name.
        score: The objective, or None if it failed or has not ended.
        status: `"completed"`, `"failed"`, `"hopeless"` or `"running"`.
        failure: Why it failed, or None.
        steps: Training steps that ran.
        seconds: Wall time.
        curve: The objective after each epoch.
        worker: Who ran it.
    """

    trial_id: str
    values: dict[str, Any]
    score: float | None = None
    status: str = "completed"
    failure: Failure | None = None
    steps: int = 0
    seconds: float = 0.0
    curve: list[float | None] = field(default_factory=list)
    worker: str = ""

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return self.status == "failed"

    @property
    def cause(self) -> str:
        """Why it failed, or an empty word."""
        return self.failure.cause if self.failure else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "failure": None if self.failure is None else self.failure.to_dict()}


@dataclass(frozen=True)
class SpaceAxis:
    """Say how the values of one setting are laid out along an axis.

    Args:
        name: Of the setting.
        logarithmic: Whether equal factors get equal lengths.
        choices: The values in their order, if they are no numbers on a scale.
    """

    name: str
    logarithmic: bool = False
    choices: tuple[Any, ...] = ()

    def places(self, values: Sequence[Any]) -> np.ndarray:
        """Return where values stand, float64 `[n]`: log10 of a number, the number, or the place of a choice; or NaN."""
        return np.array([self._place(value) for value in values], np.float64)

    def _place(self, value: Any) -> float:
        if self.choices:
            return float(self.choices.index(value)) if value in self.choices else math.nan
        if not isinstance(value, int | float):
            return math.nan
        if self.logarithmic:
            return math.log10(value) if value > 0 else math.nan
        return float(value)
