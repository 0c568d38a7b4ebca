"""validation_degrading: the training loss falls while the validation loss climbs.

## What it does
Reads the logs of the epochs. It fires where the validation loss rose well above its best for at least three epochs in a
row at the end while the training loss continued to fall.

## Why it is bad
From the best epoch on the net memorizes the training samples. The weights and the curvature of an over-fitted net grow,
and a late explosion often follows.

## Example
A wide net on 500 samples for 200 epochs.

## Remedy
Early stopping that restores the best epoch, weight decay, dropout, more data.

## References
- Prechelt, "Early stopping, but when?", 1998.
"""

from __future__ import annotations

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

MIN_EPOCHS = 6  # fewer show no trend
IN_A_ROW = 3  # last epochs that are all above the best
MIN_RISE = 1.2  # validation loss of the last epochs over its best; epochs of healthy nets differ by .1


@rule(
    code="validation_degrading",
    kind=Kind.SYMPTOM,
    title="The validation loss climbs while the training loss falls",
    order=290,
)
def validation_degrading(trace: Trace) -> Finding | None:
    """Tell whether the net learns its samples by heart."""
    logs = [event.logs for event in trace.events if event.kind == "epoch"]
    logs = [log for log in logs if "val_loss" in log and "loss" in log]
    validation = np.array([log["val_loss"] for log in logs], dtype=float)
    training = np.array([log["loss"] for log in logs], dtype=float)
    if len(logs) < MIN_EPOCHS or not (np.isfinite(validation).all() and np.isfinite(training).all()):
        return None
    best = int(np.argmin(validation))
    last = validation[-IN_A_ROW:]
    scale = abs(float(validation[best]))
    climbing = bool((last > validation[best] + (MIN_RISE - 1.0) * scale).all()) and best < len(logs) - IN_A_ROW
    if not climbing or not training[-1] < training[best]:
        return None
    statement = (
        f"The validation loss was {rounded(float(validation[best]))} after epoch {best + 1} and is "
        f"{rounded(float(last[-1]))} after epoch {len(logs)}, while the training loss fell from "
        f"{rounded(float(training[best]))} to {rounded(float(training[-1]))}."
    )
    return Finding(
        code="validation_degrading",
        title=f"Since epoch {best + 1} the validation loss climbs while the training loss falls",
        kind=Kind.SYMPTOM,
        severity=Severity.WARNING,
        confidence=0.9,
        explanation=f"{statement} From then on the net memorizes the training samples.",
        evidence=(Evidence(statement, float(last[-1]), float(validation[best]), "the logs of the epochs"),),
        prescriptions=(prescription("stop_at_best_epoch"),),
    )
