"""stale_moving_averages: the moving averages of a BatchNormalization are not those of the data when training ends.

## What it does
Takes the momentum of each BatchNormalization that is trained and the steps that are planned (`epochs=`). It fires where
the momentum is above Keras' 0.99 and more than half of a moving average is still its initial value, 0 or 1, at the end
of the training. Without `epochs=` the length of the training is not known, and it stays silent.

## Why it is bad
In training a batch is normalized by its own mean and variance, in `evaluate` and `predict` by the moving averages.
After n steps of momentum m these still consist of their initial values to a share of m^n. The loss of the training
falls as it should, while the model that is used afterwards is another one.

## Example
```python
keras.layers.BatchNormalization(momentum=0.9999)  # a habit of long trainings, in one of 500 steps
```

## Remedy
A smaller momentum, so that the averages follow within the training.

## References
- Ioffe and Szegedy, arXiv 1502.03167, section 3.1; Keras: BatchNormalization, `momentum`.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

USUAL_MOMENTUM = 0.99  # Keras' default
MAX_LEFT = 0.5  # share of a moving average that is still its initial value at the end of the training
LEFT_AFTER = 0.01  # the same with the momentum that is advised, and the least and most of that
LEAST_MOMENTUM = 0.9


@rule(
    code="stale_moving_averages",
    kind=Kind.CAUSE,
    title="Moving averages of BatchNormalization do not follow within the training",
    short="moving averages too slow",
    order=225,
    brings_about=("broken_validation",),
)
def stale_moving_averages(trace: Trace) -> Finding | None:
    """Tell whether the model that is used after the training is normalized by other statistics than in it."""
    momentum, planned = trace.description.slowest_average, (trace.probes.trial or TrialReading()).rates
    if momentum is None or momentum <= USUAL_MOMENTUM or planned is None or not planned.planned or not planned.steps:
        return None
    left = momentum**planned.steps
    if left <= MAX_LEFT:
        return None
    statement = (
        f"With a momentum of {momentum:g}, {left:.0%} of a moving average is still its initial value after the "
        f"{planned.steps:,} steps that are planned"
    )
    advised = min(USUAL_MOMENTUM, max(LEAST_MOMENTUM, LEFT_AFTER ** (1.0 / planned.steps)))
    return Finding(
        code="stale_moving_averages",
        title=f"Moving averages are {left:.0%} initial values when training ends",
        kind=Kind.CAUSE,
        severity=Severity.WARNING,
        confidence=0.8,
        explanation=(
            f"{statement}. Training normalizes by each batch, `evaluate` and `predict` by these averages: the loss "
            "falls, and the model that is used is another one."
        ),
        evidence=(Evidence(f"{statement}.", left, MAX_LEFT, "momentum to the power of the steps"),),
        prescriptions=(prescription("faster_averages", momentum=rounded(advised)),),
    )
