"""How a training went: broke, diverged, stood still, or learnt. What rules ask before they call anything harmful."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.facts.readings import TOLERATED_BY_SCALER, middle, nonfinite_gradients, nonfinite_losses, say

BROKEN, DIVERGING, STALLED, OSCILLATING, LEARNING, UNKNOWN = (
    "broken",
    "diverging",
    "stalled",
    "oscillating",
    "learning",
    "unknown",
)
SHORTEST = 8  # steps; fewer show no trend
WINDOW_SHARE = 0.25  # of the steps, whose median is the start or the end, where the same batches did not come again
RISE = 2.0  # end over start by which a loss has left for good; batches of sound nets differ by less in the median
NOISES = 5.0  # robust standard deviations of the first losses that a rise exceeds too
FIRST = 3  # steps whose median is the loss before anything happened
PEAK = 10.0  # highest loss over those, and over all at the end, after which a run was thrown away
FIRST_PEAK = 1e3  # the same over the very first loss, where the second step already threw it away
BACK_DOWN = 0.5  # end over first below which it has come back; bumps of sound runs heal
STILL = 0.01  # relative fall over the whole run below which next to nothing was learnt
SLOW = 0.1  # relative fall over the whole run of a net that learns, but slowly
FAR_START = 5.0  # first loss over that of a blind guess; He nets with a cross-entropy begin below 2
SURE = 2.0  # standard errors that a fall exceeds which is no accident
WILD = 1.0  # robust spread of the last losses over their median: a net at rest has .1 to .5


@dataclass(frozen=True)
class Verdict:
    """Say how a run went.

    Args:
        state: `"broken"`, `"diverging"`, `"stalled"`, `"oscillating"`, `"learning"` or `"unknown"`.
        start: Median loss of the first batches.
        end: Median loss of the last ones, of the same batches if they came again.
        fall: (start - end) / |start|.
        baseline: The loss of the best constant answer; NaN where it is not known.
        step: Where it broke or left its start, or None.
    """

    state: str
    start: float
    end: float
    fall: float
    baseline: float
    step: int | None = None

    @property
    def unhealthy(self) -> bool:
        """Whether the run broke or diverged."""
        return self.state in (BROKEN, DIVERGING)

    @property
    def suspicious(self) -> bool:
        """Whether the run is worth a closer look: not learning, slow, far out at first, or below the baseline."""
        return self.state != LEARNING or self.start_over_baseline >= FAR_START or self.slow or not self.learnt

    @property
    def slow(self) -> bool:
        """Whether the loss fell by less than a tenth, or ends so near to the baseline."""
        return self.state == LEARNING and (self.fall < SLOW or self.end_over_baseline > 1.0 - SLOW)

    @property
    def learnt(self) -> bool:
        """Whether the net got better, and where the baseline is known, better than that."""
        return self.state == LEARNING and not self.end_over_baseline >= 1.0

    @property
    def course(self) -> str:
        """The way of the loss in words: "went from 2.3 to 0.4", "stayed at 2.3"."""
        start, end = say(self.start), say(self.end)
        return f"went from {start} to {end}" if start != end else f"stayed at {end}"

    @property
    def start_over_baseline(self) -> float:
        """Start over the baseline; NaN where that is not known."""
        return self.start / self.baseline if self.baseline > 0 else math.nan

    @property
    def end_over_baseline(self) -> float:
        """End over the baseline; NaN where that is not known."""
        return self.end / self.baseline if self.baseline > 0 else math.nan


def verdict(trace: Trace) -> Verdict:
    """Judge a run by its own losses.

    A trial runs the same batches several times, so that each is compared with itself; a fit's first quarter is
    compared with its last.
    """
    trial = trace.probes.trial or TrialReading()
    loss = losses(trace)
    baseline = trial.constant_baseline_loss
    baseline = math.nan if baseline is None or baseline <= 0 else baseline
    bad = nonfinite_losses(trace) | nonfinite_gradients(trace)
    period = trial.batches or 0
    finite = loss[np.isfinite(loss)]
    start, end = _ends(finite, period)
    fall = (start - end) / abs(start) if start else 0.0
    if _broke(trace, bad, trial):
        row = int(np.argmax(bad)) if bad.any() else max(0, len(trace) - 1)
        step = int(trace.steps["step"][row]) if len(trace) else None
        return Verdict(BROKEN, start, end, fall, baseline, step)
    if len(finite) < SHORTEST:
        return Verdict(UNKNOWN, start, end, fall, baseline)
    if (first := _thrown_away_from(finite, end, max(1, period))) is not None:
        peak = int(trace.steps["step"][int(np.nanargmax(np.where(np.isfinite(loss), loss, -np.inf)))])
        return Verdict(DIVERGING, first, end, (first - end) / abs(first), baseline, peak)
    noise = _spread(finite[: max(SHORTEST, period)])
    if end - start > max((RISE - 1.0) * abs(start), NOISES * noise):
        above = loss - start > max((RISE - 1.0) * abs(start), NOISES * noise)
        return Verdict(DIVERGING, start, end, fall, baseline, int(trace.steps["step"][int(np.argmax(above))]))
    if fall < STILL or (fall < SLOW and start - end < SURE * _error_of_fall(finite, period)):
        last = finite[-max(SHORTEST, period, len(finite) // 4) :]
        wild = _spread(last) > WILD * abs(middle(last)) and _spread(last) > 3.0 * noise
        return Verdict(OSCILLATING if wild else STALLED, start, end, fall, baseline)
    return Verdict(LEARNING, start, end, fall, baseline)


def _thrown_away_from(finite: np.ndarray, end: float, period: int) -> float | None:
    """Return the loss at the start of a run that shot up, came down somewhere, and is no better than it was."""
    peak, settled = float(np.max(finite)), float(np.max(finite[-period:]))
    for first, factor in ((float(np.median(finite[:FIRST])), PEAK), (float(finite[0]), FIRST_PEAK)):
        if first > 0 and peak > factor * first and peak > PEAK * settled and end > BACK_DOWN * first:
            return first
    return None


def losses(trace: Trace) -> np.ndarray:
    """Return the loss of each step, float64 `[n]`; that of the logs where a train step of its own computes it."""
    loss = trace.loss.astype(float)
    if len(loss) and np.isnan(loss).all():
        logged = (trace.probes.trial or TrialReading()).logs.get("loss", ())
        if logged and len(logged) == len(loss):
            return np.array([math.nan if value is None else value for value in logged])
    return loss


def _broke(trace: Trace, bad: np.ndarray, trial: TrialReading) -> bool:
    if trial.broken is not None:  # by a loss that only the step's logs tell, too
        return True
    if not bad.any():
        return False
    if trace.description.loss_scaler:
        return bool(bad.mean() > TOLERATED_BY_SCALER)
    return True


def _ends(loss: np.ndarray, period: int) -> tuple[float, float]:
    """Return (start, end): the medians over the first and the last pass, or over a quarter of the steps."""
    if not len(loss):
        return math.nan, math.nan
    count = period if 0 < period <= len(loss) // 2 else max(1, int(len(loss) * WINDOW_SHARE))
    return float(np.median(loss[:count])), float(np.median(loss[-count:]))


def _error_of_fall(loss: np.ndarray, period: int) -> float:
    """Return the standard error of the fall: of each batch against itself, or of two windows of a fit."""
    if 2 < period <= len(loss) // 2:
        last = np.roll(loss[-period:], len(loss) % period)  # each batch in the place that it has in the first pass
        return _spread(loss[:period] - last) / math.sqrt(period)
    count = max(1, int(len(loss) * WINDOW_SHARE))
    return math.hypot(_spread(loss[:count]), _spread(loss[-count:])) / math.sqrt(count)


def _spread(values: np.ndarray) -> float:
    """Return a standard deviation that single batches do not move: that of a normal with the same quartiles."""
    low, high = np.percentile(values, [25, 75]) if len(values) else (0.0, 0.0)
    return float(high - low) / 1.349
