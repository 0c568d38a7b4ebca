"""The parts of a loss that a train step of the user's own returns: what each weighs, and which one is outweighed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gradrecipes.core.trace.trial_reading import TrialReading

OUTWEIGHS = 30.0  # largest term over the one that is not learned; GradNorm's tasks differ by less
DROWNS = 1e3  # the same at the start and at the end, where no variation could be run
EXACT = 1e-3  # error of the sum of the parts over the loss, up to which the weights are taken as found
CERTAIN = 5.0  # weight of a part over its standard error: what lies below may be a metric beside the loss
FLAT = 0.2  # relative change of a part that is not learned
FELL = 0.5  # the end over the start of a sum that hides a part
MIN_STEPS = 20  # from which the weights of the parts are found
# What holds a net back is small on purpose, and need not fall.
REGULARIZES = re.compile(r"kl|kullback|reg|l1|l2|penal|decay|entrop|commit|adv|gan|sparsity|smooth|(^|_)(gp|tv)($|_)")


class Outweighed(NamedTuple):
    """Name the part that makes up the loss and the one that is not learned, with their sizes in the loss."""

    large: str
    small: str
    large_size: float
    small_size: float
    small_end: float


def outweighed_part(trial: TrialReading) -> Outweighed | None:
    """Return a part of the loss that another one outweighs by its weight, and that is not learned.

    The weights follow from the values of the parts and of the loss, step by step, by least squares. A part counts as
    lost where it is a thousandth of the largest one at the start and at the end, and did not fall; or where it is a
    thirtieth at the start, and stayed as it was while the largest one fell below half.

    Args:
        trial: A trial whose logs hold the loss and its parts. Where `later` is known, it is the end.
    """
    weights, columns, loss = _weights(trial.logs)
    if len(weights) < 2:
        return None
    quarter = max(1, len(loss) // 4)
    starts = {name: float(np.median(columns[name][:quarter])) for name in weights}
    ends = {name: float(np.median(columns[name][-quarter:])) for name in weights} | {
        name: value for name, value in trial.later.items() if name in weights
    }
    first = {name: weights[name] * float(columns[name][0]) for name in weights}
    end = {name: weights[name] * ends[name] for name in weights}
    large = max(first, key=lambda name: first[name])
    if not min(end[large], float(np.median(loss[-quarter:]))) < FELL * first[large]:
        return None
    lost = [
        name
        for name in weights
        if name != large and not REGULARIZES.search(name.lower()) and name not in trial.weight_penalties
        if weights[large] >= OUTWEIGHS * weights[name]
        if first[large] >= OUTWEIGHS * first[name]
        if _is_lost(first[large] / first[name], max(end.values()) / end[name], ends[name] / starts[name])
    ]
    if not lost:
        return None
    small = min(lost, key=lambda name: first[name])
    return Outweighed(large, small, first[large], first[small], end[small])


def _is_lost(ratio: float, ratio_at_end: float, change: float) -> bool:
    drowned = min(ratio, ratio_at_end) >= DROWNS and change > 1.0 - FLAT
    return drowned or abs(change - 1.0) < FLAT


def _weights(
    logs: Mapping[str, tuple[float | None, ...]],
) -> tuple[dict[str, float], dict[str, np.ndarray], np.ndarray]:
    """Return (weight of each part, values of each part, loss); no weights where the parts do not make up the loss."""
    read = {name: np.array([np.nan if one is None else one for one in values]) for name, values in logs.items()}
    loss = read.pop("loss", np.zeros(0))
    parts = {
        name: part
        for name, part in read.items()
        if len(part) == len(loss) and np.isfinite(part).all() and (part > 0).all()
        if not name.startswith("gradient_norm")
    }
    if len(loss) < MIN_STEPS or not np.isfinite(loss).all() or not (loss > 0).all():
        return {}, parts, loss
    names = list(parts)
    while len(names) > 1:  # without the metrics that are no terms
        columns = np.stack([parts[name] for name in names], axis=1)
        sizes = columns.mean(axis=0)
        scaled = columns / sizes / loss[:, None]
        found, *_ = np.linalg.lstsq(scaled, np.ones(len(loss)), rcond=None)
        left = scaled @ found - 1.0
        covariance = np.linalg.pinv(scaled.T @ scaled) * float(left @ left) / max(1, len(loss) - len(names))
        sure = found / np.sqrt(np.maximum(np.diag(covariance), np.finfo(float).tiny))
        if np.abs(left).max() > EXACT:
            break
        if (sure > CERTAIN).all():
            return dict(zip(names, (found / sizes).tolist(), strict=True)), parts, loss
        names.pop(int(np.argmin(sure)))
    return {}, parts, loss
