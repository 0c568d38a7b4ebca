"""Whether a training is healthy (it was seen to learn), unhealthy, or undecided, and which part of its loss is lost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gradrecipes.core.findings import Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import AnswersReading, OutputTrial, PlannedRates, TrialReading
from gradrecipes.diagnosis.facts.divergences import is_lost_later, learned_at_highest, unlearned_at_highest
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.outcome import (
    AT_REST,
    BROKEN,
    DIVERGING,
    LEARNING,
    OSCILLATING,
    SLOW_FALL,
    STALLED,
    UNKNOWN,
    Verdict,
    falling,
    losses,
    rival_losses,
    verdict,
)

HEALTHY, UNHEALTHY, UNDECIDED = "healthy", "unhealthy", "undecided"
STANDARD_ERRORS = 2.0  # by which a run has to end below the baseline to count as learned
# Steps of a fit from which a symptom without a cause is reported; a run that breaks or diverges always is.
MIN_STEPS_OF_SYMPTOM = 100


@dataclass(frozen=True)
class Judgement:
    """The verdict on a training, and its reason.

    Args:
        verdict: `"healthy"`, `"unhealthy"` or `"undecided"`.
        reason: A sentence; of an undecided training also what to do next.
    """

    verdict: str
    reason: str


def judge(trace: Trace, findings: Sequence[Finding]) -> Judgement:
    """Return the verdict on a training.

    It is unhealthy if a finding is critical or a warning, or if the run broke or diverged. It is healthy if it learned:
    if the loss fell by more than its noise and, where the loss of the best constant prediction is known, ended below it
    on every output. Otherwise it is undecided.

    Args:
        trace: The record.
        findings: What the rules found in it.
    """
    seen, steps = verdict(trace), f"{len(trace):,} {'step' if len(trace) == 1 else 'steps'}"
    alarming = [finding for finding in findings if finding.severity is not Severity.NOTICE]
    if alarming and _too_short(trace, seen, alarming):
        return Judgement(UNDECIDED, f"{steps} are too few to judge. So far: {alarming[0].title}.")
    if alarming:
        return Judgement(UNHEALTHY, findings[0].title)
    if not len(trace):
        return Judgement(UNDECIDED, "The record holds no training step.")
    if seen.state == BROKEN:
        return Judgement(
            UNHEALTHY, f"The loss or the gradient is not finite from step {seen.step} on; no cause is known."
        )
    if seen.state == DIVERGING:
        return Judgement(
            UNHEALTHY, f"The loss climbs from {rounded(seen.start)} to {rounded(seen.end)}; no cause is known."
        )
    loss = losses(trace)
    if not np.isfinite(loss).any():
        return _judge_several(trace, steps)
    if seen.state == UNKNOWN:
        return Judgement(UNDECIDED, f"{steps} {'is' if len(trace) == 1 else 'are'} too few to judge. {_longer(trace)}")
    trial = trace.probes.trial or TrialReading()
    in_all = f"{len(trace) + trial.further_steps:,} steps"
    if is_lost_later(trial, seen):
        if trial.further_broken is not None:
            words = f"The loss or the gradient is not finite from step {trial.further_broken} on; no cause is known."
            return Judgement(UNHEALTHY, words)
        climbs = f"The loss fell at first, and climbs to {rounded(_highest(trial))} in {in_all}; no cause is known."
        return Judgement(UNHEALTHY, climbs)
    if trial.answers is not None and not trial.answers.depend:
        return Judgement(UNDECIDED, _equal_answers(trial.answers, in_all, _longer(trace)))
    if trial.answers is not None and trial.answers.lost:
        number = trial.answers.lost[0] + 1
        words = f"After {in_all} answer {number} of the model could as well be the mean of its batch"
        return Judgement(UNDECIDED, f"{words}: it does not depend on the inputs yet. {_longer(trace)}")
    if trial.sample_spread == 0.0 and not trace.description.averages_batches:
        words = f"The loss {seen.course} in {steps}, but the model gives the same answer to all samples of a batch."
        return Judgement(UNDECIDED, f"{words} What it was trained on is not what it answers.")
    lost_later = unlearned_at_highest(rates(trace), seen)
    if trial.further and all(map(_is_learned, trial.further)) and lost_later is None:
        return Judgement(HEALTHY, f"The loss {seen.course} in {steps}{_reach(trace)}. {_in_the_end(trial)} {in_all}.")
    judged = trial.further or outputs(trace) if outputs(trace) or seen.learned else ()
    behind = [one for one in judged if not one.learned]
    if behind:
        one = behind[0]
        return Judgement(
            UNDECIDED,
            f"The output {one.name!r} ends {in_all} at a loss of {rounded(one.end)}, where a constant prediction has "
            f"{rounded(one.baseline)}. {_longer(trace)}",
        )
    if lost_later is not None:
        return Judgement(
            UNDECIDED,
            f"The loss fell from {rounded(seen.start)} to {rounded(seen.end)} in {steps}{_reach(trace)}: there it went "
            f"back to {rounded(lost_later.end)}. A slower rise may prevent that; this was not tried.",
        )
    if _learned(seen, loss, trace):
        return Judgement(
            HEALTHY, f"The loss fell from {rounded(seen.start)} to {rounded(seen.end)} in {steps}{_reach(trace)}."
        )
    if (later := learned_at_highest(rates(trace))) is not None and not seen.unhealthy:
        return Judgement(
            HEALTHY,
            f"The loss went from {rounded(seen.start)} to {rounded(seen.end)} in {steps}{_reach(trace)}: there it "
            f"fell to {rounded(later.end)}.",
        )
    if len(trial.further) == 1:
        steps += f", and is {rounded(trial.further[0].end)} after {in_all}"
    against = f", where a constant prediction has {rounded(seen.baseline)}" if math.isfinite(seen.baseline) else ""
    against += ". It follows the net's own values, and may rise while these are learned" if trial.moving_target else ""
    return Judgement(UNDECIDED, f"The loss {seen.course} in {steps}{against}. {_longer(trace)}")


def _highest(trial: TrialReading) -> float:
    return max(one.end for one in trial.further if one.end is not None)


def _judge_several(trace: Trace, steps: str) -> Judgement:
    """Judge a train step that returns several losses and no sum, as that of a GAN does, by each of them.

    One that falls beyond its noise was learned. None may be won outright: a discriminator that is sure of everything
    leaves its generator without a gradient.
    """
    logs = (trace.probes.trial or TrialReading()).logs
    several = {name: np.array(values, float) for name, values in logs.items() if "loss" in name.lower()}
    read = rival_losses(trace) or several
    falls = {name: falling(values, trace) for name, values in read.items() if np.isfinite(values).all()}
    if not falls or len(falls) < len(read):
        return Judgement(UNDECIDED, f"The loss was not seen in {steps}: the train step returns none.")
    course = "; ".join(f"{name!r} went from {rounded(one.start)} to {rounded(one.end)}" for name, one in falls.items())
    lost = not all(one.falls for one in falls.values())
    won = lost and any(one.won for one in falls.values())
    if won or not any(one.falls for one in falls.values()):
        return Judgement(UNDECIDED, f"In {steps}, {course}. {_longer(trace)}")
    return Judgement(HEALTHY, f"In {steps}, {course}.")


def _too_short(trace: Trace, seen: Verdict, alarming: Sequence[Finding]) -> bool:
    """Return whether a fit of few steps has not learned yet, and shows symptoms without a cause."""
    if trace.probes.trial is not None or not 0 < len(trace) < MIN_STEPS_OF_SYMPTOM:
        return False
    return all(finding.kind is Kind.SYMPTOM for finding in alarming) and seen.state in (STALLED, OSCILLATING)


def outputs(trace: Trace) -> tuple[OutputTrial, ...]:
    """Return how each of several outputs did in the trial; empty for a single one."""
    return (trace.probes.trial or TrialReading()).outputs


def of_columns(trial: TrialReading) -> bool:
    """Return whether the outputs of a trial are the columns of a single one."""
    return len(trial.outputs) > 1 and len({one.output for one in trial.outputs}) == 1


def in_the_end(trace: Trace) -> tuple[OutputTrial, ...]:
    """Return how each output did after the further steps, if there were some; of several, if the trial began well."""
    further, seen = (trace.probes.trial or TrialReading()).further, verdict(trace)
    well = seen.state == LEARNING and not seen.end_over_baseline > 1.0
    return further if len(further) == 1 or (well and len(further) == len(outputs(trace))) else outputs(trace)


def _is_learned(one: OutputTrial) -> bool:
    """Return whether an output is below its baseline, or where that is not known, well below its start."""
    falls = one.start is not None and one.end is not None and one.start - one.end > SLOW_FALL * abs(one.start)
    return one.learned and (one.baseline is not None or falls)


def _in_the_end(trial: TrialReading) -> str:
    if len(trial.further) > 1:
        return f"Each of its {len(trial.further)} outputs is below its constant prediction after"
    return f"It is {rounded(trial.further[0].end)} after"


def _equal_answers(read: AnswersReading, steps: str, then: str) -> str:
    return (
        f"After {steps} the loss is {rounded(read.own)}, and {rounded(read.constant)} where each answer is the mean of "
        f"its batch: what was learned does not depend on the inputs. {then}"
    )


def _learned(seen: Verdict, loss: np.ndarray, trace: Trace) -> bool:
    if not math.isfinite(seen.baseline):
        return seen.state == LEARNING
    if seen.state == LEARNING:
        end = seen.end if math.isnan(seen.mean_end) else seen.mean_end
        return end < seen.baseline - STANDARD_ERRORS * _error_of_end(loss, trace)
    return seen.end_over_baseline < AT_REST


def _error_of_end(loss: np.ndarray, trace: Trace) -> float:
    """Return the standard error of the loss at the end, over the batches of the last pass."""
    finite = loss[np.isfinite(loss)]
    period = (trace.probes.trial or TrialReading()).batches or max(2, len(finite) // 4)
    last = finite[-period:]
    return float(np.std(last, ddof=1) / math.sqrt(len(last))) if len(last) > 1 else 0.0


def rates(trace: Trace) -> PlannedRates | None:
    """Return the learning rates of the training that is planned, or None."""
    return (trace.probes.trial or TrialReading()).rates


def _reach(trace: Trace) -> str:
    """Return how far a trial looked: at which learning rates, and how much of the training that is."""
    read = rates(trace)
    if read is None or read.trial_highest is None or read.trial_lowest is None:
        return ""
    low, high = rounded(read.trial_lowest), rounded(read.trial_highest)
    words = f" at a learning rate of {high}" if low == high else f" at learning rates from {low} to {high}"
    if read.planned and read.steps is not None:
        words = f" of {read.steps:,} planned,{words}"
    if read.highest is not None and rounded(read.highest) != high and read.highest > read.trial_highest:
        tried = "steps at it were tried" if read.at_highest is not None else "steps at it were not tried"
        words += f"; the schedule rises to {rounded(read.highest)} at step {read.highest_step:,}, and {tried}"
    return words


def _longer(trace: Trace) -> str:
    if trace.probes.trial is None:
        return "Train for longer, then diagnose the record again."
    return f"To look further, pass steps={10 * max(100, len(trace))} to diagnose."


OUTWEIGHING_RATIO = 30.0  # largest term over the one that is not learned; the tasks of GradNorm differ by less
DROWNING_RATIO = 1e3  # the same, at the start and at the end, where no variation was run
UNNAMED = re.compile(r"term \d+ of the sum")  # of a step that does not return its parts: it may be a penalty as well
EXACT_SUM = 1e-3  # relative error of the weighted sum up to which the parts make up the loss
MIN_WEIGHT_OVER_ERROR = 5.0  # weight of a part over its standard error; a part below may be a metric
MAX_FLAT_CHANGE = 0.2  # relative change of a part that is not learned
FALLEN_END = 0.5  # end over start of a sum that hides a part
MOST_OF_TRAINING = 0.75  # share of the planned steps after which a solution that leaves a term out is taken for the end
MIN_STEPS = 20  # from which the weights of the parts can be found
# Regularization terms are small on purpose, and need not fall.
REGULARIZES = re.compile(r"kl|kullback|reg|l1|l2|penal|decay|entrop|commit|adv|gan|sparsity|smooth|(^|_)(gp|tv)($|_)")


class Outweighed(NamedTuple):
    """The part that makes up the loss and the part that is not learned, with their sizes in the loss.

    It is `weighted` where the weights of the parts differ as much; else the parts themselves do.
    """

    large: str
    small: str
    large_size: float
    small_size: float
    small_end: float
    weighted: bool


def outweighed_part(trial: TrialReading) -> Outweighed | None:
    """Return a part of the loss that another one outweighs, and that is not learned.

    The weights follow from the values of the parts and of the loss, step by step, by least squares. A part counts as
    lost where it is a thousandth of the largest one at the start and at the end, and did not fall; or where it is a
    thirtieth at the start, and stayed as it was while the largest one fell below half; any smaller part will do where
    the answers are equal for all samples in the end, as a trivial solution is. Where the weights do not differ,
    it has to make up half of the loss at the end of further steps: what outweighed it is solved without it. So has a
    term of a sum that the step returns without its parts, of which no name says that it is no penalty.

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
    alike = trial.answers is not None and not trial.answers.depend  # solved by answers that are equal for all samples
    alike = alike and (not trial.later or _saw_most(trial))  # a net may leave such a solution late
    least = 1.0 if alike else OUTWEIGHING_RATIO
    if not min(end[large], float(np.median(loss[-quarter:]))) < FALLEN_END * first[large]:
        return None
    lost = [
        name
        for name in weights
        if name != large and not REGULARIZES.search(name.lower()) and name not in trial.weight_penalties
        if weights[large] >= OUTWEIGHING_RATIO * weights[name]
        or not trial.later
        or 2.0 * end[name] >= sum(end.values())
        if not UNNAMED.match(name) or _is_left_over(name, starts, ends, end if trial.later else {})
        if first[large] >= least * first[name]
        if _is_lost(first[large] / first[name], max(end.values()) / end[name], ends[name] / starts[name])
    ]
    if not lost:
        return None
    small = min(lost, key=lambda name: first[name])
    weighted = weights[large] >= OUTWEIGHING_RATIO * weights[small]
    return Outweighed(large, small, first[large], first[small], end[small], weighted)


