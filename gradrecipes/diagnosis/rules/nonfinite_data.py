"""nonfinite_data: inputs, targets or sample weights hold NaN or Inf.

## What it does
Counts the entries that are NaN or infinite in every array of the data, names the arrays, samples and columns, and fires
unless the run met them and stayed finite: a Masking layer, or a loss that ignores missing labels, handles them. Columns
without any finite value are reported apart from single missing values. It fires as well where a number such as -999
stands for missing targets, repeated and further from all other values than these are from one another, in a run that
ends above half the loss of a constant prediction.

## Why it is bad
One NaN in one sample makes the loss of its batch NaN, that loss makes every gradient NaN, and one step makes every
weight NaN. In the first epoch at the latest nothing can be learned any more, and Keras reports no more than "nan". A
number that stands for a missing target is learned instead: of a squared error, -999 among values of 20 is nearly all.

## Example
```python
broken = x.copy()
broken[17, 3] = float("nan")  # one field of a table that was empty
model.fit(broken, y)
```

## Remedy
Leave such samples out, or fill the values in; drop a column without any finite value. First find out where they come
from: a failed join, a division by 0, a text that is not a number.

## References
- IEEE 754: arithmetic with NaN gives NaN. Keras: `keras.callbacks.TerminateOnNaN` stops when it is too late.
- Little and Rubin, "Statistical Analysis with Missing Data": when filling in is sound.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import listed
from gradrecipes.core.trace.data_reading import Columns
from gradrecipes.core.trace.trial_reading import FINITE_DATA
from gradrecipes.diagnosis.facts.data_facts import ArrayReading, arrays, names, offenders
from gradrecipes.diagnosis.facts.divergences import end_over_baseline
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.outcome import BROKEN, HALVED_END, UNKNOWN, fixed_by, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import leave_out_marked, leave_out_nonfinite, prescription
from gradrecipes.diagnosis.registry import LONG_STEPS, rule

PARTS = ("inputs", "targets", "sample_weight")
MAX_LEFT_OUT_SHARE = 0.05  # share of the samples from which leaving them out costs too much
OF_DATA = {"input", "target", "sample_weight"}  # kinds of offenders


@rule(
    code="nonfinite_data",
    kind=Kind.CAUSE,
    title="The data hold NaN or infinite values",
    short="NaN or infinity in the data",
    order=20,
    brings_about=(
        "failing_step",
        "unsafe_loss",
        "unbounded_loss",
        "loss_without_gradient",
        "float16_overflow",
        "optimizer_state",
        "frozen_weights",
        "unscaled_loss_weights",
        "unbalanced_loss_terms",
        "embedding_spike",
        "excessive_regularization",
        "attention_logit_growth",
        "stale_moving_averages",
        "exploding_gradient",
        "nonfinite_loss",
        "broken_validation",
        "unscaled_targets",
        "corrupt_batch",
        "learning_rate_too_low",
        "stalled_loss",
        *LONG_STEPS,
    ),
)
def nonfinite_data(trace: Trace) -> Finding | None:
    """Tell which arrays hold NaN or Inf, in which samples and columns."""
    training = [array for array in arrays(trace, parts=PARTS) if array.nonfinite]
    validation = [array for array in arrays(trace, which="validation", parts=PARTS) if array.nonfinite]
    bad = training or validation
    seen = verdict(trace)
    structure = trace.description
    if not bad and (marked := next((one for one in arrays(trace, parts=("targets",)) if any(one.gap_marks)), None)):
        return _of_marks(trace, marked) if end_over_baseline(trace) > HALVED_END else None  # 0 may be an amount
    if not bad or (seen.state not in (BROKEN, UNKNOWN) and training):
        return None
    if structure.masked and seen.state != BROKEN:
        return None
    blamed = _blamed(trace)
    broke = bool(training) and seen.state == BROKEN and blamed is not False
    return Finding(
        code="nonfinite_data",
        title=_title(bad, "" if training else "validation "),
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if broke else Severity.WARNING,
        confidence=1.0 if broke and (blamed or fixed_by(trace, FINITE_DATA)) else 0.95 if blamed is not False else 0.7,
        explanation=_explanation(bad, bool(training), broke),
        step=seen.step if broke else None,
        evidence=(*(_evidence(array) for array in bad), *variation_evidence(trace, FINITE_DATA)),
        prescriptions=_prescriptions(trace, bad),
    )


def _of_marks(trace: Trace, array: ArrayReading) -> Finding:
    """Tell that a number stands for missing targets, and is learned as any other."""
    numbers = " and ".join(f"{number:g}" for number in array.gap_marks)
    share = f"{rounded(100 * array.marked_share)}% of the samples"
    statement = f"{array.name} is {numbers} in {share}, further from all other values than these are from one another"
    return Finding(
        code="nonfinite_data",
        title=f"Missing values seem to be marked by {numbers}, in {share}",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.95,
        explanation=f"{statement}. The net learns these numbers as if they were measured, and little else.",
        evidence=(Evidence(f"{statement}.", array.marked_share, 0.0, "the data as given"),),
        prescriptions=(leave_out_marked(array.name, array.gap_marks, names(trace)),),
    )


def _blamed(trace: Trace) -> bool | None:
    """Say whether the autopsy found the data to be broken; None without an autopsy that found anything."""
    found = offenders(trace)
    return None if not found else any(offender.kind in OF_DATA for offender in found)


def _title(bad: list[ArrayReading], which: str) -> str:
    listing = ", ".join(array.name for array in bad[:3]) + (" and others" if len(bad) > 3 else "")
    entries = sum(int(array.nonfinite) for array in bad)
    what = "entry" if entries == 1 else "entries"
    return f"The {which}data hold NaN or infinite values: {entries:,} {what} in {listing}"


def _explanation(bad: list[ArrayReading], training: bool, broke: bool) -> str:
    where = "; ".join(f"{array.name}: {_where(array)}" for array in bad[:3])
    if not training:
        after = (
            "The training data are finite, but every validation metric will be NaN, and so will what callbacks "
            "read of it."
        )
    elif broke:
        after = (
            "The run met one of them and broke there: NaN times anything is NaN, so one such entry makes the loss "
            "of its batch NaN, then all gradients, and after one step all weights."
        )
    else:
        after = (
            "The first batch that holds one makes the loss NaN, then all gradients, and after one step all "
            "weights: the net cannot recover from that."
        )
    return f"The data contain NaN or infinite values ({where}). {after}"


def _where(array: ArrayReading) -> str:
    columns = array.columns or Columns(0)
    empty, touched, count = columns.empty, columns.nonfinite, columns.count or 1
    samples, share = array.nonfinite_samples, array.nonfinite_share
    parts = []
    if empty and count > 1:
        parts.append(f"{_columns(empty)} without a single finite value")
    elif touched and count > 1 and len(touched) < count:
        parts.append(f"in {_columns(touched)}")
    if share >= 1.0:
        parts.append("in every sample")
    elif samples:
        all_named = len(samples) < 20
        parts.append(
            listed(samples)
            if all_named and len(samples) <= 6
            else f"{rounded(100 * share)}% of the samples, beginning with sample {samples[0]}"
        )
    return ", ".join(parts) or f"{int(array.nonfinite)} entries"


def _columns(places: tuple[int, ...]) -> str:
    return f"column{'s' if len(places) > 1 else ''} {', '.join(map(str, places[:5]))}"


def _evidence(array: ArrayReading) -> Evidence:
    constant = (array.columns or Columns(0)).constant
    aside = f" In addition, {constant} of its columns are constant and carry no information." if constant else ""
    return Evidence(
        f"{array.name} holds {int(array.nonfinite):,} NaN or infinite values: {_where(array)}.{aside}",
        float(array.nonfinite),
        0.0,
        "the data as given",
    )


def _prescriptions(trace: Trace, bad: list[ArrayReading]) -> tuple:
    inputs = [array for array in bad if array.name.startswith("x")]
    empty = [(array.name, array.columns.empty) for array in inputs if array.columns and array.columns.empty]
    share = max(array.nonfinite_share for array in bad)
    advice = [prescription("drop_columns", name=name, columns=list(columns)) for name, columns in empty[:1]]
    if share < MAX_LEFT_OUT_SHARE or len(inputs) < len(bad):
        advice.append(leave_out_nonfinite([array.name for array in bad], names(trace)))
    if inputs:
        advice.append(prescription("fill_in", name=inputs[0].name))
    return tuple(advice)
