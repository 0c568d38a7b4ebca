"""How a run diverged because its steps are too long, and what steps at the highest rate of a schedule showed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import INPUTS, TWIN, LinearReading
from gradrecipes.core.trace.trial_reading import PlannedRates, TrialReading, Variation, VariationResult, at_rate
from gradrecipes.diagnosis.facts.readings import middle, nonfinite_gradients, nonfinite_losses, rounded
from gradrecipes.diagnosis.outcome import (
    BROKEN,
    DIVERGING_RISE,
    FALL_IN_ERRORS,
    FOLLOWED_RISE,
    HALVED_END,
    OSCILLATING,
    PROVEN,
    STALLED,
    STALLED_FALL,
    Verdict,
    losses,
    variation,
    verdict,
)
from gradrecipes.diagnosis.prescriptions import clip_to_repair, warm_up

EARLY_STEPS = 500  # steps within which a rate that is too high shows; later failures have other causes
SHORTEST_RUN = 5  # steps below which no trend is read
MIN_RISE = 3.0  # loss at the end over loss at the start; noise and early spikes of Adam stay below
HIGH_PEAK = 10.0  # loss at its peak over its start
RECOVERED_END = 0.5  # loss at the end over its start; a net ruined by a peak ends at .6 to 1 of a usual start
LAST_SHARE = 0.1  # share of the steps whose median loss is the end
GRADIENT_RISE = 100.0  # gradient norm before the break over that of the start
OWN_SIZE = 0.3  # update norm over weight norm from which an update is as large as the weights
SHOT_UP = 30.0  # highest loss over the first, of a custom train step; healthy GANs stay below 10
LONG_UPDATE = 0.02  # update norm over weight norm below which steps are not too long, whatever a lower rate does
FAR_BETTER = 0.5  # end at a lower rate over that of the unchanged run, after fewer steps
MIN_WEIGHT_GROWTH = 2.0  # weight norm over that of the start; at a rate that is too low weights stay as they are
ALL_BUT_ALL = 0.5  # share of the steps after the break that fail as well
WITHOUT_END = 100.0  # highest rate over that of the trial, beyond which where it breaks was not tried finely enough
BELOW_THE_BREAK = 4.0  # rate that broke over the one to train at: a range test gives 3 to 10, arXiv 1506.01186
UNLEARNED_END = 0.9  # end over the baseline from which a net has forgotten what it learned
SLOW_RISE, SLOWEST_RISE = 300, 1200  # steps of a slow rise of the rate: for a loss that diverges, a net that forgets


@dataclass(frozen=True)
class Divergence:
    """The course of the loss: its start, peak and end, and the step at which it diverged."""

    step: int
    start: float
    peak: float
    end: float
    broken: bool


def broken(trace: Trace, update: float) -> Divergence | None:
    """Return the divergence of a run that broke early and stayed broken, if loss, gradient or update grew before."""
    bad = nonfinite_losses(trace) | nonfinite_gradients(trace)
    if not bad[:EARLY_STEPS].any():
        return None
    row = int(np.argmax(bad))
    if row == 0 or bad[row:].mean() < ALL_BUT_ALL:
        return None
    loss, norm = trace.loss[:row].astype(float), trace.gradient_norm[:row].astype(float)
    start, peak = float(loss[0]), largest(loss)
    climbing = peak >= HIGH_PEAK * abs(start) and peak > start
    steeper = math.isfinite(norm[0]) and norm[0] > 0 and largest(norm) >= GRADIENT_RISE * norm[0]
    if not (climbing or steeper or update >= OWN_SIZE):
        return None
    return Divergence(int(trace.steps["step"][row]), start, peak, math.nan, True)


def risen(trace: Trace, update: float) -> Divergence | None:
    """Return the divergence of a run whose loss rose early, stayed finite, and did not recover."""
    loss = trace.loss.astype(float)
    finite = np.isfinite(loss)
    if finite.sum() < SHORTEST_RUN or trace.skipped[finite].mean() > ALL_BUT_ALL:
        return None
    start = float(loss[0])
    scale = abs(start)
    end = middle(loss[finite][-max(SHORTEST_RUN, int(LAST_SHARE * finite.sum())) :])
    peak = largest(loss[:EARLY_STEPS])
    stays_high = end >= start + (MIN_RISE - 1.0) * scale and scale > 0
    never_learned = peak >= start + (HIGH_PEAK - 1.0) * scale and end >= RECOVERED_END * start and update >= OWN_SIZE
    if not (stays_high or never_learned) or peak < start + (MIN_RISE - 1.0) * scale:
        return None
    row = int(np.argmax(finite & (loss >= start + (MIN_RISE - 1.0) * scale)))
    return Divergence(int(trace.steps["step"][row]), start, largest(loss), end, False)


def stuck(trace: Trace, update: float) -> Divergence | None:
    """Return the divergence of a run that stalls because its steps are too long."""
    seen = verdict(trace)
    far_better = update >= LONG_UPDATE and any(
        _far_better(trace, at_rate(factor), seen) for factor in (0.1, 0.01, 0.001)
    )
    little = seen.slow or is_outrun(trace) or ahead(trace) is not None
    if (seen.learned and not (little and far_better)) or not (
        update >= (OWN_SIZE if seen.learned else LONG_UPDATE)
        or seen.unhealthy
        or seen.state == OSCILLATING
        or far_better
    ):
        return None
    loss = losses(trace)
    step = seen.step if seen.step is not None else int(trace.steps["step"][int(np.argmax(np.nan_to_num(loss)))])
    return Divergence(step, float(loss[0]), largest(loss), seen.end, seen.state == BROKEN)


def is_lost_later(trial: TrialReading, seen: Verdict) -> bool:
    """Return whether a run that learned in the trial broke, or climbed above its start, in the further steps behind it.

    Args:
        trial: With its further steps.
        seen: How its recorded steps went.
    """
    rise = FOLLOWED_RISE if trial.moving_target else DIVERGING_RISE
    climbs = (one.end is not None and one.start is not None and one.end > rise * one.start > 0 for one in trial.further)
    return trial.further_broken is not None or ((seen.learned or trial.moving_target) and any(climbs))


def lost_later(trace: Trace) -> Divergence | None:
    """Return the divergence of a run that learns in the trial and is lost in the further steps."""
    trial, loss = trace.probes.trial or TrialReading(), losses(trace)
    if not is_lost_later(trial, verdict(trace)):
        return None
    broken_at, ends = trial.further_broken, [one.end for one in trial.further if one.end is not None]
    step = broken_at if broken_at is not None else trial.steps + trial.further_steps
    return Divergence(
        step, float(loss[0]), max([largest(loss), *ends]), max(ends, default=math.nan), broken_at is not None
    )


def end_over_baseline(trace: Trace) -> float:
    """Return the loss of a trial in the end, after its further steps, over that of a constant prediction, or NaN."""
    seen, further = verdict(trace), (trace.probes.trial or TrialReading()).further
    if len(further) == 1 and further[0].end is not None and seen.baseline > 0:
        return further[0].end / seen.baseline
    return seen.end_over_baseline


HIGHER_RATE = 1.5  # highest rate of the schedule over that of the trial's steps from which these say little
MUCH_LEFT = 0.1  # end over the baseline, or over the start, below which a net is well trained
SHARE_BEHIND = 0.5  # gain of a net over a constant prediction, of rows that it was trained on, over that of a linear
# function of rows that it was not fitted to: after all of its training, a net is beyond 1


def ahead(trace: Trace) -> LinearReading | None:
    """Return the standard twin, or simple function, that learns more than twice as much of other rows as the net."""
    trial, seen = trace.probes.trial or TrialReading(), verdict(trace)
    twin = None if trial.twin is None else trial.twin.share()
    if twin is not None and twin < SHARE_BEHIND:
        return trial.twin
    if len(trial.linear) != 1 or len(trial.outputs) > 1:
        return None  # of several tasks, one may be left to the end
    ended = trial.further[0].end if len(trial.further) == 1 else seen.end
    compares = not trace.description.own_train_step and ended is not None and math.isfinite(ended)
    share = trial.linear[0].share(ended if compares else None)
    return trial.linear[0] if share is not None and share < SHARE_BEHIND else None


def far_ahead(trace: Trace) -> LinearReading | None:
    """Return the function, or standard twin, that learns far more than the net does in all of its training."""
    trial, seen = trace.probes.trial or TrialReading(), verdict(trace)
    found = ahead(trace)
    if found is None or seen.unhealthy or rises_later(trace):
        return None
    return found if saw_all(trace) or (found.of in (INPUTS, TWIN) and rests(trial, seen)) else None


def rises_later(trace: Trace) -> bool:
    """Return whether the schedule rises above the rates that were seen, so that these steps say little of it."""
    planned = (trace.probes.trial or TrialReading()).rates
    return (
        planned is not None
        and not saw_all(trace)
        and (planned.highest or 0.0) > HIGHER_RATE * (planned.trial_highest or 0.0)
    )


def saw_all(trace: Trace) -> bool:
    """Return whether the trial and its further steps are the whole training that is planned."""
    trial = trace.probes.trial or TrialReading()
    planned = trial.rates
    if planned is None or not planned.planned or planned.steps is None:
        return False
    return len(trace) + trial.further_steps + (trial.batches or 0) > planned.steps


def rests(trial: TrialReading, seen: Verdict) -> bool:
    """Return whether the loss falls no more: in the trial, nor in the further steps where there were some."""
    if not trial.further_steps:
        return seen.state == STALLED
    ends = [(before.end, after) for before, after in zip(trial.outputs, trial.further, strict=False)]
    ends = ends if len(trial.outputs) == len(trial.further) else [(seen.end, one) for one in trial.further[:1]]
    falls = [
        before - one.end < max(STALLED_FALL * abs(before), FALL_IN_ERRORS * one.noise)
        for before, one in ends
        if before is not None and one.end is not None and not (one.learned and one.baseline is not None)
    ]
    return bool(falls) and all(falls)


def at_fault(trace: Trace, setting: str) -> LinearReading | None:
    """Return the standard twin that learns far more than the program, if it falls behind with this setting of it.

    Args:
        trace: With the trial.
        setting: One of those that `core/trace/data_reading.py` names.
    """
    twin = (trace.probes.trial or TrialReading()).twin
    return twin if twin is not None and setting in twin.faults and far_ahead(trace) is not None else None


def left_of_error(twin: LinearReading) -> str:
    """Return in words what a program and its standard twin leave of the error of a constant prediction."""
    return (
        f"{rounded(twin.own)} of the error of a constant prediction is left on {twin.rows:,} rows held back; the same "
        f"net with standard settings leaves {rounded(twin.own_linear)}"
    )


def is_outrun(trace: Trace) -> bool:
    """Return whether a linear function of the inputs, on other rows, has less than half the loss of the net's end."""
    linear, reached = (trace.probes.trial or TrialReading()).linear, end_over_baseline(trace)
    return len(linear) == 1 and linear[0].clear and linear[0].linear < HALVED_END * reached * linear[0].constant


