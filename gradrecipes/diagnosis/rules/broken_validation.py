"""broken_validation: validation does not measure what is trained, or its metrics are not finite.

## What it does
Compares the validation data with the training data: inputs or real-valued targets on another scale, and classes that
the training never shows. After a trial it compares what the net learned of training data held back with what holds of
that for the validation data, and with what the net answers to the rows it was trained on, called as after the training.
Reads the logs of the epochs too: it fires where a `val_` value was NaN or infinite in an
epoch in which every training step that was applied had a finite loss, and reports whether the weights can be the cause:
later steps with finite losses rule them out.

## Why it is bad
A net that trains well then looks as if it had learned nothing, and no change of the net helps. Where nothing was
measured, `EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau` compare with NaN, on which nothing improves: they
keep the first epoch, save nothing, or lower the learning rate again and again.

## Example
```python
model.fit(x / 255, y, validation_data=(x, y))  # pixels from 0 to 255: only the training data were scaled
```
Sorted labels of which `validation_split` takes the last; one NaN among 500 validation samples; a BatchNormalization
whose moving statistics are not finite, which only inference reads.

## Remedy
Prepare both in one function, with statistics of the training data, and split after shuffling. Find the validation
samples whose loss is not finite; if there are none, check what only inference does.

## References
- Keras: `keras.callbacks.EarlyStopping`, whose comparison with NaN is always False.
- Chebyshev: at most 1/k² of any distribution lies k standard deviations or more from its mean.
"""

from __future__ import annotations

import math

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import ArrayReading, DataReading
from gradrecipes.core.trace.trace import Event
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.facts.data_facts import arrays
from gradrecipes.diagnosis.facts.divergences import saw_all
from gradrecipes.diagnosis.facts.readings import nonfinite_losses, rounded
from gradrecipes.diagnosis.outcome import verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

OTHER_SCALE = 5.0  # root mean square over that of the training data, or under it
OTHER_MEAN = 5.0  # standard deviations of the training data between the means; 4% of any data lie so far out
LEARNED_WELL = 0.5  # end over the baseline of a loss from which its answers must show what was learned
LEAST_KEPT = 0.5  # gain over a constant prediction of the answers, over that of the loss in training
MOSTLY_UNSEEN = 0.5  # share of the classes of the validation data that training never shows


@rule(
    code="broken_validation",
    kind=Kind.SYMPTOM,
    title="Validation measures something else than what is trained, or is not finite",
    order=245,
)
def broken_validation(trace: Trace) -> Finding | None:
    """Tell what makes validation say nothing of the training."""
    return _prepared_otherwise(trace) or _answers_otherwise(trace) or _lost(trace) or _not_finite(trace)


def _prepared_otherwise(trace: Trace) -> Finding | None:
    trained = {one.name: one for one in arrays(trace)}
    targets = {one.name for one in arrays(trace, parts=("targets",))}
    for given in arrays(trace, which="validation"):
        before = trained.get(given.name)
        if before is None or before.feeds_embedding:
            continue
        is_class = given.name in targets and given.integer_valued and before.integer_valued
        told = _other_classes(before, given) if is_class else _other_scale(before, given)
        if told is not None:
            return _mismatch(given.name, *told)
    return None


def _other_scale(before: ArrayReading, given: ArrayReading) -> tuple[str, float, float] | None:
    """Return in words how the scale or the mean differs, with the two numbers; None where they are alike."""
    if not before.rms or not given.rms or before.std is None or before.mean is None or given.mean is None:
        return None
    was, is_ = before.rms_without_outliers or before.rms, given.rms_without_outliers or given.rms
    if not 1 / OTHER_SCALE < is_ / was < OTHER_SCALE:
        return f"a root mean square of {rounded(is_)}, those of the training {rounded(was)}", is_, was
    if abs(given.mean - before.mean) > OTHER_MEAN * before.std > 0:
        spread = f"{rounded(before.mean)} with a standard deviation of {rounded(before.std)}"
        return f"a mean of {rounded(given.mean)}, those of the training {spread}", given.mean, before.mean
    return None


def _other_classes(before: ArrayReading, given: ArrayReading) -> tuple[str, float, float] | None:
    """Return in words which classes training never shows, with their number and 0; None where few are new."""
    for one in (before, given):
        if one.unique is None or one.unique > len(one.values):
            return None
    unseen = [value for value in given.values if value not in before.values]
    if len(unseen) < MOSTLY_UNSEEN * len(given.values) or not unseen:
        return None
    shown = ", ".join(f"{value:g}" for value in unseen)
    return f"the classes {shown}, of which the training data hold none", float(len(unseen)), 0.0


def _mismatch(name: str, words: str, value: float, usual: float) -> Finding:
    statement = f"The validation data of {name} have {words}."
    title = f"The validation data of {name} are not prepared as the training data are"
    return _critical(title, Evidence(statement, value, usual, "both data, as they were given"))


