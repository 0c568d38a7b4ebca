"""nonfinite_validation: a validation metric is NaN or infinite while the training loss is finite.

## What it does
Reads the logs of the epochs. It fires where a `val_` value was NaN or infinite in an epoch in which every training step
that was applied had a finite loss, and reports whether the weights can be the cause: later steps with finite losses
rule them out.

## Why it is bad
Nothing was measured. `EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau` compare with NaN, on which nothing
improves: they keep the first epoch, save nothing, or lower the learning rate again and again.

## Example
One NaN among 500 validation samples; a BatchNormalization whose moving statistics are not finite, which only inference
reads; a `log` of a prediction that is 0 on a validation sample.

## Remedy
Find the validation samples whose loss is not finite. If there are none, check what only inference does.

## References
- Keras: `keras.callbacks.EarlyStopping`, whose comparison with NaN is always False.
"""

from __future__ import annotations

import math

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trace import Event
from gradrecipes.diagnosis.facts.readings import nonfinite_losses
from gradrecipes.diagnosis.prescriptions.prescribe import prescription
from gradrecipes.diagnosis.registry import rule


@rule(
    code="nonfinite_validation",
    kind=Kind.SYMPTOM,
    title="A validation metric is NaN or infinite while the training loss is finite",
    order=245,
    explained_by=("nonfinite_data", "unsafe_loss", "loss_output_mismatch", "float16_overflow"),
)
def nonfinite_validation(trace: Trace) -> Finding | None:
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
        code="nonfinite_validation",
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