def replaced(trace: Trace, update: float) -> Divergence | None:
    """Return the divergence of a recorded run that never learned, and whose steps replaced its weights by larger ones.

    Normalization bounds the loss of such a run, and the grown weights make its later updates look small.
    """
    seen = verdict(trace)
    loss = losses(trace)
    if trace.probes.trial is not None or seen.state not in (STALLED, OSCILLATING) or not update >= OWN_SIZE:
        return None
    start = float(loss[0])
    if not (weight_growth(trace) >= MIN_WEIGHT_GROWTH and seen.end >= RECOVERED_END * start):
        return None
    row = int(np.argmax(np.nan_to_num(loss[:EARLY_STEPS])))
    return Divergence(int(trace.steps["step"][row]), start, largest(loss), seen.end, False)


def weight_growth(trace: Trace) -> float:
    """Return the weight norm of the last sample over that of the first, of the median layer; NaN if not measured."""
    norms = trace.samples["weight_norm"].astype(float)
    return middle(norms[-1] / np.where(norms[0] > 0, norms[0], np.nan)) if len(norms) else math.nan


def thrown(trace: Trace, update: float) -> Divergence | None:
    """Return the divergence of a run with a custom train step, such as a GAN's, of whose losses one rose at once."""
    logs = (trace.probes.trial or TrialReading()).logs
    if not update >= OWN_SIZE or np.isfinite(trace.loss).any():
        return None
    for logged in logs.values():
        values = np.array([value for value in logged if value is not None], dtype=float)
        if len(values) >= SHORTEST_RUN and values[0] > 0 and values.max() > SHOT_UP * values[0]:
            step = int(trace.steps["step"][min(int(np.argmax(values)), len(trace) - 1)])
            return Divergence(step, float(values[0]), float(values.max()), float(values[-1]), False)
    return None


