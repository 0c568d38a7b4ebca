"""A learning rate that is too high later than the trial: the schedule rises to it, and steps at it were tried."""

from __future__ import annotations

from dataclasses import replace

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import PlannedRates, TrialReading
from gradrecipes.diagnosis.facts.readings import say
from gradrecipes.diagnosis.outcome.planned_rates import lost_at_highest
from gradrecipes.diagnosis.outcome.variation_facts import PROVEN
from gradrecipes.diagnosis.outcome.verdict import verdict
from gradrecipes.diagnosis.prescriptions.prescribe import clip, warm_up

BELOW_THE_BREAK = 4.0  # rate that broke over the one to train at: a range test gives 3 to 10, arXiv 1506.01186


def rising_rate(trace: Trace) -> Finding | None:
    """Return learning_rate_too_high where a run that goes well is lost at the highest rate of its schedule."""
    seen, rates = verdict(trace), (trace.probes.trial or TrialReading()).rates
    if rates is None or rates.highest is None or rates.trial_highest is None or not lost_at_highest(rates, seen):
        return None
    schedule = (trace.description.optimizer.schedule if trace.description.optimizer else None) or "The schedule"
    within = "" if rates.planned or rates.steps is None else f", {say(rates.steps)} steps that it names itself"
    statement = (
        f"{schedule} raises the learning rate from {say(rates.trial_highest)} in the trial to {say(rates.highest)} at "
        f"step {rates.highest_step:,}{within}; {_what_happened(rates)}."
    )
    peak = (rates.broken_rate or rates.highest) / BELOW_THE_BREAK
    return Finding(
        code="learning_rate_too_high",
        title=f"The schedule raises the learning rate to {say(rates.highest)}, where the training is lost",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=PROVEN,
        explanation=(
            f"{statement} At the rates of the first {len(trace):,} steps the loss went from {say(seen.start)} to "
            f"{say(seen.end)}: model, data and loss are in order, and it is the later rate that is too high."
        ),
        evidence=(Evidence(statement, rates.highest, peak, "this trial, continued at the rates of the schedule"),),
        prescriptions=(
            replace(
                warm_up(trace, peak),
                title=f"Let the learning rate rise to {peak:.2g} at most",
                reason=f"It is a quarter of {say(rates.broken_rate or rates.highest)}, at which the training is lost.",
                risk="Too low a peak is slow: double it while the loss still falls without jumps.",
                reference="arXiv 1506.01186 (range test)",
            ),
            clip(trace, "Clip the gradient by its global norm", repairs=True, learning_rate=peak),
        ),
    )


def _what_happened(rates: PlannedRates) -> str:
    result, slowly = rates.at_highest, f"raised to it within {rates.raised_over} steps"
    if result is None or result.end is None:
        at = f" at {say(rates.broken_rate)}" if rates.broken_rate else ""
        return f"{slowly}, the loss breaks{at}"
    over = f", {say(result.over_baseline)} times that of a constant answer" if result.over_baseline else ""
    return f"{slowly}, the loss goes from {say(result.start)} to {say(result.end)}{over}"
