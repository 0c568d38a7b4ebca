"""Which learning rates are worth trying: what a range test says, and up to which curvature a rate is stable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gradrecipes.core.arguments import is_number

STOP_AT = 4.0  # times the best smoothed loss: the training has diverged; fastai's lr_find
MEMORY = 0.9  # weight of the past in the running mean that the stop is judged by: some ten batches
SHARE_DROPPED = 0.1  # of the batches, at the start: the first losses say more of the batch than of the rate
LAST_DROPPED = 5  # batches at the end: there it was diverging
MOST_BATCHES = 1_000_000  # beyond it a test takes longer than a training
FEWEST = 10  # batches that must be left to say anything
CLEAR_FALL = 1.8  # times the scatter of single batches: pure noise falls as far less than once in 50 tests
KERNEL_SHARE = 0.03  # of the batches: standard deviation of the Gaussian that the curve is smoothed by
MEMORY_OF_SQUARES = {  # what the optimizer calls its memory of squared gradients
    **dict.fromkeys(("Adam", "AdamW", "Nadam", "RMSprop"), "velocity"),
    "Adagrad": "accumulator",
}
MEMORY_OF_SIZES = {"Adamax": "norm"}  # likewise of magnitudes
PLAIN = ("SGD",)
KNOWN = (*PLAIN, *MEMORY_OF_SQUARES, *MEMORY_OF_SIZES)


class Suggestions(NamedTuple):
    """Learning rates read off the curve, or None where it does not say.

    Attributes:
        valley: Where a third of the largest unbroken fall of the loss is done: robust, the one to start from.
        steepest: Where the loss falls fastest for each factor of the rate: bolder.
        minimum_tenth: A tenth of the rate with the lowest loss: the classic rule.
    """

    valley: float | None
    steepest: float | None
    minimum_tenth: float | None


def range_of_rates(lowest: float, highest: float, batches: int) -> np.ndarray:
    """Return rates that rise by one factor from batch to batch, float64 `[batches]`.

    Raises:
        ValueError: Bounds that are not positive and rising, or too few batches to read anything.
    """
    if not (is_number(lowest) and is_number(highest) and 0 < lowest < highest):
        raise ValueError(
            "The rates must rise from a positive `lowest` to a finite `highest`. "
            f"Received: lowest={lowest!r}, highest={highest!r}."
        )
    fewest = math.ceil((FEWEST + LAST_DROPPED) / (1 - SHARE_DROPPED))
    if not isinstance(batches, int) or isinstance(batches, bool) or not fewest <= batches <= MOST_BATCHES:
        raise ValueError(
            f"`batches` must be a whole number, at least {fewest}, as the ends of the curve are dropped, and at most "
            f"{MOST_BATCHES:,}. Received: batches={batches!r}. 100 suit most nets."
        )
    return np.geomspace(lowest, highest, batches)


def running_mean(losses: np.ndarray) -> np.ndarray:
    """Return the exponential mean of the losses so far, corrected for its start, float64 `[n]`."""
    means, mean = [], 0.0
    for number, loss in enumerate(losses, start=1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        means.append(mean / (1 - MEMORY**number))
    return np.array(means)


def has_diverged(losses: np.ndarray) -> bool:
    """Say whether the test should stop: the last loss is not finite, or the mean is above four times its best.

    Of a loss that goes below zero, four times the best says nothing: there, stop when it has climbed four times
    as far above its best as it ever fell.
    """
    losses = np.asarray(losses, np.float64)
    if not len(losses):
        return False
    if not math.isfinite(losses[-1]):
        return True
    means = running_mean(losses)
    best = float(means.min())
    if best > 0:
        return bool(means[-1] > STOP_AT * best)
    return bool(means[-1] - best > STOP_AT * (means[0] - best) > 0)


def read_range(rates: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of the curve that says something: the ends dropped, the losses smoothed without lag.

    Args:
        rates: float64 `[n]`.
        losses: float64 `[n]`, loss of each batch; of values that are not finite the first ends the curve.

    Returns:
        Rates and smoothed losses, float64 `[m]`; empty where too little is left.
    """
    rates, losses = np.asarray(rates, np.float64), np.asarray(losses, np.float64)
    kept = _kept(losses)
    chosen = rates[kept]
    if len(chosen) < FEWEST:
        return np.empty(0), np.empty(0)
    # The dropped losses at the end would pull the smoothed curve up; those at the start help it.
    usable = losses[: kept.stop]
    place = np.arange(len(usable))
    distance = (place[:, None] - place) / max(1.0, KERNEL_SHARE * (kept.stop + LAST_DROPPED))
    weights = np.exp(-0.5 * np.square(distance))
    return chosen, ((weights @ usable) / weights.sum(1))[kept]


