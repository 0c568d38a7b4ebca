"""corrupt_batch: a few samples, finite but far outside the range of all others, ruin the step of their batch.

## What it does
Looks for samples that lie orders of magnitude further out in a column than all others, and for consequences: the run is
not finite, diverges or stalls, the autopsy of the failing step names one of them, the net learns without them, or a
single batch stands out in loss and gradient once in every pass. Heavy tails are not corruption: in healthy data the
largest value is a few times the next one, not thousands of times. NaN and infinity are `nonfinite_data`. It also
fires where most of the variance of the classes lies between the batches of a dataset, since it is not shuffled, and
where a net learns the samples of the trial and nothing that holds for others: the targets are not those of the inputs.

## Why it is bad
The gradient of a squared error grows with the error, that of the first layer with the input. A sample a million times
too large makes a step a million times too long, and one such step is enough to lose everything that was learned.

## Example
```python
broken = x.copy()
broken[81] *= 1e6  # a decimal point that was lost
model.fit(broken, y)
```

## Remedy
Look at the samples; correct them or leave them out. Clip the values, use a robust loss, and train with a guard that
skips outlying steps.

## References
- Huber, "Robust Statistics"; Chowdhery et al. (PaLM), arXiv 2204.02311: batches that are skipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import Offender, listed
from gradrecipes.core.trace.data_reading import Outlier
from gradrecipes.core.trace.trial_reading import FINITE_DATA, TrialReading
from gradrecipes.diagnosis.facts.data_facts import ArrayReading, arrays, is_held_back, names, offenders
from gradrecipes.diagnosis.facts.readings import nonfinite_gradients, nonfinite_losses, place, rounded
from gradrecipes.diagnosis.outcome import fixed_by, losses, variation, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import leave_out_samples, prescription
from gradrecipes.diagnosis.registry import FAILED_RUN, LONG_STEPS, rule

LOSS_SPIKE = 20.0  # loss of a batch over the usual one of the run's beginning; a label that is wrong costs up to 10
GRADIENT_SPIKE = 100.0  # gradient norm over the usual one of the beginning; valid batches differ by up to 10
SINGLE_SHARE = 0.1  # share of the batches of a pass that may stand out and still be single ones
SHORTEST_PASS = 5  # batches; of fewer, none is single
MIN_PASSES = 2  # passes over the data in which it has to recur


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
    if len(passes) < MIN_PASSES or min(map(len, passes)) < SHORTEST_PASS:
        return None
    loss, norm = losses(trace), trace.gradient_norm.astype(float)
    broken = nonfinite_losses(trace) | nonfinite_gradients(trace)
    first = passes[0]
    usual_loss, usual_norm = _median(np.abs(loss[first])), _median(norm[first])
    with np.errstate(invalid="ignore"):
        high = (np.abs(loss) > LOSS_SPIKE * usual_loss) | (norm > GRADIENT_SPIKE * usual_norm)
    stands_out = high | broken
    counts = [int(stands_out[rows].sum()) for rows in passes]
    if min(counts) < 1 or max(counts) != min(counts) or counts[0] > max(1, int(SINGLE_SHARE * min(map(len, passes)))):
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


MIN_UNMIXED = 0.5  # share of the variance of the classes between batches; 1 where each batch holds a single class
FAR_OUTLIER = 1000.0  # times the largest of all other samples; the ratio of the two largest Pareto values (exponent 1)
# exceeds it once in a thousand data sets
SUSPECT_RATIO = 30.0  # times, where leaving the samples out fixes the run
OF_DATA = {"input", "target"}  # kinds of offenders


@rule(
    code="corrupt_batch",
    kind=Kind.CAUSE,
    title="A few samples lie far outside the range of all others",
    short="outlying samples in the data",
    order=40,
    brings_about=(
        "failing_step",
        "unsafe_loss",
        "float16_overflow",
        "optimizer_state",
        "embedding_spike",
        "attention_logit_growth",
        *LONG_STEPS,
        *FAILED_RUN,
    ),
)
def corrupt_batch(trace: Trace) -> Finding | None:
    """Tell which samples are outliers, how far, and what they did to the run."""
    seen = verdict(trace)
    healed = fixed_by(trace, FINITE_DATA)
    spikes = None if trace.description.loss_scaler else single_batches(trace)
    if (unmatched := _unmixed(trace) or _mispaired(trace)) is not None:
        return unmatched
    missing = any(array.nonfinite for array in arrays(trace, parts=("inputs", "targets", "sample_weight")))
    blamed = _blamed(trace)
    odd = _odd(trace, SUSPECT_RATIO if healed or spikes or blamed else FAR_OUTLIER)
    hurt = is_held_back(trace, seen) or spikes is not None
    if odd and not hurt:
        return None
    if not odd and (blamed is None and (spikes is None or missing)):
        return None
    tried = variation(trace, FINITE_DATA) is not None
    sure = 0.97 if healed or blamed else 0.9 if odd and not tried else 0.75
    return Finding(
        code="corrupt_batch",
        title=_title(odd, blamed, spikes),
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if is_held_back(trace, seen) else Severity.WARNING,
        confidence=sure,
        explanation=_explanation(trace, odd, blamed, spikes),
        step=spikes.steps[0] if spikes else seen.step,
        evidence=_evidence(trace, odd, blamed, spikes),
        prescriptions=_prescriptions(trace, odd, blamed),
    )


def _unmixed(trace: Trace) -> Finding | None:
    """Return the finding where batches of a dataset hold few classes each: it is read in the order of the classes."""
    array = next((one for one in arrays(trace, parts=("targets",)) if one.between_batches is not None), None)
    share = 0.0 if array is None else array.between_batches or 0.0
    if array is None or share < MIN_UNMIXED:
        return None
    statement = (
        f"{rounded(100 * share)}% of the variance of the classes in {array.name} lies between batches, as they come"
    )
    return Finding(
        code="corrupt_batch",
        title="The batches are not mixed: each holds few of the classes",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.95,
        explanation=(
            f"{statement}; drawn at random, next to nothing would. Each step then teaches the net to answer a few "
            "classes whatever it sees, and the next steps undo it; a BatchNormalization adapts to these alone."
        ),
        step=None,
        evidence=(Evidence(f"{statement}.", share, 0.0, "the dataset, batch by batch; arXiv 1206.5533, section 3.1"),),
        prescriptions=(prescription("mix_batches"),),
    )


def _mispaired(trace: Trace) -> Finding | None:
    """Return the finding where nothing of what was learned of single samples holds for others of the same data."""
    read = [one for one in (trace.probes.trial or TrialReading()).held_back if one.memorized]
    if not read:
        return None
    one = read[0]
    statement = (
        f"With the targets of other samples the loss is higher by {rounded(one.trained)} on the samples of the trial, "
        f"and by {rounded(one.held)} on {one.rows:,} others (standard error {rounded(one.noise)})"
    )
    return Finding(
        code="corrupt_batch",
        title="The targets do not belong to the inputs: nothing that was learned holds for other samples",
        kind=Kind.CAUSE,
        severity=Severity.WARNING,
        confidence=0.8,
        explanation=(
            f"{statement}. The net learns its samples by heart. Where inputs and targets are shuffled, sorted or "
            "filtered one without the other, there is no more to be learned; nor where the inputs say nothing of the "
            "targets."
        ),
        evidence=(Evidence(f"{statement}.", one.held, one.trained, "the end of this trial"),),
        prescriptions=(prescription("keep_pairs"),),
    )


def _odd(trace: Trace, factor: float) -> list[tuple[ArrayReading, list[Outlier]]]:
    """Return the arrays that hold outliers, with these, the furthest first."""
    found = []
    for array in arrays(trace, parts=("inputs", "targets", "sample_weight")):
        beyond = [outlier for outlier in array.outliers or [] if outlier.factor >= factor]
        if beyond:
            found.append((array, sorted(beyond, key=lambda outlier: -outlier.factor)))
    return sorted(found, key=lambda pair: -pair[1][0].factor)


def _blamed(trace: Trace) -> Offender | None:
    """Return the first offender of the autopsy, if it is a finite value in the data."""
    first = next(iter(offenders(trace)), None)
    if first is None or first.kind not in OF_DATA or isinstance(first.found, str):
        return None
    return first


def _samples(odd: list[tuple[ArrayReading, list[Outlier]]]) -> list[int]:
    return sorted({int(outlier.sample) for _, outliers in odd for outlier in outliers})


def _title(odd: list[tuple[ArrayReading, list[Outlier]]], blamed: Offender | None, spikes: Spikes | None) -> str:
    if odd:
        array, outliers = odd[0]
        samples = _samples(odd)
        which = listed(samples).capitalize() if len(samples) <= 3 else f"{len(samples)} samples"
        lie = "lies" if len(samples) == 1 else "lie"
        return f"{which} of {array.name} {lie} up to {rounded(outliers[0].factor)} times further out than all others"
    if blamed is not None:
        return f"{blamed.name} holds an extreme value: {rounded(float(blamed.found))}"
    return f"One batch in every pass stands out, first at step {spikes.steps[0] if spikes is not None else 0}"


def _explanation(
    trace: Trace, odd: list[tuple[ArrayReading, list[Outlier]]], blamed: Offender | None, spikes: Spikes | None
) -> str:
    if odd:
        array, outliers = odd[0]
        worst = outliers[0]
        column = f", column {worst.column}" if array.columns and array.columns.count > 1 else ""
        story = (
            f"Sample {worst.sample} of {array.name}{column} is {rounded(worst.value)}, while no other lies "
            f"further than {rounded(worst.typical)} from the median: {rounded(worst.factor)} times as far."
        )
    elif blamed is not None:
        story = f"The step that broke was gone through layer by layer, and this came first: {blamed.sentence}"
    else:
        story = (
            "All batches but one are finite and usual; the one that is not comes back in each of "
            f"{0 if spikes is None else spikes.passes} passes over the data. So it is in the data, not in the net."
        )
    consequence = (
        f" It shows at {place(trace, spikes.steps[0])}, and again in every pass." if spikes is not None and odd else ""
    )
    return (
        f"{story}{consequence} Gradients grow with the input and with the error, so one such sample makes the step "
        "of its whole batch that many times too long and undoes what was learned from the others."
    )


def _evidence(
    trace: Trace, odd: list[tuple[ArrayReading, list[Outlier]]], blamed: Offender | None, spikes: Spikes | None
) -> tuple[Evidence, ...]:
    found = []
    for array, outliers in odd[:2]:
        worst = outliers[0]
        stand = "stands" if array.outlying_samples == 1 else "stand"
        found.append(
            Evidence(
                f"{array.outlying_samples} of {array.samples} samples of {array.name} {stand} apart "
                f"from all others, sample {worst.sample} the furthest: {rounded(worst.value)}, "
                f"{rounded(worst.factor)} times as far from the median as the next.",
                float(worst.factor),
                1.0,
                "largest distance from the median over that of the largest other sample",
            )
        )
    if blamed is not None:
        found.append(Evidence(blamed.sentence, None, None, "autopsy of the step that broke"))
    if spikes is not None:
        sizes = []
        if math.isfinite(spikes.loss):
            sizes.append(f"a loss of {rounded(spikes.loss)} where {rounded(spikes.usual_loss)} is usual")
        if math.isfinite(spikes.gradient) and spikes.gradient > spikes.usual_gradient:
            sizes.append(
                f"a gradient of norm {rounded(spikes.gradient)} where {rounded(spikes.usual_gradient)} is usual"
            )
        if spikes.broken:
            sizes.append("a loss or gradient that is not finite")
        shown = ", ".join(map(str, spikes.steps[:5])) + (" ..." if len(spikes.steps) > 5 else "")
        found.append(
            Evidence(
                f"Single batches stand out in each of {spikes.passes} passes, at steps {shown}: {'; '.join(sizes)}.",
                spikes.loss if math.isfinite(spikes.loss) else None,
                spikes.usual_loss if math.isfinite(spikes.usual_loss) else None,
                "this run; the first pass is what is usual",
            )
        )
    return (*found, *variation_evidence(trace, FINITE_DATA))


def _prescriptions(trace: Trace, odd: list[tuple[ArrayReading, list[Outlier]]], blamed: Offender | None) -> tuple:
    everything = names(trace) or ["x", "y"]
    if odd:
        array = odd[0][0]
        advice = [
            leave_out_samples(_samples(odd), array.name, everything),
            prescription("clip_values", name=array.name),
        ]
        if array.name.startswith("y"):
            advice.insert(1, prescription("robust_loss"))
        return (*advice, prescription("guard"))
    if blamed is not None:
        return prescription("clip_values", name=blamed.name), prescription("guard")
    return prescription("guard"), prescription("clip_values", name=everything[0])