def _far_better(trace: Trace, tried: Variation, seen: Verdict) -> bool:
    end = (variation(trace, tried) or VariationResult()).end
    return end is not None and seen.end > 0 and end < FAR_BETTER * seen.end


def largest(values: np.ndarray) -> float:
    """Return the largest finite value; minus infinity where there is none."""
    return float(np.max(values, where=np.isfinite(values), initial=-math.inf))


def rising_rate(trace: Trace) -> Finding | None:
    """Return learning_rate_too_high where a healthy run diverges at the highest rate of its schedule."""
    seen, rates = verdict(trace), (trace.probes.trial or TrialReading()).rates
    if rates is None or rates.highest is None or rates.trial_highest is None:
        return None
    lost = lost_at_highest(rates, seen)
    climbed = None if lost else _climbed(trace, seen)
    if not lost and climbed is None:
        return None
    schedule = (trace.description.optimizer.schedule if trace.description.optimizer else None) or "The schedule"
    within = "" if rates.planned or rates.steps is None else f", of {rounded(rates.steps)} steps that were read"
    statement = (
        f"{schedule} raises the learning rate from {rounded(rates.trial_highest)} in the trial to "
        f"{rounded(rates.highest)} at step {rates.highest_step:,}{within}; {climbed or _what_happened(rates)}."
    )
    peak = (rates.broken_rate or rates.highest) / BELOW_THE_BREAK
    why = f"It is a quarter of {rounded(rates.broken_rate or rates.highest)}, at which the training diverges."
    if climbed is not None or (not rates.planned and rates.highest > WITHOUT_END * rates.trial_highest):
        peak, why = rates.trial_highest, "At that rate the net trained in the trial."
    then = "the training diverges" if climbed is None else "the net loses what it has learned"
    return Finding(
        code="learning_rate_too_high",
        title=f"The schedule raises the learning rate to {rounded(rates.highest)}, at which {then}",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=PROVEN,
        explanation=(
            f"{statement} At the rates of the first {len(trace):,} steps the loss went from {rounded(seen.start)} to "
            f"{rounded(seen.end)}: model, data and loss are in order; the later learning rate is too high."
        ),
        evidence=(Evidence(statement, rates.highest, peak, "this trial, continued at the rates of the schedule"),),
        prescriptions=(
            replace(
                warm_up(trace, peak),
                title=f"Let the learning rate rise to {peak:.2g} at most",
                reason=why,
                risk="Too low a peak is slow: double it while the loss still falls without jumps.",
                reference="arXiv 1506.01186 (range test)",
            ),
            *clip_to_repair(trace, learning_rate=peak),
        ),
    )


