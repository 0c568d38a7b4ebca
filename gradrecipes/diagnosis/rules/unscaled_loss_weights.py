"""unscaled_loss_weights: weights of the samples, or of the only loss, multiply the gradient far from its size.

## What it does
Reads the sample weights, the weight that `compile` gives to a single loss, and whether that is a sum over samples and
places. It fires where what they multiply the loss by is far from 1 and the run is not finite, diverges, stalls, or does
not approach the loss of the best constant prediction, and where it is 0. A net that learns with such weights, as under
Adam, which divides by the gradient's size, is not reported.

## Why it is bad
A loss that is multiplied by a hundred million has a gradient a hundred million times as large, and plain gradient
descent takes steps of a hundred million times the learning rate. Weights of a millionth leave it where it stands.

## Example
```python
import numpy as np

model.fit(x, y, sample_weight=1e8 * np.ones(len(x)))
```

## Remedy
Divide the weights by their mean: the samples keep their proportions, and the loss its size.

## References
- https://keras.io/api/models/model_training_apis/: `sample_weight` multiplies the loss of each sample.
"""

from __future__ import annotations

import math

from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import CLASS_WEIGHT
from gradrecipes.diagnosis.facts.data_facts import arrays, heads, is_held_back
from gradrecipes.diagnosis.facts.mismatch import class_of
from gradrecipes.diagnosis.facts.readings import number, rounded
from gradrecipes.diagnosis.outcome import fixing_rate, verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import FAILED_RUN, rule

SAMPLES, CLASSES, SUMS = "Sample weights", "Class weights", "Sums over samples and places, instead of means,"
FAR_FROM_ONE = 100.0  # root mean square of the weights, or its reciprocal: balanced class weights reach tens


@rule(
    code="unscaled_loss_weights",
    kind=Kind.CAUSE,
    title="The weights of samples or losses are far from 1",
    short="weights of the loss far from 1",
    order=94,
    brings_about=("learning_rate_too_high", "runaway_weights", *FAILED_RUN),
)
def unscaled_loss_weights(trace: Trace) -> Finding | None:
    """Tell by how much weights multiply the loss of a run that suffers."""
    seen = verdict(trace)
    size, name = _size(trace)
    factor = max(size, 1.0 / size) if 0 < size < math.inf else 1.0
    if size == 0 and name:
        return _of_zero(trace, name)
    if factor < FAR_FROM_ONE or not (is_held_back(trace, seen) or not seen.learned):
        return None
    steps = fixing_rate(trace, lower=size > 1)
    statement = f"{name} multiply the loss, and every gradient, by {rounded(size)}"
    shown = "" if steps is None else f" At {steps:g} times the learning rate the same steps learn."
    return Finding(
        code="unscaled_loss_weights",
        title=f"{name} multiply the loss by {rounded(size)}",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.75 if steps is None else 0.95,
        explanation=(
            f"{statement}. A plain gradient step is that many times longer; momentum does not change that, and "
            f"clipping bounds it to the same length for every batch.{shown}"
        ),
        step=seen.step,
        evidence=(Evidence(f"{statement}.", size, 1.0, "sample_weight, loss_weights and reduction"),),
        prescriptions=(_remedy(trace, name, size),),
    )


def _of_zero(trace: Trace, name: str) -> Finding:
    statement = f"{name} multiply the loss, and every gradient, by 0"
    return Finding(
        code="unscaled_loss_weights",
        title=f"{name} multiply the loss by 0",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=1.0,
        explanation=f"{statement}: no weight changes, and a loss of 0 says nothing of the answers.",
        evidence=(Evidence(f"{statement}.", 0.0, 1.0, "sample_weight and loss_weights"),),
        prescriptions=(_remedy(trace, name, 0.0),),
    )


def _remedy(trace: Trace, name: str, size: float) -> Prescription:
    if name == SUMS:
        return prescription("mean_reduction", loss=class_of(heads(trace)[0].loss))
    remedies = {SAMPLES: "mean_weight_of_one", CLASSES: "mean_class_weight_of_one"}
    return prescription(remedies.get(name, "loss_weight_of_one"), weight=rounded(size))


def _size(trace: Trace) -> tuple[float, str]:
    """Return what multiplies the loss, and how that is called."""
    given = arrays(trace, parts=("sample_weight",))
    if given:
        known = [rms for array in given if (rms := number(array.rms)) is not None]
        return max(known, default=1.0), CLASSES if given[0].name == CLASS_WEIGHT else SAMPLES
    outputs = trace.description.outputs
    weight = outputs[0].loss_weight if len(outputs) == 1 else None
    if len(outputs) == 1 and outputs[0].config.get("reduction") == "sum" and weight is None:
        shape = heads(trace)[0].shape or [1]
        return float((trace.description.batch_size or 1) * math.prod(shape[:-1])), SUMS
    return (1.0, "") if weight is None else (abs(weight), "The loss weights")
