"""Which batches stand out of a run again and again, while all the others are sound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.facts.readings import nonfinite_gradients, nonfinite_losses
from gradrecipes.diagnosis.outcome.verdict import losses

LOSS_SPIKE = 20.0  # loss of a batch over the usual one of the run's beginning; a label that is wrong costs up to 10
GRADIENT_SPIKE = 100.0  # gradient norm over the usual one of the beginning; sound batches differ by up to 10
FEW = 0.1  # share of the batches of a pass that may stand out and still be single ones
SHORTEST_PASS = 5  # batches; of fewer, none is single
PASSES = 2  # passes over the data in which it has to recur


@dataclass(frozen=True)
class Spikes:
    """The steps at which single batches stood out.

    Args:
        steps: Their numbers, in order.
        passes: How many passes over the data the run had; each had one of them at least.
        loss: The largest loss among them; NaN if none is a number.
        usual_loss: Median loss of the first pass.
        gradient: The largest gradient norm among them, and
        usual_gradient: the median of the first pass.
        broken: Whether they were not finite.
    """

    steps: tuple[int, ...]
    passes: int
    loss: float
    usual_loss: float
    gradient: float
    usual_gradient: float
    broken: bool


def single_batches(trace: Trace) -> Spikes | None:
    """Return the batches that stand out once in every pass over the data; None where there are none, or too many."""
    passes = _passes(trace)
    if len(passes) < PASSES or min(map(len, passes)) < SHORTEST_PASS:
        return None
    loss, norm = losses(trace), trace.gradient_norm.astype(float)
    broken = nonfinite_losses(trace) | nonfinite_gradients(trace)
    first = passes[0]
    usual_loss, usual_norm = _median(np.abs(loss[first])), _median(norm[first])
    with np.errstate(invalid="ignore"):
        high = (np.abs(loss) > LOSS_SPIKE * usual_loss) | (norm > GRADIENT_SPIKE * usual_norm)
    stands_out = high | broken
    counts = [int(stands_out[rows].sum()) for rows in passes]
    if min(counts) < 1 or max(counts) > max(1, int(FEW * min(map(len, passes)))) or max(counts) != min(counts):
        return None
    rows = np.flatnonzero(stands_out)
    if (np.diff(rows) == 1).any():  # what goes on into the next step is no matter of a single batch
        return None
    return Spikes(
        steps=tuple(int(trace.steps["step"][row]) for row in rows),
        passes=len(passes),
        loss=_largest(np.abs(loss[rows])),
        usual_loss=usual_loss,
        gradient=_largest(norm[rows]),
        usual_gradient=usual_norm,
        broken=bool(broken[rows].any()),
    )


def _passes(trace: Trace) -> list[np.ndarray]:
    """Return the rows of each complete pass over the data."""
    period = (trace.probes.trial or TrialReading()).batches or 0
    if period:
        return [np.arange(start, start + period) for start in range(0, len(trace) - period + 1, period)]
    epochs = trace.steps["epoch"]
    found = [np.flatnonzero(epochs == epoch) for epoch in np.unique(epochs)]
    if len(found) > 1 and len(found[-1]) < len(found[0]):
        found = found[:-1]
    return found


def _median(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else np.nan


def _largest(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else np.nan