def _lost(trace: Trace) -> Finding | None:
    """Tell that what holds for training data held back does not hold for the validation data."""
    read = next((one for one in (trace.probes.trial or TrialReading()).held_back if one.lost_in_validation), None)
    if read is None or read.validated is None:
        return None
    statement = (
        f"With the targets of other samples the loss is higher by {rounded(read.held)} on {read.rows:,} training "
        f"samples that the trial was not given, and by {rounded(read.validated)} on the validation data (standard "
        f"error {rounded(read.validated_noise)})."
    )
    title = "What the net learns holds for training data held back, and not for the validation data"
    return _critical(title, Evidence(statement, read.validated, read.held, "the end of this trial"))


def _answers_otherwise(trace: Trace) -> Finding | None:
    """Tell that a net has learned while it was trained, and loses it as it is called afterwards, on the same samples.

    Moving averages, of activations or weights, may be young before the end of the training.
    """
    trial, seen, description = trace.probes.trial or TrialReading(), verdict(trace), trace.description
    end = trial.further[0].end if len(trial.further) == 1 else None
    if end is None or not end < LEARNED_WELL * seen.baseline or len(trial.held_back) != 1:
        return None
    read, ended, optimizer = trial.held_back[0], saw_all(trace), description.optimizer
    averaged = description.averages_batches or bool(optimizer and optimizer.settings.get("use_ema"))
    plain = not (trace.probes.data or DataReading()).sample_weight and all(
        one.factor == 1.0 and one.config.get("reduction") != "sum" for one in description.outputs
    )
    kept = (seen.baseline - read.own + 2.0 * read.own_noise) / (seen.baseline - end)
    if not ((read.unlike and (ended or not averaged)) or (plain and ended and kept < LEAST_KEPT)):
        return None
    statement = (
        f"In training the loss ends at {rounded(end)}; a constant prediction has {rounded(seen.baseline)}. Called with "
        f"training=False on the same samples, the net has a loss of {rounded(read.own)}, and of "
        f"{rounded(read.own + read.trained)} with the targets of other samples."
    )
    evidence = Evidence(statement, read.own, end, "the end of this trial")
    return _critical("The net learns while it is trained, and answers otherwise when it is used", evidence)


def _critical(title: str, evidence: Evidence) -> Finding:
    return Finding(
        code="broken_validation",
        title=title,
        kind=Kind.SYMPTOM,
        severity=Severity.CRITICAL,
        confidence=0.95,
        explanation=f"{evidence.statement} What the net has learned does not apply to them, so no `val_` value tells "
        "how it does on new data.",
        evidence=(evidence,),
        prescriptions=(prescription("prepare_alike"),),
    )


def _not_finite(trace: Trace) -> Finding | None:
    """Tell in which epochs validation alone was not finite."""
    epochs = [event for event in trace.events if event.kind == "epoch" and _validated(event)]
    broken = [event for event in epochs if _broken_keys(event) and _trained_finitely(trace, event)]
    if not broken:
        return None
    first, keys = broken[0], _broken_keys(broken[0])
    lasting = broken[-1] is epochs[-1]
    statement = (
        f"{_listed(keys)} {'is' if len(keys) == 1 else 'are'} NaN or infinite in {len(broken)} of {len(epochs)} "
        f"validated epochs, first in epoch {first.epoch + 1}, in which every applied training step had a finite loss."
    )
    return Finding(
        code="broken_validation",
        title=f"Validation is not finite in epoch {first.epoch + 1}, while the training loss is",
        kind=Kind.SYMPTOM,
        severity=Severity.CRITICAL if lasting else Severity.WARNING,
        confidence=1.0,
        explanation=f"{statement} {_origin(trace, first)}",
        step=first.step,
        evidence=(Evidence(statement, float(len(broken)), 0.0, "the logs of the epochs"),),
        prescriptions=(prescription("find_validation_samples"), prescription("check_inference")),
    )


def _validated(event: Event) -> bool:
    return any(name.startswith("val_") for name in event.logs)


def _broken_keys(event: Event) -> list[str]:
    values = {name: value for name, value in event.logs.items() if name.startswith("val_")}
    # A trace that was saved holds None for what is not finite in strict JSON.
    return [name for name, value in values.items() if value is None or not math.isfinite(value)]


def _trained_finitely(trace: Trace, event: Event) -> bool:
    logged = event.logs.get("loss")
    if logged is None or not math.isfinite(logged):
        return False
    rows = trace.steps["epoch"] == event.epoch
    return not bool((nonfinite_losses(trace) & rows & ~trace.skipped).any())


def _origin(trace: Trace, event: Event) -> str:
    """Say what the training after the first such epoch tells of the weights."""
    later = (trace.steps["step"] > event.step) & ~trace.skipped
    losses = trace.loss[later]
    if not len(losses):
        return (
            "No step followed, so the cause may be the last update, the validation data, or something that only "
            "inference does."
        )
    if np.isfinite(losses).all():
        return (
            f"The {len(losses)} later steps have finite losses, so the weights are finite: the cause is the "
            "validation data, or something that only inference does, such as the moving statistics of a "
            "normalization."
        )
    return (
        "The training loss is not finite afterwards either: the last updates of that epoch made the weights NaN "
        "or infinite."
    )


def _listed(keys: list[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)
