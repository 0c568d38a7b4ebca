"""stalled_loss: the loss does not fall.

## What it does
Compares the loss of the last batches with that of the same batches, or of the first ones, and fires where it fell by
less than a hundredth. By itself that is not a problem: a net may have learned all it can, or may need more steps. So
the diagnosis reports it only together with a cause that explains it, or with a witness: a function that is linear in
the inputs, in random units of them, or in counts of whole numbers predicts the targets of rows that it was not fitted
to, while the net is no better than a constant prediction, and has seen all the steps that are planned. Of what is
linear in the inputs themselves it is enough that the loss falls no more in further steps: what is harder to learn may
take a net long, and then fall at once. With such a witness it fires for a loss that falls as well, if the net, after
all of its training, gains less than half as much over a constant prediction on rows that it was trained on. Both are
measured by the program's own loss; in a train step of one's own by wrong classes, or squared errors. So it fires where
the same net with standard settings (Adam at 0.001, the usual loss of its targets, data and weights of usual size, no
regularization) learns more than twice as much of rows held back in as many steps, and names the settings without which
that net falls behind as well.

## Why it is bad
Nothing is learned, and a training that stalls looks like one that only needs more time.

## Example
Twelve sigmoid layers; a learning rate of 1e-7; a last layer whose ReLU is dead.

## Remedy
This is a symptom: treat the cause that is reported with it.

## References
- Smith, arXiv 1506.01186: the range test tells at which rates a loss falls at all.
"""

from __future__ import annotations

import math

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity, counted, listed
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import INPUTS, TWIN, LinearReading
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.facts.divergences import far_ahead, left_of_error, rests, rises_later, saw_all
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.judgement import UNDECIDED, judge, of_columns
from gradrecipes.diagnosis.outcome import STALLED, Verdict, verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

SHARE_OF_LINEAR = 0.1  # gain of a net over a constant prediction, over that of a linear function, that is next to none
CERTAIN = 0.98  # confidence with a witness: reported although no cause was found


@rule(
    code="stalled_loss",
    kind=Kind.SYMPTOM,
    title="The loss does not fall",
    order=270,
    needs_cause=True,
)
def stalled_loss(trace: Trace) -> Finding | None:
    """Tell whether the loss stalls; the engine drops it where no cause explains it."""
    seen, witness, leader = verdict(trace), _linear_witness(trace), far_ahead(trace)
    if seen.state != STALLED and witness is None and leader is None:
        return None
    beside = f"; a constant prediction has {rounded(seen.baseline)}" if seen.baseline > 0 else ""
    trial = trace.probes.trial or TrialReading()
    end = trial.further[0].end if len(trial.further) == 1 and trial.further[0].end is not None else seen.end
    after = counted(len(trace) + trial.further_steps, "step")
    statement = f"The loss was {rounded(seen.start)} at the start and is {rounded(end)} after {after}{beside}."
    then = "Nothing is learned; the cause that is reported with this symptom says why."
    title = "The loss does not fall"
    evidence = [Evidence(statement, end, seen.start, "this run")]
    if witness is not None:
        less = (
            f"A linear function of {witness.of} lowers the loss of a constant prediction from "
            f"{rounded(witness.constant)} to {rounded(witness.linear)}, on {witness.rows:,} rows that it was not "
            "fitted to"
        )
        evidence.append(Evidence(f"{less}.", witness.linear, witness.constant, "the data of this trial"))
        then = f"Nothing is learned; {less}: the data can be learned, and this program does not learn them."
        if seen.state != STALLED:
            title = "The net is no better than a constant prediction, and a simple function of the inputs is"
    elif leader is not None:
        less = (
            f"In the end {left_of_error(leader)}"
            if leader.of == TWIN
            else f"On {leader.rows:,} rows that it was trained on the loss of the net is {rounded(leader.own)}; that "
            f"of a linear function of {leader.of} that was not fitted to these rows is {rounded(leader.own_linear)}, "
            f"that of a constant prediction {rounded(leader.own_constant)}"
        )
        evidence.append(Evidence(f"{less}.", leader.own, leader.own_linear, "the data of this trial"))
        then = f"{less}: much more can be learned of the data, and this program does not learn it."
        if seen.state != STALLED:
            other = "with standard settings" if leader.of == TWIN else "a simple function does"
            title = f"The net learns far less of the data than {other}"
        if leader.faults:
            then += f" What differs, and is at fault: {listed(leader.faults)}."
    return Finding(
        code="stalled_loss",
        title=title,
        kind=Kind.SYMPTOM,
        severity=Severity.WARNING,
        confidence=0.9 if witness is None and leader is None else CERTAIN,
        explanation=f"{statement} {then}",
        evidence=tuple(evidence),
        prescriptions=(prescription("find_the_range"),),
    )


def _linear_witness(trace: Trace) -> LinearReading | None:
    """Return the linear function that learns what the net does not, if the net had its chance."""
    trial, seen = trace.probes.trial or TrialReading(), verdict(trace)
    clear = {one.target: one for one in trial.linear if one.clear}
    if not clear or seen.unhealthy or judge(trace, ()).verdict != UNDECIDED or rises_later(trace):
        return None
    if of_columns(trial) and seen.learned:
        return None  # single columns of a target that is learned on the whole
    if trial.answers is not None and trial.answers.depend and not trial.answers.lost:
        return None
    behind = [one.output for one in trial.further or trial.outputs if not one.learned]
    asked = {place: one.target for place, one in enumerate(trace.description.outputs)}
    lost = [asked.get(place, place) for place in behind] if len(asked) > 1 else []
    lost += list(trial.answers.lost) if trial.answers is not None else []
    found = [one for place, one in clear.items() if not lost or place in lost]
    if not found or _gain(trial, seen) >= SHARE_OF_LINEAR * (1.0 - found[0].linear / found[0].constant):
        return None
    share = found[0].share()
    if share is not None and share >= SHARE_OF_LINEAR:
        return None  # the answers themselves are better than a constant, whatever the loss may say
    return found[0] if saw_all(trace) or (found[0].of == INPUTS and rests(trial, seen)) else None


def _gain(trial: TrialReading, seen: Verdict) -> float:
    """Return the least gain of an output over its constant prediction, over the loss of that; 0 where it is not known.

    A mean that is below the constant prediction, if within its noise, is no sign that nothing is learned.
    """
    read = [(one.end, one.baseline) for one in trial.further or trial.outputs] or [(seen.end, seen.baseline)]
    known = [(base - end) / abs(base) for end, base in read if end is not None and base]
    return min([gain for gain in known if math.isfinite(gain)], default=0.0)