def _climbed(trace: Trace, seen: Verdict) -> str | None:
    """Return in words how the loss climbs with the rate over the whole training, and not where the rate is held."""
    trial = trace.probes.trial or TrialReading()
    rates, own = trial.rates, trial.further[0] if len(trial.further) == 1 else None
    if own is None or own.end is None or not climbs_at_highest(rates) or not saw_all(trace):
        return None
    held = None if rates is None or rates.held is None else rates.held.end
    high = seen.baseline if seen.baseline > 0 else abs(seen.start)
    climbs = own.end - 2.0 * own.noise > max(DIVERGING_RISE * seen.end, MUCH_LEFT * high)
    if rates is None or held is None or not climbs or not held < HALVED_END * own.end:
        return None
    return (
        f"the loss is {rounded(seen.end)} after the trial's {trial.steps:,} steps, and {rounded(own.end)} in the end; "
        f"at {rounded(rates.trial_highest)} all the way it ends at {rounded(held)}"
    )


def climbs_at_highest(rates: PlannedRates | None) -> bool:
    """Return whether the loss of a trial that learned climbs to twice its end where the rate rises to its highest."""
    result = None if rates is None or not rates.planned else rates.at_highest
    return result is not None and result.end is not None and result.end > DIVERGING_RISE * (result.start or math.inf)