def suggest_rates(rates: np.ndarray, losses: np.ndarray) -> Suggestions:
    """Return the rates that the curve suggests; arguments as in `read_range`.

    Example:
        >>> rates = np.geomspace(1e-5, 1, 100)
        >>> suggest_rates(rates, np.where(rates < 1e-3, 2.0, 2.0 - 0.5 * np.log10(rates / 1e-3))).minimum_tenth
        0.05...
    """
    raw = np.asarray(losses, np.float64)[_kept(losses)]
    rates, losses = read_range(rates, losses)
    if not len(rates) or not (np.diff(losses) < 0).any():
        return Suggestions(None, None, None)
    lowest = int(np.argmin(losses))
    steepest = int(np.argmin(np.gradient(losses, np.log(rates))))
    first, last = _largest_fall(losses)
    scatter = float(np.std(raw[: last + 1] - losses[: last + 1]))
    if losses[first] - losses[last] <= CLEAR_FALL * scatter + 1e-6 * abs(losses[first]):
        return Suggestions(None, None, None)
    # A third in loss, not in batches: how long the loss crept before it fell depends on where the test began.
    third = losses[first] - (losses[first] - losses[last]) / 3
    valley = first + int(np.argmax(losses[first : last + 1] <= third))
    return Suggestions(float(rates[valley]), float(rates[steepest]), float(rates[lowest]) / 10)


def _kept(losses: np.ndarray) -> slice:
    finite = np.isfinite(np.asarray(losses, np.float64))
    count = len(finite) if finite.all() else int(np.argmin(finite))
    return slice(math.ceil(SHARE_DROPPED * count), max(0, count - LAST_DROPPED))


def _largest_fall(losses: np.ndarray) -> tuple[int, int]:
    """Return where the run of falling losses that falls furthest begins and ends."""
    falling = np.concatenate([[False], np.diff(losses) < 0, [False]])
    edges = np.flatnonzero(np.diff(falling.astype(int)))
    starts, ends = edges[::2], edges[1::2]
    largest = int(np.argmax(losses[starts] - losses[ends]))
    return int(starts[largest]), int(ends[largest])


@dataclass(frozen=True)
class StabilityLimit:
    """Hold the largest curvature at which an optimizer is stable.

    Args:
        limit: Largest eigenvalue of the (preconditioned) Hessian at which steps do not yet grow; infinite at rate 0.
        product: The same times the learning rate: 2 for gradient descent.
        preconditioned: Whether the eigenvalue is that of the preconditioned Hessian.
        formula: The limit in words.
    """

    limit: float
    product: float
    preconditioned: bool
    formula: str


def stability_limit(optimizer: Mapping[str, Any], learning_rate: float) -> StabilityLimit | None:
    r"""Return the curvature up to which an optimizer is stable at a learning rate, or None where no limit is known.

    On a slope of curvature lambda, an update that is linear in the gradient is a linear recurrence. It oscillates with
    growing amplitude once `eta * lambda` passes the value at which a root of its characteristic polynomial leaves the
    unit circle through -1:

        gradient descent                        2
        heavy ball, momentum beta               2 (1 + beta)
        Nesterov's momentum                     2 (1 + beta) / (1 + 2 beta)
        mean of gradients, beta_1 (Adam)        2 (1 + beta_1) / (1 - beta_1)          38 at beta_1 = 0.9
        the same, looking ahead (Nadam)         2 (1 + beta_1) / (1 + beta_1 - 2 beta_1^2)

    Optimizers that divide by the size of past gradients meet the curvature of the preconditioned Hessian P^-1 H.

    Args:
        optimizer: `name`, the class, and the arguments of `optimizer.get_config()`; what is missing has Keras' default.
        learning_rate: The rate now, at least 0.

    Raises:
        ValueError: A rate that is negative or not finite.

    Example:
        >>> round(stability_limit({"name": "SGD", "momentum": 0.9}, 0.1).limit, 6)
        38.0

    References:
        Cohen et al., arXiv 2103.00065 (gradient descent, momentum); arXiv 2207.14484 (Adam and its kin).
    """
    if not (math.isfinite(learning_rate) and learning_rate >= 0):
        raise ValueError(f"`learning_rate` must be finite and not negative. Received: learning_rate={learning_rate}.")
    name = str(optimizer.get("name", ""))
    if name not in KNOWN:
        return None
    product, words = _product(name, optimizer)
    limit = product / learning_rate if learning_rate > 0 else math.inf
    return StabilityLimit(limit, product, name not in PLAIN, f"{words} / learning rate")


def _product(name: str, optimizer: Mapping[str, Any]) -> tuple[float, str]:
    if name in ("SGD", "RMSprop"):
        momentum = float(optimizer.get("momentum") or 0.0)
        if momentum and optimizer.get("nesterov"):
            return 2 * (1 + momentum) / (1 + 2 * momentum), "2 (1 + momentum) / (1 + 2 momentum)"
        return 2 * (1 + momentum), "2 (1 + momentum)" if momentum else "2"
    if name == "Adagrad":
        return 2.0, "2"
    beta = float(optimizer.get("beta_1", 0.9))
    if name == "Nadam":
        return 2 * (1 + beta) / (1 + beta - 2 * beta**2), "2 (1 + beta_1) / (1 + beta_1 - 2 beta_1^2)"
    return 2 * (1 + beta) / (1 - beta), "2 (1 + beta_1) / (1 - beta_1)"
