"""Whether a training has diverged, judged from the losses and gradient norms of its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