def _what_happened(rates: PlannedRates) -> str:
    result, slowly = rates.at_highest, f"raised to it within {rates.raised_over} steps"
    if result is None or result.end is None:
        at = f" at {rounded(rates.broken_rate)}" if rates.broken_rate else ""
        return f"{slowly}, the loss breaks{at}"
    over = f", {rounded(result.over_baseline)} times that of a constant prediction" if result.over_baseline else ""
    return f"{slowly}, the loss goes from {rounded(result.start)} to {rounded(result.end)}{over}"


def lost_at_highest(rates: PlannedRates | None, seen: Verdict) -> bool:
    """Return whether the training diverges at the highest rate of the schedule, however slowly the rate rises.

    A loss that breaks, or ends at twice that of the untrained net, counts where the rate was raised over 300 steps. A
    net that forgets what it learned may need a longer warm-up: it counts where the rate was raised over 1,200. Where
    the schedule itself rises in fewer steps, these suffice.

    Args:
        rates: The planned rates, with the result of steps at the highest.
        seen: The verdict on the trial at its own rates.
    """
    if rates is None or rates.at_highest is None:
        return False
    over = math.inf if rates.in_full else rates.raised_over or 0
    if _diverges(rates.at_highest, seen):
        return over >= SLOW_RISE
    return over >= SLOWEST_RISE and unlearned_at_highest(rates, seen) is not None


def unlearned_at_highest(rates: PlannedRates | None, seen: Verdict) -> VariationResult | None:
    """Return the result of steps at the highest rate if they broke or ended no better than a constant prediction."""
    result = None if rates is None else rates.at_highest
    if result is None or (not seen.end_over_baseline < UNLEARNED_END and not _diverges(result, seen)):
        return None
    return result if _diverges(result, seen) or (result.over_baseline or 0.0) >= UNLEARNED_END else None


def _diverges(result: VariationResult, seen: Verdict) -> bool:
    if result.broken is not None or result.end is None:
        return True
    return result.end - seen.start > (DIVERGING_RISE - 1.0) * abs(seen.start)


def learned_at_highest(rates: PlannedRates | None) -> VariationResult | None:
    """Return the result of steps at the highest rate if they ended below the constant prediction, else None.

    It counts only where the length of the training is known: a schedule may name steps that are never run.
    """
    result = None if rates is None else rates.at_highest
    if rates is None or not rates.planned or result is None or result.end is None or result.over_baseline is None:
        return None
    return result if result.over_baseline < UNLEARNED_END else None