def _saw_most(trial: TrialReading) -> bool:
    """Return whether the trial and its further steps are most of the training that is planned."""
    planned = trial.rates.steps if trial.rates is not None and trial.rates.planned else None
    return planned is not None and trial.steps + trial.further_steps >= MOST_OF_TRAINING * planned


def _is_lost(ratio: float, ratio_at_end: float, change: float) -> bool:
    drowned = min(ratio, ratio_at_end) >= DROWNING_RATIO and change > 1.0 - MAX_FLAT_CHANGE
    return drowned or abs(change - 1.0) < MAX_FLAT_CHANGE


def _is_left_over(
    name: str, starts: Mapping[str, float], ends: Mapping[str, float], parts: Mapping[str, float]
) -> bool:
    """Return whether a part stayed as it was, and makes up half of the loss at the end, where that is known."""
    stays = abs(ends[name] / starts[name] - 1.0) < MAX_FLAT_CHANGE
    return stays and (not parts or 2.0 * parts[name] >= sum(parts.values()))


def weights_of_parts(trial: TrialReading) -> dict[str, float]:
    """Return by what the loss multiplies each part that a step returns; empty where they do not make it up."""
    return _weights(trial.logs)[0]


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
    unnamed = [name for name in parts if UNNAMED.match(name)]
    named = _weights_of([name for name in parts if name not in unnamed], parts, loss)
    return named or _weights_of(unnamed, parts, loss), parts, loss


def _weights_of(names: list[str], parts: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, float]:
    """Return the weights of those parts that are terms and no metrics; empty where they do not make up the loss."""
    while len(names) > 1:
        columns = np.stack([parts[name] for name in names], axis=1)
        sizes = columns.mean(axis=0)
        scaled = columns / sizes / loss[:, None]
        found, *_ = np.linalg.lstsq(scaled, np.ones(len(loss)), rcond=None)
        left = scaled @ found - 1.0
        covariance = np.linalg.pinv(scaled.T @ scaled) * float(left @ left) / max(1, len(loss) - len(names))
        sure = found / np.sqrt(np.maximum(np.diag(covariance), np.finfo(float).tiny))
        if np.abs(left).max() > EXACT_SUM:
            break
        if (sure > MIN_WEIGHT_OVER_ERROR).all():
            return dict(zip(names, (found / sizes).tolist(), strict=True))
        names.pop(int(np.argmin(sure)))
    return {}
