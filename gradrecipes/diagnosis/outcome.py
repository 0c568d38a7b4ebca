"""How a training went: broke, diverged, stalled, or learned; and what the variations of its trial show."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gradrecipes.core.findings import Evidence
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import DataReading
from gradrecipes.core.trace.trial_reading import (
    AS_IT_IS,
    TrialReading,
    Variation,
    VariationResult,
    variation_of,
)
from gradrecipes.diagnosis.facts.readings import (
    TOLERATED_BY_SCALER,
    middle,
    nonfinite_gradients,
    nonfinite_losses,
    rounded,
)

BROKEN, DIVERGING, STALLED, OSCILLATING = "broken", "diverging", "stalled", "oscillating"
LEARNING, UNKNOWN = "learning", "unknown"
MIN_STEPS = 8  # recorded steps below which no trend is read
WINDOW_SHARE = 0.25  # share of the steps that start and end are medians of, where no batch is repeated
DIVERGING_RISE = 2.0  # end over start from which a loss diverges; in healthy runs the medians of batches differ by less
FOLLOWED_RISE = 1e4  # the same of a loss that follows the net's own values: these grow to 1 / (1 - 0.99) times a reward
RISE_IN_NOISE = 5.0  # robust standard deviations of the first losses that such a rise must exceed as well
FIRST_STEPS = 3  # steps whose median is the first loss
HIGH_PEAK = 10.0  # highest loss over the first, and over all of the last pass, of a run that diverged and settled
FIRST_PEAK = 1e3  # the same over the loss of step 0, for a run that diverged in the second step
RECOVERED_END = 0.5  # end over first loss below which such a run has recovered
WON_END = 0.01  # end over the first value of a loss that is almost 0
HEAVY_TAIL = 1.5  # mean over median of a pass; that of an exponential distribution is 1.44
SPIKE = 3.0  # highest loss of a batch over its least; in a run that learns nothing only noise makes it rise
STALLED_FALL = 0.01  # relative fall over the whole run below which the loss counts as stalled
SLOW_FALL = 0.1  # relative fall over the whole run below which a net learns slowly
FAR_START = 5.0  # first loss over the baseline from which a start is far out; He nets start below 2
LEARNED_AT_ONCE = 0.5  # relative fall from the first loss of a run that converged within its first pass
AT_REST = 0.9  # end over the baseline below which a run whose loss no longer falls has learned
NOTHING_LEFT = 1e-6  # the same over the first loss, where the baseline is unknown: ten rounding errors of float32
FALL_IN_ERRORS = 2.0  # standard errors that a fall must exceed
OSCILLATING_SPREAD = 1.0  # robust spread over median of the last losses; converged nets have .1 to .5


@dataclass(frozen=True)
class Verdict:
    """How a run went.

    Args:
        state: `"broken"`, `"diverging"`, `"stalled"`, `"oscillating"`, `"learning"` or `"unknown"`.
        start: Median loss of the first batches.
        end: Median loss of the last ones, of the same batches if they came again.
        fall: (start - end) / |start|.
        baseline: The loss of the best constant prediction; NaN where it is not known.
        step: Where it broke or began to diverge, or None.
        mean_end: Mean loss of the last pass of a trial whose batches have a heavy tail, to compare with the baseline,
            which is a mean as well; NaN of others, and where samples are outliers.
    """

    state: str
    start: float
    end: float
    fall: float
    baseline: float
    step: int | None = None
    mean_end: float = math.nan

    @property
    def unhealthy(self) -> bool:
        """Whether the run broke or diverged."""
        return self.state in (BROKEN, DIVERGING)

    @property
    def suspicious(self) -> bool:
        """Whether variations are worth running: it does not learn, is slow, starts far out, or misses the baseline."""
        return self.state != LEARNING or self.start_over_baseline >= FAR_START or self.slow or not self.learned

    @property
    def slow(self) -> bool:
        """Whether the loss fell by less than a tenth, or ends less than a tenth below the baseline."""
        return self.state == LEARNING and (self.fall < SLOW_FALL or self.end_over_baseline > 1.0 - SLOW_FALL)

    @property
    def learned(self) -> bool:
        """Whether the loss fell, and ends below the baseline where that is known."""
        return self.state == LEARNING and not self.end_over_baseline >= 1.0

    @property
    def course(self) -> str:
        """The course of the loss in words: "went from 2.3 to 0.4", "stayed at 2.3"."""
        return _moves(self.start, self.end).replace("goes", "went").replace("stays", "stayed")

    @property
    def start_over_baseline(self) -> float:
        """Start over the baseline; NaN where that is not known."""
        return self.start / self.baseline if self.baseline > 0 else math.nan

    @property
    def end_over_baseline(self) -> float:
        """End over the baseline; NaN where that is not known."""
        end = self.end if math.isnan(self.mean_end) else self.mean_end
        return end / self.baseline if self.baseline > 0 else math.nan


def verdict(trace: Trace) -> Verdict:
    """Judge a run by its own losses.

    A trial repeats its batches: each is compared with itself. Of a fit, the first quarter is compared with the last.
    """
    found = _verdict(trace)
    trial, loss, data = trace.probes.trial, losses(trace), trace.probes.data or DataReading()
    corrupt = any(array.outliers or array.nonfinite for array in data.arrays("inputs", "targets"))
    last = loss[-trial.batches :] if trial is not None and trial.batches and not corrupt else loss[:0]
    return replace(found, mean_end=float(np.mean(last))) if has_heavy_tail(last) else found


def has_heavy_tail(loss: np.ndarray) -> bool:
    """Return whether a few batches make up most of the mean of a pass, so that its median says nothing of that."""
    if not len(loss) or not np.isfinite(loss).all():
        return False
    return float(np.mean(loss)) > HEAVY_TAIL * float(np.median(loss)) > 0


def _verdict(trace: Trace) -> Verdict:
    trial = trace.probes.trial or TrialReading()
    loss = losses(trace)
    baseline = known if (known := trial.constant_baseline_loss or 0.0) > 0 else math.nan
    bad = nonfinite_losses(trace) | nonfinite_gradients(trace)
    period = trial.batches or 0
    finite = loss[np.isfinite(loss)]
    start, end = _ends(finite, period)
    fall = (start - end) / abs(start) if start else 0.0
    if _broke(trace, bad, trial):
        row = int(np.argmax(bad)) if bad.any() else max(0, len(trace) - 1)
        return Verdict(BROKEN, start, end, fall, baseline, int(trace.steps["step"][row]) if len(trace) else None)
    if len(finite) < MIN_STEPS:
        return Verdict(UNKNOWN, start, end, fall, baseline)
    if not trial.moving_target and (first := _thrown_away_from(finite, end, max(1, period))) is not None:
        peak = int(trace.steps["step"][int(np.nanargmax(np.where(np.isfinite(loss), loss, -np.inf)))])
        return Verdict(DIVERGING, first, end, (first - end) / abs(first), baseline, peak)
    noise = _spread(finite[: max(MIN_STEPS, period)])
    rise = max(((FOLLOWED_RISE if trial.moving_target else DIVERGING_RISE) - 1.0) * abs(start), RISE_IN_NOISE * noise)
    if end - start > rise:
        above = loss - start > rise
        return Verdict(DIVERGING, start, end, fall, baseline, int(trace.steps["step"][int(np.argmax(above))]))
    if (first := _spiked_from(finite, end, period)) is not None and not end < AT_REST * baseline:
        return Verdict(OSCILLATING, first, end, (first - end) / first, baseline)
    if fall < STALLED_FALL or (fall < SLOW_FALL and start - end < FALL_IN_ERRORS * _error_of_fall(finite, period)):
        last = finite[-max(MIN_STEPS, period, len(finite) // 4) :]
        first = float(np.median(finite[:FIRST_STEPS]))
        rest = AT_REST * baseline if math.isfinite(baseline) else NOTHING_LEFT * abs(first)
        if end < rest and first - end > max(LEARNED_AT_ONCE * abs(first), RISE_IN_NOISE * _spread(last)):
            return Verdict(LEARNING, first, end, (first - end) / abs(first), baseline)  # learned within the first pass
        wild = _spread(last) > OSCILLATING_SPREAD * abs(middle(last)) and _spread(last) > 3.0 * noise
        return Verdict(OSCILLATING if wild else STALLED, start, end, fall, baseline)
    return Verdict(LEARNING, start, end, fall, baseline)


def _spiked_from(finite: np.ndarray, end: float, period: int) -> float | None:
    """Return the first loss of a trial that rose far above it and ends no better; None for any other run.

    The first pass of such a run holds its spikes, so that the last one is lower without being better than no training.
    A spike is seen beside the least loss of the same batch.
    """
    if period < 3 or len(finite) < 2 * period or len(finite) % period or not finite.min() > 0:
        return None
    passes, first = finite.reshape(-1, period), float(finite[0])
    spike = float(np.max(passes / passes.min(axis=0)))
    no_better = min(end, float(passes[-1, 0])) > (1.0 - SLOW_FALL) * first
    return first if no_better and spike > SPIKE else None


class Falling(NamedTuple):
    """How one of several losses went: its ends, its first value, and whether it fell beyond its noise."""

    start: float
    end: float
    falls: bool
    first: float

    @property
    def won(self) -> bool:
        """Whether it is almost 0 beside its first value, so that nothing is left to lower."""
        return 0 < self.end < WON_END * self.first


def falling(loss: np.ndarray, trace: Trace) -> Falling:
    """Compare the ends of one of the losses that a train step returns, as `verdict` does with the sum.

    Args:
        loss: Finite values, `[steps]`.
        trace: The record.
    """
    period = (trace.probes.trial or TrialReading()).batches or 0
    start, end = _ends(loss, period)
    fall, accident = start - end, FALL_IN_ERRORS * _error_of_fall(loss, period)
    first = float(np.median(loss[:FIRST_STEPS]))
    return Falling(start, end, fall > max(STALLED_FALL * abs(start), accident), first)


def _thrown_away_from(finite: np.ndarray, end: float, period: int) -> float | None:
    """Return the first loss of a run that rose steeply, settled, and did not recover; None for any other run."""
    peak, settled = float(np.max(finite)), float(np.max(finite[-period:]))
    for first, factor in ((float(np.median(finite[:FIRST_STEPS])), HIGH_PEAK), (float(finite[0]), FIRST_PEAK)):
        if first > 0 and peak > factor * first and peak > HIGH_PEAK * settled and end > RECOVERED_END * first:
            return first
    return None


def losses(trace: Trace) -> np.ndarray:
    """Return the loss of each step, float64 `[n]`; the logged one where a custom train step computes it."""
    loss = trace.loss.astype(float)
    if rival_losses(trace):
        return np.full(len(loss), math.nan)
    if len(loss) and np.isnan(loss).all():
        logged = (trace.probes.trial or TrialReading()).logs.get("loss", ())
        if logged and len(logged) == len(loss):
            return np.array([math.nan if value is None else value for value in logged])
    return loss


def rival_losses(trace: Trace) -> dict[str, np.ndarray]:
    """Return the losses of a train step of several optimizers, by name, float64 `[n]`; empty where there is one.

    Each optimizer lowers its own, often at the cost of another one: that a GAN calls one of them "loss" says nothing.
    """
    optimizer, logs = trace.description.optimizer, (trace.probes.trial or TrialReading()).logs
    read = {name: np.array(values, float) for name, values in logs.items() if not name.startswith("gradient_norm")}
    found = {name: values for name, values in read.items() if "loss" in name.lower()}
    parts = [name for name in read if name != "loss"]
    if (
        list(found) == ["loss"]
        and len(parts) > 1
        and np.allclose(sum(read[name] for name in parts), read["loss"], rtol=1e-4)
    ):
        moves = [np.subtract(*_ends(read[name], 0)) for name in parts]  # a sum of losses that fall is one
        found = {name: read[name] for name in parts} if min(moves) < 0 < max(moves) else found
    return found if optimizer is not None and optimizer.count > 1 and len(found) > 1 else {}


def _broke(trace: Trace, bad: np.ndarray, trial: TrialReading) -> bool:
    if trial.broken is not None:  # also by a loss that stands in the logs alone
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
        last = np.roll(loss[-period:], len(loss) % period)  # each batch in its position of the first pass
        return _spread(loss[:period] - last) / math.sqrt(period)
    count = max(1, int(len(loss) * WINDOW_SHARE))
    return math.hypot(_spread(loss[:count]), _spread(loss[-count:])) / math.sqrt(count)


def _spread(values: np.ndarray) -> float:
    """Return a robust standard deviation: that of a normal distribution with the same quartiles."""
    low, high = np.percentile(values, [25, 75]) if len(values) else (0.0, 0.0)
    return float(high - low) / 1.349


FIXED_RISE = 1.1  # end over the baseline, or over its own start, up to which a variation that no longer breaks is fixed
HALVED_END = 0.5  # end over that of the unchanged run
MIN_FALL, TIMES_FASTER, LEAST_FALL = 0.05, 20.0, 1e-3  # relative fall of a fix; over that of a stall; of a stall
NEAR_START = 2.0  # start over the baseline of a net with inputs and weights of usual size
LEARNS_BELOW = 0.9  # end over the baseline, or over its own start, below which a run learns
PROVEN, LIKELY, UNPROVEN = 0.95, 0.8, 0.6  # confidence: the variation fixes the run; was not tried; does not fix it


def variation(trace: Trace, tried: Variation) -> VariationResult | None:
    """Return the result of a variation, or None where it was not tried."""
    return (trace.probes.trial or TrialReading()).variations.get(tried.name)


def fixes(result: VariationResult | None, seen: Verdict) -> bool:
    """Return whether a variation fixes the run.

    Where the run broke, diverged or ended far above the baseline, the variation has to avoid that in forty steps.
    Where it stalled, the variation has to learn.
    """
    if result is None or result.start is None or result.end is None or result.fall is None:
        return False
    start, end, over = result.start, result.end, result.over_baseline
    if _many_times_faster(result, seen):
        return True
    if seen.unhealthy or seen.end_over_baseline > 1.0 / HALVED_END:
        ended = end <= start + (FIXED_RISE - 1.0) * abs(start) if over is None else over <= FIXED_RISE
        better = seen.state == BROKEN or over is None or over <= HALVED_END * seen.end_over_baseline
        return bool(ended and better)
    if over is not None:
        return bool(over < LEARNS_BELOW and end < start)
    if result.outputs_learned is not None:
        return result.outputs_learned > 0
    return bool(start - end > (1.0 - LEARNS_BELOW) * abs(start))


def halved_by(trace: Trace, seen: Verdict, *variations: Variation) -> bool:
    """Return whether a variation ends below half the loss of the same steps without a change."""
    as_it_is = (variation(trace, AS_IT_IS) or VariationResult()).end
    own = seen.end if as_it_is is None else as_it_is
    ends = [(variation(trace, one) or VariationResult()).end for one in variations]
    return any(end is not None and own > 0 and end < HALVED_END * own for end in ends)


def starts_near_baseline(trace: Trace, seen: Verdict, *variations: Variation) -> bool:
    """Return whether a net that starts far above the baseline and does not learn starts near it in a variation."""
    if seen.learned or not seen.start_over_baseline >= FAR_START:
        return False
    for result in (variation(trace, one) for one in variations):
        if result is None or result.start is None or result.end is None or not result.over_baseline:
            continue
        baseline = result.end / result.over_baseline
        if baseline > 0 and result.start < min(NEAR_START * baseline, seen.start / FAR_START):
            return True
    return False


def fixed_by(trace: Trace, *variations: Variation) -> bool:
    """Return whether one of these variations fixes the run."""
    return any(fixes(variation(trace, one), verdict(trace)) for one in variations)


def fixing_rate(trace: Trace, *, lower: bool) -> float | None:
    """Return the factor of the learning rate, below or above 1, with which the run learns; the nearest to 1.

    A rate does not count where another variation ends below half its loss: at a lower rate the loss often falls for a
    while, whatever the cause.
    """
    varied = (trace.probes.trial or TrialReading()).variations
    seen = verdict(trace)
    rates = [(variation_of(name).rate, result) for name, result in varied.items()]
    best = min([_over(result) for rate, result in rates if rate is None and fixes(result, seen)], default=math.inf)
    factors = [rate for rate, result in rates if rate is not None and fixes(result, seen) and _over(result) <= 2 * best]
    fitting = [factor for factor in factors if (factor < 1) == lower]
    return (max if lower else min)(fitting, default=None)


def confidence(trace: Trace, *variations: Variation) -> float:
    """Return the confidence in a cause, by the results of its variations."""
    if fixed_by(trace, *variations) or starts_near_baseline(trace, verdict(trace), *variations):
        return PROVEN
    return LIKELY if all(variation(trace, one) is None for one in variations) else UNPROVEN


def variation_evidence(trace: Trace, *variations: Variation) -> tuple[Evidence, ...]:
    """Return a sentence with the result of each of these variations that was tried."""
    seen = verdict(trace)
    found = []
    for one in variations:
        result = variation(trace, one)
        if result is None:
            continue
        as_it_is = "breaks" if seen.state == BROKEN else _moves(seen.start, seen.end)
        if result.end is None:
            then = "it breaks as well" if seen.state == BROKEN else "it breaks"
        else:
            then = f"it {_moves(result.start, result.end)}"
        statement = f"As it is, the loss {as_it_is} in a short trial; {one.words}, {then}."
        found.append(Evidence(statement, result.end, source="this trial"))
    return tuple(found)


def _many_times_faster(result: VariationResult, seen: Verdict) -> bool:
    """Return whether a loss that stalled, or fell slowly, falls many times faster and ends no higher."""
    if result.fall is None or seen.unhealthy or not (seen.state == STALLED or seen.slow):
        return False
    if _over(result) > max(1.0, seen.end_over_baseline) or (
        math.isinf(_over(result)) and (result.end or 0.0) > seen.end
    ):
        return False
    return result.fall > max(MIN_FALL, TIMES_FASTER * max(seen.fall, LEAST_FALL))


def _over(result: VariationResult) -> float:
    return math.inf if result.over_baseline is None else result.over_baseline


def _moves(start: float | None, end: float | None) -> str:
    same = rounded(start) == rounded(end)
    return f"stays at {rounded(end)}" if same else f"goes from {rounded(start)} to {rounded(end)}"
